"""Uploaded programs: the network that comes of one is the one that was exported, and what is refused, by name."""

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor, nn

from tests.support.exported_programs import Tiny, exported
from workers.errors import InvalidJob, InvalidStudentFile
from workers.student_files import program_child
from workers.student_files.conversion_memory import check_memory
from workers.student_files.programs import convert_program, may_be_program, try_program
from workers.students import program_trial
from workers.students.build import build_student
from workers.students.program import Node, Program, read_program
from workers.students.program_network import ProgramNetwork, build_program

BYTES_MAX = 1 << 24
NAME = "uploaded/stf_01m7yt5knp2b4d7r46qbv3d8r3"


def converted(path: Path) -> Path:
    """The archive in its safe form, made in this process."""
    path.write_bytes(program_child.safe_form(*program_child.read_archive(path, BYTES_MAX)))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidStudentFile) as raised:
        program_child.read_archive(path, BYTES_MAX)
    return str(raised.value)


def changed(path: Path, change: Callable[[dict[str, Any]], object], member: str = "models/model.json") -> Path:
    """The archive with other JSON in a member."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        for info in old.infolist():
            text = old.read(info)
            if info.filename.endswith(member):
                document = json.loads(text)
                change(document)
                text = json.dumps(document).encode()
            new.writestr(info, text)
    path.write_bytes(content.getvalue())
    return path


def nodes_of(document: dict[str, Any], target: str) -> list[dict[str, Any]]:
    found = [node for node in document["graph_module"]["graph"]["nodes"] if target in node["target"]]
    assert found, target
    return found


def set_argument(node: dict[str, Any], name: str, value: object) -> None:
    next(each for each in node["inputs"] if each["name"] == name)["arg"] = value


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
        (_Fixed(lambda z: z * torch.bernoulli(torch.full_like(z, 0.5))), "is not among those|draws random numbers"),
        (_Fixed(lambda z: z + torch.rand_like(z)), "'torch.ops.aten.rand_like.default' draws random numbers"),
        (_Fixed(lambda z: torch.cumsum(z, 1)), "'torch.ops.aten.cumsum.default' is not among those"),
        (_TwoOutputs(), "outputs user_output, user_output: a student has one"),
        (_Counts(), "writes to 'b_scale' by 'torch.ops.aten.add_.Tensor'"),
        (_frozen(), "parameter 'head.weight' is frozen"),
        (_with_nan(), "tensor 'head.weight' has values that are not finite"),
        (Tiny().double(), "no float32|is F64|dtype 8"),
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
        (lambda d: nodes_of(d, "conv2d")[0].update(target="os.system"), "operator 'os.system' is not among those"),
        (lambda d: nodes_of(d, "conv2d")[0].update(target="torch.ops.aten.from_file.default"), "is not among those"),
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
        ({"dtype": 8}, "torch's dtype 8: export the program in float32"),
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
        (_LeavesOneOut(), "do not depend on 1 of the program's parameters (unused)"),
    ],
)
def test_trial_refuses_programs_that_cannot_be_trained_or_evaluated(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    assert message in program_trial.mistake(str(converted(exported(network, tmp_path / "p"))))[0]


# ------------------------------------------------------------------------------------------- sizes, memory and names


class _Attention(nn.Module):
    """Attention as torch has it, which views the batch times its heads, and in-place operators after views."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.drop, self.head = nn.Dropout(0.1, inplace=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = F.relu_(self.layer(self.embed(x).flatten(2).transpose(1, 2)))
        B, N, K = z.shape
        z = self.drop(z.reshape(B * N, K).view(B, N, K))
        logits: Tensor = self.head(z.mean(1))
        return logits


def _open(network: nn.Module, path: Path, side: int = 8) -> Path:
    """Archive of a network for pictures of any size."""
    auto = torch.export.Dim.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch"), 2: auto, 3: auto},)
        program = torch.export.export(network, (torch.zeros(2, 1, side, side),), dynamic_shapes=shapes)
        torch.export.save(program, path)
    return path


@pytest.mark.parametrize("is_open", [False, True])
def test_program_with_sizes_that_are_multiples_of_the_batch_is_taken(is_open: bool, tmp_path: Path) -> None:
    made = _open(_Attention(), tmp_path / "p") if is_open else exported(_Attention(), tmp_path / "p")
    assert program_trial.mistake(str(converted(made)), [64, 1, 8, 8])[0] == ""


class _ReadsTheBatch(nn.Module):
    """Computes with the batch's size, which is 0 for batches of 1 to 3."""

    def __init__(self, squarings: int) -> None:
        super().__init__()
        self.head, self.squarings = nn.Linear(64, 10), squarings

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        r = (B - 1) * (B - 2) * (B - 3)
        for _ in range(self.squarings):
            r = r * r
        logits: Tensor = self.head(x.flatten(1)) + r
        return logits


