"""Files of first weights: what they give a student, and why they are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.errors import InvalidJob
from workers.students.build import build_student
from workers.students.safetensors_header import read_header
from workers.students.weights import fit_weights, load_weights


def saved(folder: Path, classes: int = 10, **changes: Tensor | None) -> Path:
    """Weights of a small student; tensors named in ``changes`` are others, or left out."""
    torch.manual_seed(7)
    state = build_student("cnn_s", classes).state_dict() | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: x for name, x in state.items() if x is not None}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def dtypes_of_file(path: Path) -> str:
    """Of what is neither float32 nor a counter, as the file calls it."""
    return next(t.dtype for t in read_header(path).tensors.values() if t.dtype not in ("F32", "I64"))


def networks(classes: int = 10) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [build_student("cnn_s", classes), build_student("cnn_s", classes + 1)]


def test_weights_of_the_same_size_are_taken_as_a_whole(tmp_path: Path) -> None:
    path, (network, larger) = saved(tmp_path), networks()
    fit = fit_weights(path, network, larger)
    load_weights(path, network, fit)
    torch.manual_seed(7)
    expected = build_student("cnn_s", 10).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert fit.head == ()
    assert fit.summary.endswith("the classifier head included")


def test_weights_with_a_head_of_another_size_leave_the_head_as_it_was_drawn_and_say_so(tmp_path: Path) -> None:
    path, (network, larger) = saved(tmp_path, classes=7), networks()
    drawn = {name: value.clone() for name, value in network.state_dict().items()}
    fit = fit_weights(path, network, larger)
    load_weights(path, network, fit)
    assert fit.head == ("classifier.bias", "classifier.weight")
    assert "begins at random: classifier.bias [7] -> [10], classifier.weight [7, 64] -> [10, 64]" in fit.summary
    torch.manual_seed(7)
    theirs = build_student("cnn_s", 7).state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, drawn[name] if name in fit.head else theirs[name]), name


def test_weights_without_counters_are_taken(tmp_path: Path) -> None:
    network, larger = networks()
    counters = [name.replace(".", "__") for name in network.state_dict() if name.endswith("num_batches_tracked")]
    assert counters
    assert fit_weights(saved(tmp_path, **dict.fromkeys(counters)), network, larger).head == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier__weight": None}, "'classifier.weight' missing"),
        ({"extra__weight": torch.zeros(1)}, "'extra.weight' unexpected"),
        (
            {"features__0__weight": torch.zeros(16, 1, 3, 3)},
            r"'features.0.weight' is \[16, 1, 3, 3\], the student's \[16, 3",
        ),
    ],
)
def test_weights_of_another_student_are_refused_by_the_names_of_their_tensors(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidJob, match=message):
        fit_weights(saved(tmp_path, **changes), *networks())


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(InvalidJob, match=r"'weights.safetensors' are no safetensors file"):
        fit_weights(path, *networks())


def test_weights_of_another_kind_of_numbers_are_refused(tmp_path: Path) -> None:
    """Integers would be taken as values; a double may be beyond what a float holds."""
    network, larger = networks()
    bias = "features__1__bias"
    for dtype in (torch.int64, torch.uint8, torch.bool):
        with pytest.raises(InvalidJob, match=r"'features.1.bias' is \w+, the student's F32"):
            fit_weights(saved(tmp_path, **{bias: torch.ones(16, dtype=dtype)}), network, larger)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        path = saved(tmp_path, **{bias: torch.full((16,), 0.5, dtype=dtype)})
        fit = fit_weights(path, network, larger)
        load_weights(path, network, fit)
        assert fit.summary.endswith(f"1 of them are converted, {dtypes_of_file(path)} to F32")
        assert (network.state_dict()["features.1.bias"] == 0.5).all()
    path = saved(tmp_path, **{bias: torch.full((16,), 1e300, dtype=torch.float64)})
    with pytest.raises(InvalidJob, match=r"'features.1.bias' that are not finite as torch.float32"):
        load_weights(path, network, fit_weights(path, network, larger))
    path = saved(tmp_path, features__1__running_var=torch.full((16,), -1.0))
    with pytest.raises(InvalidJob, match=r"values below 0 in 'features.1.running_var', which is a variance"):
        load_weights(path, network, fit_weights(path, network, larger))
