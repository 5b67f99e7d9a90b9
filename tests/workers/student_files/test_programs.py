"""Uploaded programs: the network that comes of one is the one that was exported, and what is refused, by name."""

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.exported_programs import (
    BYTES_MAX,
    Tiny,
    changed,
    converted,
    exported,
    nodes_of,
    refusal,
    set_argument,
)
from workers.errors import InvalidJob, InvalidStudentFile
from workers.student_files import program_child
from workers.student_files.programs import convert_program, may_be_program, try_program
from workers.students import program_trial
from workers.students.build import build_student
from workers.students.program import read_program
from workers.students.program_network import build_program

NAME = "uploaded/stf_01m7yt5knp2b4d7r46qbv3d8r3"


# ------------------------------------------------------------------------------------------------------ what is taken


@pytest.mark.parametrize("name", ["tiny", "resnet8x4", "shufflenet_v1"])
def test_program_computes_what_the_exported_network_does_in_training_and_in_evaluation(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    network = Tiny(3) if name == "tiny" else build_student(name, 10)
    path = converted(exported(network.train(), tmp_path / "p", channels=3, side=32))
    made = build_student(NAME, 10, 3, 32, program=path)
    assert made.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(5, 3, 32, 32).to(memory_format=torch.channels_last)
    for training in (True, False, True):
        outputs = []
        for each in (network, made):
            torch.manual_seed(1)
            outputs.append(each.train(training)(x))
            outputs[-1].square().mean().backward()
        assert torch.allclose(*outputs, atol=1e-6), training
    theirs, ours = dict(network.named_parameters()), dict(made.named_parameters())
    assert theirs.keys() == ours.keys()
    for key, parameter in theirs.items():
        assert torch.allclose(parameter.grad, ours[key].grad, atol=1e-5), key  # type: ignore[arg-type]
    for key, value in network.state_dict().items():
        assert torch.allclose(value, made.state_dict()[key], atol=1e-6), key


def test_program_is_converted_and_tried_in_confined_processes(tmp_path: Path) -> None:
    path = exported(Tiny(), tmp_path / "p")
    assert may_be_program(path)
    file, weights, program = convert_program(path, bytes_max=BYTES_MAX, timeout_s=60, check_room=lambda _: None)
    assert (file.size_bytes, program.shape, program.classes) == (path.stat().st_size, (1, 8, 8), 10)
    assert weights.dtypes == ["F32", "I64"]
    assert not may_be_program(path)
    try_program(path, timeout_s=120)
    again = exported(Tiny(), tmp_path / "q")
    with pytest.raises(InvalidStudentFile, match=r"has more than the \d+ bytes allowed|are left of what is taken"):
        convert_program(again, bytes_max=100, timeout_s=60, check_room=lambda _: None)


def test_pickles_of_an_archive_are_not_opened(tmp_path: Path) -> None:
    """Its example inputs are one, which torch.export.load would open."""
    path = exported(Tiny(), tmp_path / "p")
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        for info in old.infolist():
            is_pickle = info.filename.endswith("sample_inputs/model.pt")
            new.writestr(info, b"cos\nsystem\n(S'false'\ntR." if is_pickle else old.read(info))
    path.write_bytes(content.getvalue())
    assert read_program(converted(path)).classes == 10
    pickled = changed(
        exported(Tiny(), tmp_path / "q"),
        lambda document: document["config"]["head.weight"].update(use_pickle=True),
        "model_weights_config.json",
    )
    assert "'head.weight' is pickled, and no pickle is opened here" in refusal(pickled)


def test_program_keeps_its_classes_and_size_of_pictures(tmp_path: Path) -> None:
    path = converted(exported(Tiny(), tmp_path / "p"))
    for asked, message in (
        ((7, 1, 8), "gives 10 logits, and there are 7 classes"),
        ((10, 3, 8), "for pictures of 1 channels, and these have 3"),
        ((10, 1, 32), "for pictures of 8 x 8, and these have a side of 32"),
    ):
        with pytest.raises(InvalidJob, match=message):
            build_program(NAME, path, asked[0], in_channels=asked[1], image_side=asked[2])


# ---------------------------------------------------------------------------------------------------- what is refused


class _Fixed(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.function = nn.Linear(64, 10), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.head(x.flatten(1)))


class _TwoInputs(Tiny):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


class _TwoOutputs(Tiny):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class _Counts(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        self.scale.add_(1.0)
        return super().forward(x)


def _frozen() -> nn.Module:
    network = Tiny()
    network.head.weight.requires_grad_(False)
    return network


def _with_nan() -> nn.Module:
    network = Tiny()
    with torch.no_grad():
        network.head.weight[0, 0] = float("nan")
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Tiny().eval(), "batch normalisation 'body.1' was exported for evaluation.*call model.train"),
        (_Fixed(lambda z: F.dropout(z, 0.5, training=False)).eval(), "dropout of rate 0.5 was exported for evaluation"),
        (
            _Fixed(lambda z: torch.cumprod(torch.erfinv(z), 1)),
            r"not among those .* may have: 'torch.ops.aten.erfinv.default', 'torch.ops.aten.cumprod.default'. Build",
        ),
        (_TwoOutputs(), "outputs user_output, user_output: a student has one"),
        (_Counts(), "writes to 'b_scale' by 'torch.ops.aten.add_.Tensor'"),
        (_frozen(), "parameter 'head.weight' is frozen"),
        (_with_nan(), "tensor 'head.weight' has values that are not finite"),
        (Tiny().double(), "no float32|is F64|is float64"),
    ],
)
def test_program_that_would_not_be_trained_as_it_was_meant_is_refused(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if next(network.parameters()).dtype == torch.float64:
            program = torch.export.export(network, (torch.zeros(2, 1, 8, 8, dtype=torch.float64),))
            torch.export.save(program, tmp_path / "p")
        else:
            exported(network, tmp_path / "p")
    with pytest.raises(InvalidStudentFile, match=message):
        program_child.read_archive(tmp_path / "p", BYTES_MAX)


def test_program_with_a_fixed_batch_or_two_inputs_is_refused_with_the_way_to_export_it(tmp_path: Path) -> None:
    fixed = refusal(exported(Tiny(), tmp_path / "p", is_open=False))
    assert fixed.startswith("the program is for batches of 2 pictures and no others")
    assert 'dynamic_shapes=({0: torch.export.Dim("batch")},)' in fixed
    assert "has 2 inputs: a student takes one" in refusal(exported(_TwoInputs(), tmp_path / "q", inputs=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["schema_version"].update(major=9), "version 9 of torch.export's schema, and 8 is read"),
        (lambda d: d.pop("graph_module"), "not of the form that torch.export writes"),
        (
            lambda d: nodes_of(d, "conv2d")[0].update(target="os.system"),
            "not among those that an uploaded student may have: 'os.system'",
        ),
        (lambda d: nodes_of(d, "conv2d")[0].update(target="torch.ops.aten.from_file.default"), "not among those"),
        (lambda d: set_argument(nodes_of(d, "linear")[0], "bias", {"as_tensor": {"name": "later"}}), "nothing before"),
        (lambda d: set_argument(nodes_of(d, "conv2d")[0], "padding", {"as_ints": [1 << 40, 1]}), "is not taken"),
        (lambda d: set_argument(nodes_of(d, "conv2d")[0], "padding", {"as_graph": {}}), "'as_graph', which is not"),
        (lambda d: nodes_of(d, "linear")[0]["outputs"][0]["as_tensor"].update(name="x_bkhw"), "no name of a new value"),
        (
            lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name="../x"),
            "'../x' is no name of a tensor",
        ),
    ],
)
def test_archive_whose_graph_was_tampered_with_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    assert message in refusal(changed(exported(Tiny(), tmp_path / "p"), change))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"sizes": [{"as_int": 1 << 20}, {"as_int": 8}]}, "lies beyond its 320 bytes"),
        ({"strides": [{"as_int": 1 << 30}, {"as_int": 1}]}, "lies beyond its 320 bytes"),
        ({"storage_offset": {"as_int": 1}}, "lies beyond its 320 bytes"),
        ({"storage_offset": {"as_int": -1}}, "list of weights is wrong"),
        ({"dtype": 8}, "is float64: a student is trained in float32"),
    ],
)
def test_archive_whose_tensors_lie_elsewhere_is_refused(meta: dict[str, object], message: str, tmp_path: Path) -> None:
    path = changed(
        exported(Tiny(), tmp_path / "p"),
        lambda document: document["config"]["head.weight"]["tensor_meta"].update(meta),
        "model_weights_config.json",
    )
    assert message in refusal(path)