def test_program_that_computes_with_the_batch_is_refused(tmp_path: Path) -> None:
    path = exported(_ReadsTheBatch(2), tmp_path / "p")
    assert "computes with the number of pictures in a batch by '_operator." in refusal(path)


def _program(*nodes: Node, output: str = "logits") -> Program:
    """Program whose logits are the pictures, [B, 1, 1, C] made flat, after some other nodes."""
    flat = Node(op="torch.ops.aten.flatten.using_ints", args=({"ref": "x"}, 1), outputs=("logits",))
    names: dict[str, dict[str, str]] = {"parameters": {}, "buffers": {}, "constants": {}}
    return Program(input="x", shape=(1, 1, 4), classes=4, nodes=(*nodes, flat), output=output, **names)


def _size(op: str, *args: JsonValue, name: str) -> Node:
    return Node(op=op, args=args, outputs=(name,))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                _size("torch.ops.aten.sym_size.int", {"ref": "x"}, 3, name="s0"),
                *(_size("_operator.mul", {"ref": f"s{i}"}, {"ref": f"s{i}"}, name=f"s{i + 1}") for i in range(30)),
            ],
            "computes a size beyond 2147483648 (mul of 65536 and 65536)",
        ),
        ([_size("_operator.mul", [1, 2], 1 << 30, name="s")], "computes a size of '[1, 2]', which is no integer"),
        ([_size("_operator.floordiv", 3, 0, name="s")], "divides the size 3 by zero"),
        (
            [Node(op="torch.ops.aten.repeat.default", args=({"ref": "x"}, [1, 1 << 19, 1, 1]), outputs=("wide",))],
            "'wide' has the shape [2, 524288, 1, 4]: for each picture at most 256 times",
        ),
    ],
)
def test_interpreter_refuses_sizes_that_no_network_needs(nodes: list[Node], message: str) -> None:
    """At once, in the process that trains, whatever the file says."""
    network = ProgramNetwork(_program(*nodes), lambda name: torch.zeros(1))
    with pytest.raises(InvalidJob) as raised:
        network(torch.zeros(2, 1, 1, 4))
    assert message in str(raised.value)


def test_interpreter_checks_shapes_of_a_batch_without_memory_for_it() -> None:
    repeated = Node(op="torch.ops.aten.repeat.default", args=({"ref": "x"}, [{"ref": "n"}, 1, 1, 1]), outputs=("y",))
    part = [
        _size("torch.ops.aten.sym_size.int", {"ref": "x"}, 0, name="b"),
        _size("_operator.floordiv", {"ref": "b"}, 64, name="n"),
    ]
    program = _program(*part, repeated)
    network = ProgramNetwork(program, lambda name: torch.zeros(1))
    network(torch.zeros(3, 1, 1, 4))
    network.to("meta")(torch.empty((64, 1, 1, 4), device="meta"))
    with pytest.raises(InvalidJob, match="'y' has the shape"):
        network(torch.empty((64 << 20, 1, 1, 4), device="meta"))


class _Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x.flatten(1))
        logits: Tensor = y + y.repeat(1, 1 << 27).mean()
        return logits


def test_trial_touches_no_more_memory_than_it_is_allowed(tmp_path: Path) -> None:
    """The child's own limit: ten GB for two pictures."""
    path = converted(exported(_Repeats(), tmp_path / "p"))
    with pytest.raises(InvalidStudentFile, match="can't allocate memory"):
        try_program(path, timeout_s=120)


class _Inner(nn.Module):
    """Network of a function of its features and of a layer."""

    def __init__(self, function: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.function = nn.Linear(64, 16), nn.Linear(16, 10), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x.flatten(1)), self.head)


def _read_beside_dropout(y: Tensor, head: nn.Module) -> Tensor:
    v = y.view(-1, 16)
    F.dropout(y, 0.5, inplace=True)
    logits: Tensor = head(v)
    return logits


def _read_beside_relu(y: Tensor, head: nn.Module) -> Tensor:
    F.relu_(y.view(-1, 4, 4))
    logits: Tensor = head(y)
    return logits


def _in_turn(y: Tensor, head: nn.Module) -> Tensor:
    left, right = y.view(-1, 2, 8).add_(1.0).relu_().unbind(1)
    logits: Tensor = head(F.dropout(torch.cat((left, right), 1), 0.5, inplace=True))
    return logits


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_read_beside_dropout, "by 'torch.ops.aten.dropout_.default', and reads that memory as 'view'"),
        (_read_beside_relu, "by 'torch.ops.aten.relu_.default', and reads that memory as 'linear'"),
    ],
)
def test_program_that_reads_what_it_has_written_to_under_another_name_is_refused(
    function: Callable[[Tensor, nn.Module], Tensor], message: str, tmp_path: Path
) -> None:
    assert message in refusal(exported(_Inner(function), tmp_path / "p"))


