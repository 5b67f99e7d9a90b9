"""The rules that an ONNX file must keep to before anything runs it; each refusal is one ``InvalidTeacher`` sentence.

Structure only: it parses, it is self-contained, it uses known operators, it was exported for inference. What the
graph takes and gives is ``workers.onnx.check``'s concern. Every rule walks the main graph, the functions and all
subgraphs, for external data or a custom operator hides in any of them.

An ONNX file has no magic number, so "not ONNX" is a refusal to parse, made readable by looking for the signatures of
what people upload by mistake.

Sources: onnx.proto3 of onnx 1.23 for the fields; the operator pages of BatchNormalization and Dropout for what
training mode looks like in each opset. Only onnx and the standard library are imported: the API process loads this.
"""

import contextlib
import math
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto

from workers.errors import InvalidTeacher
from workers.onnx.operators import RUNTIME_DOMAIN, RUNTIME_OPERATORS

# com.microsoft holds ONNX Runtime's own operators, of which some are allowed (``onnx.operators``).
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
STANDARD = ("", "ai.onnx")  # two spellings of one domain
OPSET_MIN = 7  # ONNX Runtime promises opset 7 and later
TENSORS_MAX = 500_000  # each takes some hundred bytes once parsed, however empty it is
TENSOR_RANK_MAX = 32

EXPORT_HINT = "Export the classifier with torch.onnx.export, in eval mode, and give that one file"

