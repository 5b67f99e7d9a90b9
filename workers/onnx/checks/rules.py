"""Rules that an ONNX file must keep before anything runs it; each refusal is one ``InvalidTeacher`` sentence.

Structure only: it parses, it is self-contained, it uses known operators, it was exported for inference. What the
graph takes and gives is ``workers.onnx.checks.check``'s concern. Every rule walks the main graph, the functions and all
subgraphs, for external data or a custom operator hides in any of them.

Sources: onnx.proto3 of onnx 1.23 for the fields; the operator pages of BatchNormalization and Dropout for what
training mode looks like in each opset. Only onnx and the standard library are imported: the API process loads this.
"""

import math
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from workers.errors import InvalidTeacher
from workers.onnx.checks.operators import RUNTIME_DOMAIN, RUNTIME_OPERATORS
from workers.onnx.checks.parsing import EXPORT_HINT, listed, refusing, short
from workers.onnx.checks.scopes import GraphScope, attribute_graphs, is_external, scopes_of, subgraphs

# com.microsoft holds ONNX Runtime's own operators, of which some are allowed (``checks.operators``).
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
STANDARD = ("", "ai.onnx")  # two spellings of one domain
OPSET_MIN = 7  # ONNX Runtime promises opset 7 and later
TENSORS_MAX = 500_000  # each takes some hundred bytes once parsed, however empty it is
TENSOR_RANK_MAX = 32


class Facts(NamedTuple):
    """Counts of a graph.

    Attributes:
        opset: version of the standard operator set.
        nodes: operators; those in subgraphs and functions count once each.
        parameters: floating-point values in the constants.
        half_parameters: those of them that have 16 bits.
    """

    opset: int
    nodes: int
    parameters: int
    half_parameters: int


def check_graph(
    model: onnx.ModelProto, *, nodes_max: int, tensor_bytes_max: int, may_lie_outside: bool = False
) -> Facts:
    """Check every rule that is about the graph's inside.

    Args:
        model: what ``parse`` returned.
        nodes_max: most operators allowed.
        tensor_bytes_max: most bytes allowed in all constants together, as their shapes declare them.
        may_lie_outside: external data are allowed, and do not count: ``large_file.check_places`` looks at them.

    Raises:
        InvalidTeacher: custom operators, external data, too large, too old, exported in training mode.
    """
    if model.training_info:
        raise InvalidTeacher(f"the file holds a training graph beside the model. {EXPORT_HINT}")
    if len(model.graph.node) > nodes_max:  # before anything looks at each of them
        raise InvalidTeacher(f"the graph has {len(model.graph.node)} operators, at most {nodes_max} are allowed")
    scopes = list(scopes_of(model))
    nodes = sum(len(scope.nodes) for scope in scopes)
    if nodes > nodes_max:
        raise InvalidTeacher(f"the graph has {nodes} operators, at most {nodes_max} are allowed")
    _check_operators(model, scopes)
    _check_functions(model, nodes_max)
    parameters, half_parameters = _check_tensors(scopes, tensor_bytes_max, may_lie_outside=may_lie_outside)
    opset = _check_opset(model)
    _check_training_mode(scopes, opset)
    return Facts(opset, nodes, parameters, half_parameters)


def check_structure(content: bytes) -> None:
    """Run onnx's own checker: names that nothing defines, wrong attributes, a shape that its data does not have.

    Raises:
        InvalidTeacher: with the checker's sentence.
    """
    with refusing("not a valid ONNX graph"):
        onnx.checker.check_model(content)


def _check_operators(model: onnx.ModelProto, scopes: list[GraphScope]) -> None:
    # A function that the file itself defines may have any domain: its body is one of the scopes.
    own = {(function.domain, function.name) for function in model.functions}
    for function in model.functions:
        _check_attributes(function.name, function.attribute_proto)
    for node in (node for scope in scopes for node in scope.nodes):
        operator = short(f"{node.domain}::{node.op_type}" if node.domain else node.op_type)
        is_own = (node.domain, node.op_type) in own
        if node.domain not in DOMAINS and not is_own:
            raise InvalidTeacher(
                f"the graph uses the custom operator {operator}; only the operators of ONNX and ONNX Runtime are "
                f"allowed (domains {listed(DOMAINS - {''})}). Export the teacher without it"
            )
        if node.op_type == "EPContext":
            raise InvalidTeacher(
                f"the graph holds {operator}, a part compiled for one device. Give the model that it was compiled from"
            )
        # A function of that name or not: which of the two ONNX Runtime takes is its own affair.
        if node.domain == RUNTIME_DOMAIN and node.op_type not in RUNTIME_OPERATORS:
            raise InvalidTeacher(
                f"the graph uses {operator}, which is none of the operators of ONNX Runtime that classifiers need "
                f"({', '.join(sorted(RUNTIME_OPERATORS))}). Export the teacher without it, or give the model from "
                "before the optimisation that made it"
            )
        if is_own:
            _check_attributes(node.op_type, node.attribute)


def _check_attributes(function: str, attributes: Iterable[AttributeProto]) -> None:
    """Refuse graphs among what a function is given, or has by default: its body can use each any number of times."""
    if any(True for _ in attribute_graphs(attributes)):
        raise InvalidTeacher(f"the function {short(function)} takes a graph as an attribute. {EXPORT_HINT}")