def test_program_that_writes_in_place_to_what_nothing_else_reads_is_taken(tmp_path: Path) -> None:
    assert program_trial.mistake(str(converted(exported(_Inner(_in_turn), tmp_path / "p")))) == ("", 1210)


def test_detach_in_place_is_one_that_writes() -> None:
    """Of what a view gives: the gradient of the tensor itself would be lost, or not, as the view is a copy or none."""
    view = Node(op="torch.ops.aten.view.default", args=({"ref": "made"}, [-1]), outputs=("view",))
    detached = Node(op="torch.ops.aten.detach_.default", args=({"ref": "view"},), outputs=("detached",))
    made, last = (
        Node(op="torch.ops.aten.relu.default", args=({"ref": source},), outputs=(name,))
        for source, name in (("x", "made"), ("made", "last"))
    )
    with pytest.raises(InvalidStudentFile, match=r"writes to 'view' by 'torch.ops.aten.detach_.default', and reads"):
        check_memory([made, view, detached, last], "last", {"x"}, set())
    check_memory([made, view, detached], "detached", {"x"}, set())
    with pytest.raises(InvalidStudentFile, match=r"writes to 'x' by 'torch.ops.aten.detach_.default': a student"):
        check_memory([detached.model_copy(update={"args": ({"ref": "x"},)})], "detached", {"x"}, set())


def test_program_is_refused_where_nothing_reads_what_a_node_gives(tmp_path: Path) -> None:
    def wasteful(document: dict[str, Any]) -> None:
        nodes = document["graph_module"]["graph"]["nodes"]
        [linear] = nodes_of(document, "linear")
        extra = copy.deepcopy(linear)
        extra["outputs"][0]["as_tensor"]["name"] = "waste"
        nodes.append(extra)

    path = changed(exported(Tiny(), tmp_path / "p"), wasteful)
    assert "nothing reads 'waste', which 'torch.ops.aten.linear.default' gives" in refusal(path)


class _Pooled(nn.Module):
    """For pictures of 100 pixels on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 100, stride=50), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def test_program_for_a_range_of_sizes_is_tried_with_several(tmp_path: Path) -> None:
    path = converted(_open(_Pooled(), tmp_path / "p", side=224))
    assert program_trial.mistake(str(path)) == ("", 40_054)
    small, _ = program_trial.mistake(str(path), [64, 1, 32, 32])
    assert small.startswith("the program fails on pictures of 32 x 32 in batches of 1 to 3, or of 64: ")


class _NormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.norm(x) + 1).flatten(1))
        return logits


def test_batch_normalisation_that_is_used_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    assert "batch normalisation 'norm' is used twice" in refusal(exported(_NormTwice(), tmp_path / "p"))


@pytest.mark.parametrize("name", ["_dead", "_dead.x", "_calls.x", "_program", "_modules.x", "forward"])
def test_trial_refuses_a_tensor_that_is_called_as_a_part_of_the_interpreter(name: str, tmp_path: Path) -> None:
    path = converted(exported(Tiny(), tmp_path / "p"))
    renamed = path.read_bytes()[8:]
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(renamed[:length])
    header[name] = header.pop("head.weight")
    header["__metadata__"]["retort_program"] = header["__metadata__"]["retort_program"].replace("head.weight", name)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + renamed[length:])
    assert "the program of student 'uploaded' cannot be built" in program_trial.mistake(str(path))[0]


def test_private_names_of_an_honest_network_are_taken(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten())
    network.add_module("_head", nn.Linear(64, 10))
    assert program_trial.mistake(str(converted(exported(network, tmp_path / "p")))) == ("", 650)


def test_number_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    for target, name in (("dropout", "p"), ("batch_norm", "eps")):
        path = changed(
            exported(Tiny(), tmp_path / target),
            lambda document, target=target, name=name: set_argument(  # type: ignore[misc]
                nodes_of(document, target)[0], name, {"as_int": 10**400}
            ),
        )
        assert "a rate, momentum or eps of the program is no number" in refusal(path)


def test_program_whose_header_would_not_be_read_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_child, "HEADER_BYTES_MAX", 1000)
    with pytest.raises(InvalidStudentFile, match=r"graph and names have \d+ bytes, at most 1000 are taken"):
        converted(exported(Tiny(), tmp_path / "p"))
    (tmp_path / "q").write_bytes(b"no header")
    assert "no safetensors file" in program_trial.mistake(str(tmp_path / "q"))[0]