def test_zip_that_is_no_program_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "p")
    assert "holds 0 programs of torch.export" in refusal(tmp_path / "p")
    (tmp_path / "q").write_bytes(b"PK\x03\x04 and nothing more")
    assert "the archive cannot be read" in refusal(tmp_path / "q")
    content = io.BytesIO()
    with (
        zipfile.ZipFile(exported(Tiny(), tmp_path / "r")) as old,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    (tmp_path / "s").write_bytes(content.getvalue())
    assert "is compressed or encrypted" in refusal(tmp_path / "s")


class _MixesPictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(x.flatten(1))
        return z - z.mean(0, keepdim=True) / 2


class _AddsUp(_MixesPictures):
    """The first picture of a batch does not see the others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.head(x.flatten(1)), 0)


class _Counted(_MixesPictures):
    """Grows with the number of pictures beyond some, by a tensor that is made of it."""

    def __init__(self, beyond: int) -> None:
        super().__init__()
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        rows = x.new_ones((x.shape[0], 1))
        logits: Tensor = self.head(x.flatten(1)) * (1 + (rows.sum() - self.beyond).clamp(min=0))
        return logits


class _CountedLate(_Counted):
    """The last pictures alone."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.new_ones((x.shape[0], 1)).cumsum(0)
        logits: Tensor = self.head(x.flatten(1)) * (1 + (rows - self.beyond).clamp(min=0))
        return logits


class _Overflows(_MixesPictures):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(x.flatten(1))
        return z * 1e38 * 1e38


class _LeavesOneOut(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.unused.detach().sum()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (_MixesPictures(), "logits of a picture depend on the other pictures"),
        (_AddsUp(), "logits of a picture depend on the other pictures"),
        (_Counted(63), "logits of a picture depend on the other pictures"),
        (_CountedLate(60), "logits of a picture depend on the other pictures"),
        (_Overflows(), "in training the program's logits are not finite"),
        (_LeavesOneOut(), "do not depend on 1 of the program's parameters (unused)"),
    ],
)
def test_trial_refuses_programs_that_cannot_be_trained_or_evaluated(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    assert message in program_trial.mistake(str(converted(exported(network, tmp_path / "p"))))[0]