# (offset, bytes, what it is) of what is uploaded by mistake.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive or a PyTorch checkpoint"),
    (257, b"ustar", "a tar archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, for which `git lfs pull` gets the file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    *((0, bytes([0x80, protocol]), "a Python pickle or a PyTorch checkpoint") for protocol in range(2, 6)),
    (0, b"\x89HDF", "an HDF5 (Keras) file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a program"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format"),
    (8, b'{"', "a safetensors file"),
)


class Facts(NamedTuple):
    """What was counted on the way.

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


def parse(content: bytes) -> onnx.ModelProto:
    """The model in ``content``; its external data, if any, is not touched.

    Raises:
        InvalidTeacher: saying what ``content`` is instead, as far as that can be told.
    """
    for offset, magic, what in SIGNATURES:
        if content.startswith(magic, offset):
            raise InvalidTeacher(f"not an ONNX file: it is {what}. {EXPORT_HINT}")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise InvalidTeacher(f"not an ONNX file: {_what_instead(content)}. {EXPORT_HINT}") from error
    if model.ir_version < 1 or not model.HasField("graph"):
        raise InvalidTeacher(f"not an ONNX file: {_what_instead(content)}. {EXPORT_HINT}")
    return model


def _what_instead(content: bytes) -> str:
    if content[0] == 0x08:  # the tag of ir_version, which exporters write first
        return "it begins like one, and is cut short or damaged"
    with contextlib.suppress(UnicodeDecodeError):
        if all(character.isprintable() or character.isspace() for character in content[:4096].decode()):
            return "it is text"
    return "it cannot be parsed as one (the weights of a model that was saved as two files, perhaps)"


def check_graph(model: onnx.ModelProto, *, nodes_max: int, tensor_bytes_max: int) -> Facts:
    """Every rule that is about the graph's inside.

    Args:
        model: what ``parse`` returned.
        nodes_max: most operators allowed.
        tensor_bytes_max: most bytes allowed in all constants together, as their shapes declare them.

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
    parameters, half_parameters = _check_tensors(scopes, tensor_bytes_max)
    opset = _check_opset(model)
    _check_training_mode(scopes, opset)
    return Facts(opset, nodes, parameters, half_parameters)


def check_structure(content: bytes) -> None:
    """onnx's own checker: names that nothing defines, wrong attributes, a shape that its data does not have.

    Raises:
        InvalidTeacher: with the checker's sentence.
    """
    with refusing("not a valid ONNX graph"):
        onnx.checker.check_model(content)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever onnx's C++ raises about a file into InvalidTeacher; ``what`` begins the sentence."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of many classes: its own, and what pybind11 makes of the standard library's
        raise InvalidTeacher(f"{what}: {first_line(error)}") from error


class Scope(NamedTuple):
    """One graph, subgraph or function body.

    Attributes:
        tensors: in it, the halves of sparse ones among them.
        sparse: the sparse ones, which have a shape of their own.
        constants: the tensors that its nodes can name.
    """

    nodes: list[NodeProto]
    tensors: list[TensorProto]
    sparse: list[SparseTensorProto]
    constants: ChainMap[str, TensorProto]


def scopes_of(model: onnx.ModelProto) -> Iterator[Scope]:
    """Every function, the main graph, and the subgraphs of both, outer ones first."""
    pending: list[tuple[GraphProto, ChainMap[str, TensorProto]]] = [(model.graph, ChainMap())]
    for function in model.functions:
        scope = _scope(list(function.node), [], [], ChainMap(), function.attribute_proto)
        yield scope
        pending += [(graph, scope.constants) for graph in _subgraphs(scope.nodes)]
    while pending:
        graph, outer = pending.pop()
        scope = _scope(list(graph.node), list(graph.initializer), list(graph.sparse_initializer), outer)
        yield scope
        pending += [(subgraph, scope.constants) for subgraph in _subgraphs(scope.nodes)]


def _scope(
    nodes: list[NodeProto],
    tensors: list[TensorProto],
    sparse: list[SparseTensorProto],
    outer: ChainMap[str, TensorProto],
    defaults: Iterable[AttributeProto] = (),
) -> Scope:
    constants = {tensor.name: tensor for tensor in tensors}
    for node in nodes:
        found = list(_attribute_tensors(node.attribute))
        tensors += found
        sparse += _attribute_sparse(node.attribute)
        if node.op_type == "Constant" and found and node.output:
            constants[node.output[0]] = found[0]
    tensors += _attribute_tensors(defaults)
    sparse += _attribute_sparse(defaults)
    tensors += [half for pair in sparse for half in (pair.values, pair.indices)]
    return Scope(nodes, tensors, sparse, outer.new_child(constants))


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    # Every field is looked at, whatever the attribute's declared type: the type is the file's own claim.
    for attribute in attributes:
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t


def _attribute_sparse(attributes: Iterable[AttributeProto]) -> Iterator[SparseTensorProto]:
    for attribute in attributes:
        yield from attribute.sparse_tensors
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor


def _subgraphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        yield from _graphs(node.attribute)


def _graphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    for attribute in attributes:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _check_operators(model: onnx.ModelProto, scopes: list[Scope]) -> None:
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
    if any(True for _ in _graphs(attributes)):
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
    """What these nodes and those of their subgraphs call, by domain and name."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield node.domain, node.op_type
            pending += [graph.node for graph in _subgraphs([node])]


def _check_tensors(scopes: list[Scope], tensor_bytes_max: int) -> tuple[int, int]:
    """Refuse external data and too many bytes; returns the number of floating-point values, and of 16-bit ones."""
    size_bytes = parameters = half_parameters = 0
    count = sum(len(scope.tensors) for scope in scopes)
    if count > TENSORS_MAX:
        raise InvalidTeacher(f"the graph has {count} constants, at most {TENSORS_MAX} are allowed")
    for tensor in (tensor for scope in scopes for tensor in scope.tensors):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise InvalidTeacher(
                f"the weights {short(tensor.name)!r} lie outside the file (external data). Save the model as one file: "
                "onnx.save(onnx.load(path), new_path), or export it with torch.onnx.export(..., external_data=False)"
            )
        values = _count(tensor.dims)
        itemsize, floating = _element(tensor.data_type)
        size_bytes += values * itemsize
        parameters += values if floating else 0
        half_parameters += values if floating and itemsize == 2 else 0
    for pair in (pair for scope in scopes for pair in scope.sparse):
        size_bytes += _count(pair.dims) * _element(pair.values.data_type)[0]  # as it is once it is loaded
    if size_bytes > tensor_bytes_max:
        raise InvalidTeacher(f"the constants take {size_bytes} bytes, at most {tensor_bytes_max} are allowed")
    return parameters, half_parameters


def _count(dims: Sequence[int]) -> int:
    if len(dims) > TENSOR_RANK_MAX:
        raise InvalidTeacher(f"a constant has rank {len(dims)}, at most {TENSOR_RANK_MAX} is allowed")
    return math.prod(max(size, 0) for size in dims)


def _element(data_type: int) -> tuple[int, bool]:
    """(bytes per value, is it floating point?) of an ONNX element type; text counts as one byte."""
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


def _check_training_mode(scopes: list[Scope], opset: int) -> None:
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


def listed(names: Iterable[str | bytes]) -> str:
    """The first sixteen names in order, for a message."""
    return ", ".join(short(name) for name in sorted(map(readable, names))[:16])


def short(text: str | bytes, length: int = 80) -> str:
    """``text`` cut to ``length`` characters: names in a file may be as long as the file."""
    text = readable(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def readable(text: str | bytes) -> str:
    """Text of a file for a message: what is not UTF-8 comes out of protobuf as bytes."""
    return text if isinstance(text, str) else text.decode(errors="replace")


def first_line(said: Exception | str) -> str:
    """What a C++ library's exception says, without its trace."""
    lines = (line.strip() for line in str(said).splitlines())
    return short(next((line for line in lines if line), type(said).__name__), 300)
