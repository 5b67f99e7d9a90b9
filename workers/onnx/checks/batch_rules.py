"""Operators that can make a picture's outputs depend on the other pictures of its batch, or on chance, to be named.

No refusal is made of them: many a graph has one and treats each picture alone all the same (a sum over axis 0 of a
constant, say). Where the outputs were measured to depend on the batch (``workers.onnx.sessions.smoke_test``,
``workers.teacher.preflight``), the message says what is to be seen in the graph. What it does not see: a batch that is
moved to another axis first, and negative axes of values whose rank the file does not declare.

Sources: the operator pages of onnx 1.23 for axes and their defaults. Light: the API process loads this file.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx
from onnx import NodeProto, numpy_helper

from workers.onnx.checks.parsing import short
from workers.onnx.checks.rules import STANDARD
from workers.onnx.checks.scopes import GraphScope, is_external, scopes_of
from workers.texts import some_of

NO_HINT = (
    "The graph mixes the pictures of a batch, or draws at random, in a way that its operators do not show: export it "
    "in eval mode, and compute each picture from itself alone"
)

_SHOWN = 3  # nodes of one kind in a message
_SCALING = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
# Operators with one axis, and the one that they take by default.
_AXIS = {
    "ArgMax": 0,
    "ArgMin": 0,
    "Hardmax": -1,
    "LayerNormalization": -1,
    "LogSoftmax": -1,
    "LpNormalization": -1,
    "Softmax": -1,
    "TopK": -1,
}


class _BatchRule(NamedTuple):
    """A reason to depend on the batch: what the operators do, to stand behind their names, and what to do about it."""

    effect: str
    advice: str


_BY_SCALE = _BatchRule(
    "its scale is taken over the batch",
    "Give the model before dynamic quantisation, or quantise it with fixed scales "
    "(onnxruntime.quantization.quantize_static)",
)
_BY_CHANCE = _BatchRule("drawn at random on every run", "Export the model in eval mode and without random operators")
_BY_MODE = _BatchRule(
    "training mode is switched by a value that the graph computes",
    "Call model.eval() before torch.onnx.export, and make training a constant",
)
_BY_AXIS = _BatchRule("over axis 0, the batch", "Use the axes of one picture instead, 1 and above")


def batch_hint(model: onnx.ModelProto) -> str:
    """Sentences that name such operators of a graph and say what to do about them; empty if none is to be seen."""
    found: dict[_BatchRule, list[str]] = {}
    ranks = _ranks(model)
    for scope in scopes_of(model):
        for node in scope.nodes:
            kind = _kind(node, scope, ranks)
            if kind is not None:
                found.setdefault(kind, []).append(f"{node.op_type} {short(node.name)!r}" if node.name else node.op_type)
    return ". ".join(
        f"The graph has {some_of(names, _SHOWN)}: {kind.effect}. {kind.advice}" for kind, names in sorted(found.items())
    )


def scales_over_batch(model: onnx.ModelProto) -> bool:
    """Whether an operator takes its scale over all pictures of a batch, as dynamic quantisation does."""
    return any(node.op_type in _SCALING for scope in scopes_of(model) for node in scope.nodes)


def _kind(node: NodeProto, scope: GraphScope, ranks: Mapping[str, int]) -> _BatchRule | None:
    if node.op_type in _SCALING:
        return _BY_SCALE
    if node.domain not in STANDARD:
        return None
    if node.op_type in _RANDOM:
        return _BY_CHANCE
    # A constant that is true was refused before (``checks.rules``).
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] and node.input[2] not in scope.constants:
        return _BY_MODE
    rank = _rank(node, ranks)
    if rank in (0, 1):  # sizes: no batch of pictures
        return None
    return _BY_AXIS if any(axis == 0 or axis + (rank or 0) == 0 for axis in _axes(node, scope)) else None


def _rank(node: NodeProto, ranks: Mapping[str, int]) -> int | None:
    """Rank of what a node is given; as high as of what it gives, unless it says otherwise."""
    keeps = not any(attribute.name == "keepdims" and not attribute.i for attribute in node.attribute)
    names = [*node.input[:1], *(node.output[:1] if keeps else ())]
    return next((ranks[name] for name in names if name in ranks), None)


def _axes(node: NodeProto, scope: GraphScope) -> Iterator[int]:
    """The axes that an operator takes together, as the file has them: negative ones count from the end."""
    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type in _AXIS:
        yield given["axis"].i if "axis" in given else _AXIS[node.op_type]
    elif node.op_type == "CumSum":
        yield from _constant(node, scope)
    elif node.op_type == "MeanVarianceNormalization":
        yield from given["axes"].ints if "axes" in given else (0, 2, 3)
    elif node.op_type.startswith("Reduce"):
        if "axes" in given:
            yield from given["axes"].ints
        elif len(node.input) > 1 and node.input[1]:
            yield from _constant(node, scope)
        elif not ("noop_with_empty_axes" in given and given["noop_with_empty_axes"].i):
            yield 0  # all of them


def _constant(node: NodeProto, scope: GraphScope) -> Iterator[int]:
    """The values of a node's second input, if it is a constant and short enough to be axes."""
    tensor = scope.constants.get(node.input[1]) if len(node.input) > 1 else None
    if tensor is None or tensor.data_type not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        return
    # What lies outside of the graph is too long, and would be looked for in a file.
    if len(tensor.dims) > 1 or tensor.ByteSize() > 1024 or is_external(tensor):
        return
    try:
        values = numpy_helper.to_array(tensor)
    except ValueError:  # its data do not fill its shape: the checker reports it
        return
    yield from (int(value) for value in values.reshape(-1))


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """The ranks of the main graph's values, as far as the file declares them."""
    graph = model.graph
    return {
        info.name: len(info.type.tensor_type.shape.dim)
        for infos in (graph.input, graph.value_info, graph.output)
        for info in infos
        if info.type.tensor_type.HasField("shape")
    }