def _check_functions(model: onnx.ModelProto, nodes_max: int) -> None:
    """Refuse functions that grow without bound when they are put in place: ten that double make a thousand."""
    # Overloads count as one function: a call of any is as large as all of them.
    calls: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for function in model.functions:
        called = calls.setdefault((function.domain, function.name), Counter())
        called.update(_calls(function.node))
    sizes: dict[tuple[str, str], int] = {}
    pending = dict(calls)
    while pending:
        ready = [key for key, called in pending.items() if all(name in sizes or name not in calls for name in called)]
        if not ready:
            raise InvalidTeacher(f"the functions {listed(name for _, name in pending)} call themselves")
        for key in ready:
            size = sum(times * sizes.get(name, 1) for name, times in pending.pop(key).items())
            sizes[key] = min(size, nodes_max + 1)
    total = sum(times * sizes.get(name, 1) for name, times in Counter(_calls(model.graph.node)).items())
    if total > nodes_max:
        raise InvalidTeacher(f"the graph has {total} operators with its functions, at most {nodes_max} are allowed")


def _calls(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, str]]:
    """Operators and functions that these nodes and those of their subgraphs call, by domain and name."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield node.domain, node.op_type
            pending += [graph.node for graph in subgraphs([node])]


def _check_tensors(scopes: list[GraphScope], tensor_bytes_max: int, *, may_lie_outside: bool) -> tuple[int, int]:
    """Refuse external data and too many bytes; returns the number of floating-point values, and of 16-bit ones."""
    size_bytes = parameters = half_parameters = 0
    count = sum(len(scope.tensors) for scope in scopes)
    if count > TENSORS_MAX:
        raise InvalidTeacher(f"the graph has {count} constants, at most {TENSORS_MAX} are allowed")
    for tensor in (tensor for scope in scopes for tensor in scope.tensors):
        is_outside = is_external(tensor)
        if is_outside and not may_lie_outside:
            raise InvalidTeacher(
                f"the weights {short(tensor.name)!r} lie outside the file (external data). Send both files, as the "
                "parts `file` and `data` or in one zip or tar archive (`retort teachers upload MODEL.onnx --data "
                "MODEL.onnx.data`), or save the model as one file: onnx.save(onnx.load(path), new_path)"
            )
        values = count_of(tensor.dims)
        itemsize, floating = element_of(tensor.data_type)
        size_bytes += 0 if is_outside else values * itemsize
        parameters += values if floating else 0
        half_parameters += values if floating and itemsize == 2 else 0
    for pair in (pair for scope in scopes for pair in scope.sparse):
        size_bytes += count_of(pair.dims) * element_of(pair.values.data_type)[0]  # as it is once it is loaded
    if size_bytes > tensor_bytes_max:
        raise InvalidTeacher(f"the constants take {size_bytes} bytes, at most {tensor_bytes_max} are allowed")
    return parameters, half_parameters


def count_of(dims: Sequence[int]) -> int:
    """Number of values of a shape. Raises InvalidTeacher of a rank that is too high."""
    if len(dims) > TENSOR_RANK_MAX:
        raise InvalidTeacher(f"a constant has rank {len(dims)}, at most {TENSOR_RANK_MAX} is allowed")
    return math.prod(max(size, 0) for size in dims)


def element_of(data_type: int) -> tuple[int, bool]:
    """Bytes per value of an ONNX element type, and whether it is floating point; text counts as one byte."""
    if data_type in (TensorProto.STRING, TensorProto.UNDEFINED):  # an absent half of a sparse pair is undefined
        return 1, False
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError as error:
        raise InvalidTeacher(f"a constant has the unknown element type {data_type}: the file is damaged") from error
    return dtype.itemsize, "float" in dtype.name


def _check_opset(model: onnx.ModelProto) -> int:
    opset = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    if opset < OPSET_MIN:
        raise InvalidTeacher(
            f"the graph uses opset {opset or 'none'} of the standard operators, {OPSET_MIN} is the oldest that runs. "
            "Export it again with a newer opset_version"
        )
    return opset


def _check_training_mode(scopes: list[GraphScope], opset: int) -> None:
    for scope in scopes:
        for node in scope.nodes:
            if node.domain in STANDARD and _is_training(node, scope.constants, opset):
                raise InvalidTeacher(
                    f"{node.op_type} {short(node.name)!r} is in training mode, so a picture's logits would depend on "
                    "chance or on the pictures beside it. Call model.eval() before torch.onnx.export"
                )


def _is_training(node: NodeProto, constants: ChainMap[str, TensorProto], opset: int) -> bool:
    if node.op_type == "BatchNormalization":
        if opset < 14:  # until then the batch's own statistics, as further outputs, were the sign of training
            return any(node.output[1:])
        return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    if node.op_type == "Dropout" and len(node.input) > 2:
        # A mode that is computed, not constant, is left to the preflight, which compares two runs.
        mode = constants.get(node.input[2])
        return mode is not None and any((mode.raw_data.strip(b"\0"), *mode.int32_data))
    return False
