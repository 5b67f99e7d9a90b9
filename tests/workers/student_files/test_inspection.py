"""Uploaded weights: their description, the values that are refused, and the students that they fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.errors import InvalidJob, InvalidStudentFile
from workers.student_files import inspection_child
from workers.student_files.fit import check_fit, state_shapes
from workers.student_files.inspection import inspect_weights
from workers.students.build import build_student

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def saved(path: Path, name: str = "cnn_s", classes: int = 10, channels: int = 3) -> Path:
    save_file(build_student(name, classes, channels).state_dict(), path)
    return path


def test_weights_are_described_by_a_confined_process(tmp_path: Path) -> None:
    path = saved(tmp_path / "w")
    found = inspect_weights(path, 60)
    state = build_student("cnn_s", 10).state_dict()
    assert found.tensors == len(state)
    assert found.values == sum(x.numel() for x in state.values())
    assert found.dtypes == ["F32", "I64"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidStudentFile, match="cut off or damaged"):
        inspect_weights(path, 60)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_wherever_they_lie(
    dtype: torch.dtype, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection_child, "_VALUES_AT_ONCE", 4)
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    tensors = {"a": torch.full((3, 3), -largest, dtype=dtype), "b": torch.full((5,), -1.5, dtype=dtype)}
    save_file(tensors, tmp_path / "w")
    assert "weights" in dict(inspection_child.answer(str(tmp_path / "w")))  # type: ignore[arg-type]
    tensors["a"][2, 2] = value
    save_file(tensors, tmp_path / "w")
    answer = inspection_child.answer(str(tmp_path / "w"))
    assert "tensor 'a' has values that are not finite" in str(answer)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a", torch.tensor(1e39, dtype=torch.float64), "not finite in float32, which students are trained in"),
        ("n.running_var", torch.tensor([1.0, -1e-30]), "'n.running_var' has values below 0, and is a variance"),
        ("n.running_var", torch.tensor([1.0, -0.0]), ""),
        ("empty", torch.zeros(0), ""),
        ("scalar", torch.tensor(-2.0), ""),
    ],
)
def test_weights_that_no_student_can_have_are_refused(
    name: str, values: torch.Tensor, message: str, tmp_path: Path
) -> None:
    save_file({name: values}, tmp_path / "w")
    assert message in str(dict(inspection_child.answer(str(tmp_path / "w"))).get("error", ""))  # type: ignore[arg-type]


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_with_the_way_out(zipped: bool, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InvalidStudentFile, match=r"a pickle runs code when it is opened.*save_file\(state_dict"):
        inspect_weights(tmp_path / "w", 60)


def test_weights_are_compared_with_a_student_that_another_process_builds(tmp_path: Path) -> None:
    """Of pictures with one channel or with three, for nothing but a decoder knows which it will be."""
    path = saved(tmp_path / "gray", classes=7, channels=1)
    fit = check_fit(path, "cnn_s", 10, 8, timeout_s=60)
    assert "classifier.weight [7, 64] -> [10, 64]" in fit.summary
    assert check_fit(saved(tmp_path / "colour"), "cnn_s", 10, 8, timeout_s=60).head == ()
    own = {name: tuple(x.shape) for name, x in build_student("cnn_s", 10).state_dict().items()}
    shapes = state_shapes("cnn_s", 10, 8, timeout_s=60)[0]
    assert not isinstance(shapes, str)
    assert shapes[0].items() <= own.items()
    with pytest.raises(InvalidJob, match=r"missing; .* unexpected"):
        check_fit(saved(tmp_path / "other", "resnet8"), "cnn_s", 10, 8, timeout_s=60)
