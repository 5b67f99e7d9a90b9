"""Uploaded programs that compute with sizes, write in place, or have odd names: what is taken, and what is refused."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor, nn

from tests.support.exported_programs import (
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
from workers.student_files.conversion_memory import check_memory
from workers.student_files.programs import try_program
from workers.students import program_trial
from workers.students.program import Node, Program
from workers.students.program_network import ProgramNetwork


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
        ([_size("_operator.mul", [1, 2], 1 << 10, name="s")], "computes a size of '[1, 2]', which is no integer"),
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
    size = _size("torch.ops.aten.sym_size.int", {"ref": "x"}, 0, name="b")
    part = _size("_operator.floordiv", {"ref": "b"}, 64, name="n")
    network = ProgramNetwork(_program(size, part, repeated), lambda name: torch.zeros(1))
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


def _by_einsum(y: Tensor, head: nn.Module) -> Tensor:
    torch.einsum("bk->bk", y).add_(1.0)
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
        (_by_einsum, "by 'torch.ops.aten.add_.Tensor', and reads that memory as"),
        (_read_beside_relu, "by 'torch.ops.aten.relu_.default', and reads that memory as 'linear'"),
    ],
)
def test_program_that_reads_what_it_has_written_to_under_another_name_is_refused(
    function: Callable[[Tensor, nn.Module], Tensor], message: str, tmp_path: Path
) -> None:
    assert message in refusal(exported(_Inner(function), tmp_path / "p"))


def _of_pictures_by_name(document: dict[str, Any]) -> None:
    """Let the operator in place write to the pictures, which it is given by a name."""
    [node] = nodes_of(document, "relu_.default")
    node["inputs"][0].update(kind=2, arg={"as_tensor": {"name": "x"}})


def _operands_by_name(document: dict[str, Any]) -> None:
    for given in nodes_of(document, "einsum.default")[0]["inputs"]:
        given["kind"] = 2


@pytest.mark.parametrize(
    ("function", "change", "operator"),
    [
        (lambda y, head: head(F.relu_(y * 1.0)), _of_pictures_by_name, "relu_.default"),
        (_by_einsum, _operands_by_name, "einsum.default"),
    ],
)
def test_program_that_gives_by_name_what_an_operator_writes_to_or_views_is_refused(
    function: Callable[[Tensor, nn.Module], Tensor],
    change: Callable[[dict[str, Any]], None],
    operator: str,
    tmp_path: Path,
) -> None:
    said = refusal(changed(exported(_Inner(function), tmp_path / "p"), change))
    assert f"a call of 'torch.ops.aten.{operator}' has not the tensor that it views or writes to by position" in said


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


class _NormOfBuffers(nn.Module):
    """Batch normalisation whose weight and bias are no parameters."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)
        for name in ("weight", "bias"):
            value = getattr(self.norm, name).detach().clone() + 1
            delattr(self.norm, name)
            self.norm.register_buffer(name, value, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x).flatten(1))
        return logits


def test_batch_normalisation_whose_weights_are_no_parameters_is_refused_by_its_name(tmp_path: Path) -> None:
    """As a student they would be trained, or left out."""
    said = refusal(exported(_NormOfBuffers(persistent=True), tmp_path / "p"))
    assert "batch normalisation 'norm' has buffers as weight or bias (norm.weight, norm.bias)" in said
    said = refusal(exported(_NormOfBuffers(persistent=False), tmp_path / "q"))
    assert "no torch.nn.BatchNorm1d or BatchNorm2d" in said


def test_batch_normalisation_whose_statistics_are_parameters_is_refused(tmp_path: Path) -> None:
    def as_parameters(document: dict[str, Any]) -> None:
        specs = document["graph_module"]["signature"]["input_specs"]
        for spec in [each for each in specs if "running_var" in str(each)]:
            buffer = spec.pop("buffer")
            spec["parameter"] = {"arg": buffer["arg"], "parameter_name": buffer["buffer_name"]}

    said = refusal(changed(exported(Tiny(), tmp_path / "p"), as_parameters))
    assert "no torch.nn.BatchNorm1d or BatchNorm2d with running statistics" in said


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
