"""Files and bodies that an attacker would upload as a teacher, by name; each a small picture classifier gone bad.

Used by the tests and by ``tests.benchmarks.attacks``. Every graph takes ``images`` [batch, 3, 8, 8] and says that it
gives ``logits`` [batch, 4].
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from tests.support import onnx_models

node = helper.make_node
GIB = 1 << 30
FLATTEN = node("Flatten", ["images"], ["flat"])
GEMM = node("Gemm", ["flat", "weight"], ["logits"])
WEIGHT = {"weight": np.ones((192, 4), np.float32)}


class Attack(NamedTuple):
    """One attack.

    Attributes:
        build: makes the file.
        says: what the refusal says, a regular expression.
        runs: it is well-formed, and stopped only where it is run.
    """

    build: Callable[[], bytes]
    says: str
    runs: bool = False


def _model(nodes: list[NodeProto], constants: dict[str, np.ndarray] | None = None, **fields: object) -> bytes:
    return onnx_models.model(nodes, constants=constants or WEIGHT, **fields).SerializeToString()


def _good() -> onnx.ModelProto:
    return onnx_models.random_linear()


# ----------------------------------------------------------------------------------------------- paths out of the file


def _outside(location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=(192, 4))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _external(location: str, place: str = "initializer", **more: str) -> bytes:
    tensor = _outside(location, **more)
    hidden = node("Constant", [], ["hidden"], value=tensor)
    inner = helper.make_graph([hidden, node("Identity", ["flat"], ["a"])], "inner", [], [onnx_models.logits(name="a")])
    other = helper.make_graph([node("Identity", ["flat"], ["b"])], "other", [], [onnx_models.logits(name="b")])
    built = onnx_models.model([FLATTEN, GEMM], constants=WEIGHT)
    if place == "initializer":
        built.graph.initializer[0].CopyFrom(tensor)
    elif place == "subgraph":
        built.graph.node.append(node("If", ["weight"], ["unused"], then_branch=inner, else_branch=other))
    elif place == "function":
        imports = [helper.make_opsetid("", 17)]
        built.functions.append(helper.make_function("own", "F", ["x"], ["y"], [hidden], imports))
    else:
        values, indices = _outside(location), helper.make_tensor("", TensorProto.INT64, [1], [0])
        built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return built.SerializeToString()


def _location_without_flag() -> bytes:
    built = _good()
    built.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return built.SerializeToString()


# ------------------------------------------------------------------------------------------------------------- bombs


def _bomb(*nodes: NodeProto, output: str, **constants: object) -> bytes:
    """``nodes`` make something huge; its mean is added to the logits, so that nothing can be left out."""
    axes = {"keepdims": 0}
    tail = [
        node("ReduceMean", [output], ["mean"], **axes),
        FLATTEN,
        node("Gemm", ["flat", "weight"], ["z"]),
        node("Add", ["z", "mean"], ["logits"]),
    ]
    given = {name: np.asarray(value) for name, value in constants.items()}
    return _model([*nodes, *tail], {**WEIGHT, **given})


def _huge_constant() -> bytes:
    return _bomb(node("ConstantOfShape", ["shape"], ["huge"]), output="huge", shape=np.array([16 * GIB]))


def _huge_padding() -> bytes:
    kernel = np.ones((1, 3, 1, 1), np.float32)
    conv = node("Conv", ["images", "kernel"], ["huge"], pads=[60_000] * 4)
    return _bomb(conv, output="huge", kernel=kernel)


def _huge_resize() -> bytes:
    scales = np.array([1, 1, 8192, 8192], np.float32)
    return _bomb(node("Resize", ["images", "", "scales"], ["huge"]), output="huge", scales=scales)


def _huge_range() -> bytes:
    bounds = {"start": np.float32(0), "limit": np.float32(1e12), "delta": np.float32(1)}
    return _bomb(node("Range", list(bounds), ["huge"]), output="huge", **bounds)


def _endless() -> bytes:
    body = helper.make_graph(
        [node("Identity", ["going"], ["goes_on"]), node("Identity", ["z_in"], ["z_out"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            onnx_models.logits(name="z_in"),
        ],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []), onnx_models.logits(name="z_out")],
    )
    nodes = [
        FLATTEN,
        node("Gemm", ["flat", "weight"], ["z"]),
        node("Loop", ["turns", "true", "z"], ["logits"], body=body),
    ]
    return _model(nodes, {**WEIGHT, "turns": np.array(1 << 62), "true": np.array(True)})


def _doubling_functions(levels: int = 40) -> bytes:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F0", ["x"], ["y"], [node("Relu", ["x"], ["y"])], imports)]
    for level in range(1, levels):
        inner = f"F{level - 1}"
        body = [node(inner, ["x"], ["m"], domain="own"), node(inner, ["m"], ["y"], domain="own")]
        functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], body, imports))
    nodes = [FLATTEN, node(f"F{levels - 1}", ["flat"], ["f"], domain="own"), node("Gemm", ["f", "weight"], ["logits"])]
    return _model(nodes, opset_imports=imports, functions=functions)


def _doubling_overloads(levels: int = 40) -> bytes:
    """As above; each function has an overload of the same name that does nothing, to hide behind."""

    def call(level: int, source: str, target: str) -> NodeProto:
        return node(f"F{level}", [source], [target], domain="own", overload="large")

    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(levels):
        large = [call(level - 1, "x", "m"), call(level - 1, "m", "y")] if level else [node("Relu", ["x"], ["y"])]
        for overload, body in {"large": large, "small": [node("Relu", ["x"], ["y"])]}.items():
            made = helper.make_function("own", f"F{level}", ["x"], ["y"], body, imports, overload=overload)
            functions.append(made)
    nodes = [FLATTEN, call(levels - 1, "flat", "f"), node("Gemm", ["f", "weight"], ["logits"])]
    built = onnx_models.model(nodes, constants=WEIGHT, opset_imports=imports, functions=functions)
    built.ir_version = 10  # the first with overloads
    return built.SerializeToString()


def _function_with_graph(inner: list[NodeProto], copies: int, *, by_default: bool) -> bytes:
    """A function that takes a graph, by its call or by default, and puts it into both branches of each ``If``."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    graph = {"branch": helper.make_graph(inner, "inner", [], [onnx_models.logits(name="a")])}
    body = [node("If", ["flag"], [f"y{number}"]) for number in range(copies)]
    for choice in body:
        for name in ("then_branch", "else_branch"):
            choice.attribute.add(name=name, ref_attr_name="branch", type=onnx.AttributeProto.GRAPH)
    defaults = [helper.make_attribute(name, value) for name, value in graph.items()] if by_default else []
    named = [] if by_default else ["branch"]
    function = helper.make_function("own", "F", ["flag"], ["y0"], body, imports, named, defaults)
    call = node("F", ["true"], ["unused"], domain="own", **({} if by_default else graph))
    constants = {**WEIGHT, "true": np.array(True)}
    return _model([FLATTEN, GEMM, call], constants, opset_imports=imports, functions=[function])


def _hidden_by_default() -> bytes:
    hidden = node("Constant", [], ["h"], value=_outside("/etc/passwd"))
    return _function_with_graph([hidden, node("Identity", ["flag"], ["a"])], 1, by_default=True)


def _copied_graph() -> bytes:
    many = [node("Not", ["true"], [f"n{number}"]) for number in range(999)]
    return _function_with_graph([*many, node("Identity", ["true"], ["a"])], 1000, by_default=False)


def _function_calling_itself() -> bytes:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [node("F", ["x"], ["y"], domain="own")]
    function = helper.make_function("own", "F", ["x"], ["y"], body, imports)
    nodes = [FLATTEN, node("F", ["flat"], ["f"], domain="own"), node("Gemm", ["f", "weight"], ["logits"])]
    return _model(nodes, opset_imports=imports, functions=[function])


def _declared_larger(dims: tuple[int, ...]) -> bytes:
    built = _good()
    built.graph.initializer[0].ClearField("dims")
    built.graph.initializer[0].dims.extend(dims)
    return built.SerializeToString()


def _sparse_bomb() -> bytes:
    built = _good()
    values = helper.make_tensor("huge", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("", TensorProto.INT64, [1], [0])
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20]))
    return built.SerializeToString()


def _many_constants(count: int = 600_000) -> bytes:
    tiny = onnx_models.model([FLATTEN, GEMM], constants={"x": np.float32(0)}).graph.initializer[0]
    built = _good()
    # Appending the same bytes is what repeating a field is.
    field = _field(5, tiny.SerializeToString()) * count
    return built.SerializeToString() + _field(7, field)


def _many_nodes(count: int = 1_000_000) -> bytes:
    one = node("Relu", ["flat"], ["r"]).SerializeToString()
    return _good().SerializeToString() + _field(7, _field(1, one) * count)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + content


def _nested(depth: int) -> bytes:
    """``depth`` graphs in one another; written by hand, for protobuf refuses to write what it will not read."""
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(5, _field(6, graph)))  # a graph's node's attribute's graph
    return _good().SerializeToString() + _field(7, graph)


# --------------------------------------------------------------------------------------------- operators, structure


def _operator(domain: str, name: str) -> bytes:
    nodes = [FLATTEN, node("Gemm", ["flat", "weight"], ["z"]), node(name, ["z"], ["logits"], domain=domain)]
    return _model(nodes, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)])


def _disguised_context() -> bytes:
    """A function of its own with the name of the operator that loads a compiled blob."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    body = [node("Relu", ["x"], ["y"])]
    function = helper.make_function("com.microsoft", "EPContext", ["x"], ["y"], body, imports)
    nodes = [FLATTEN, node("EPContext", ["flat"], ["f"], domain="com.microsoft")]
    nodes.append(node("Gemm", ["f", "weight"], ["logits"]))
    return _model(nodes, opset_imports=imports, functions=[function])


def _duplicate() -> bytes:
    return _model([FLATTEN, GEMM, node("Relu", ["flat"], ["logits"])])


def _cycle() -> bytes:
    return _model([node("Add", ["images", "b"], ["a"]), node("Relu", ["a"], ["b"]), FLATTEN, GEMM])


def _long_name() -> bytes:
    name = "n" * 5000
    return _model([node("Flatten", [name], ["flat"]), GEMM], inputs=[_renamed(onnx_models.image(), name)])


def _renamed(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    info.name = name
    return info


def _input_called(name: bytes) -> bytes:
    return _good().SerializeToString().replace(b"images", name)


def _error_about(name: bytes) -> bytes:
    """A node whose error message quotes this name."""
    nodes = [node("Reshape", ["images", "shape"], ["flat"]), node("Gemm", ["flat", "weight"], ["logits"], name="XXXX")]
    return _model(nodes, {**WEIGHT, "shape": np.array([-1, 48])}).replace(b"XXXX", name)


def _enormous_picture() -> bytes:
    mean = node("ReduceMean", ["images"], ["logits"], axes=[2, 3], keepdims=0)
    picture, output = onnx_models.image(("batch", 3, 1 << 40, 1 << 40)), onnx_models.logits(("batch", 3))
    return _model([mean], inputs=[picture], outputs=[output])


def _training_graph() -> bytes:
    built = _good()
    built.training_info.add().algorithm.initializer.append(_outside("/etc/passwd"))
    return built.SerializeToString()


def _mixes_the_batch() -> bytes:
    nodes = [node("ReduceMean", ["images"], ["m"], axes=[0], keepdims=1), node("Sub", ["images", "m"], ["c"])]
    return _model([*nodes, node("Flatten", ["c"], ["flat"]), GEMM])


def _not_a_number() -> bytes:
    nodes = [FLATTEN, node("Gemm", ["flat", "weight"], ["z"]), node("Sub", ["z", "inf"], ["a"])]
    return _model([*nodes, node("Add", ["a", "inf"], ["logits"])], {**WEIGHT, "inf": np.float32(np.inf)})


def _other_classes() -> bytes:
    return _model(
        [FLATTEN, node("Gemm", ["flat", "w"], ["z"]), node("Reshape", ["z", "s"], ["logits"])],
        {"w": np.ones((192, 8), np.float32), "s": np.array([-1, 4])},
    )


def _zip(name: str, size: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))
    return packed.getvalue()


def _truncated(part: float) -> bytes:
    whole = _good().SerializeToString()
    return whole[: int(len(whole) * part)]


ATTACKS: dict[str, Attack] = {
    "external data at ../x": Attack(lambda: _external("../x"), "outside the file"),
    "external data at /etc/passwd": Attack(lambda: _external("/etc/passwd"), "outside the file"),
    "external data at /proc/self/environ": Attack(lambda: _external("/proc/self/environ"), "outside the file"),
    "external data in a hard link beside it": Attack(lambda: _external("hardlink"), "outside the file"),
    "external data in a symbolic link beside it": Attack(lambda: _external("symlink"), "outside the file"),
    "external data at an offset": Attack(lambda: _external("x", offset="9999999999"), "outside the file"),
    "external data without its flag": Attack(_location_without_flag, "outside the file"),
    "external data in a subgraph": Attack(lambda: _external("../x", "subgraph"), "outside the file"),
    "external data in a function": Attack(lambda: _external("../x", "function"), "outside the file"),
    "external data in a function's default": Attack(_hidden_by_default, "takes a graph as an attribute"),
    "external data in a sparse constant": Attack(lambda: _external("../x", "sparse"), "outside the file"),
    "external data in a training graph": Attack(_training_graph, "training graph"),
    "ConstantOfShape of 64 GiB": Attack(_huge_constant, "memory|bad_alloc", runs=True),
    "Expand to 64 GiB": Attack(
        lambda: _bomb(
            node("Expand", ["one", "shape"], ["huge"]), output="huge", one=np.float32(1), shape=np.array([16 * GIB])
        ),
        "memory|bad_alloc",
        runs=True,
    ),
    "Tile to 64 GiB": Attack(
        lambda: _bomb(
            node("Tile", ["one", "times"], ["huge"]),
            output="huge",
            one=np.ones(1, np.float32),
            times=np.array([16 * GIB]),
        ),
        "memory|bad_alloc|if it was made for another, .* more than 4294967296 bytes",
        runs=True,
    ),
    "Range of 10^12 values": Attack(_huge_range, "memory|bad_alloc", runs=True),
    "Resize to 65536x65536": Attack(_huge_resize, "memory|bad_alloc", runs=True),
    "Conv with 60,000 pixels of padding": Attack(_huge_padding, "memory|bad_alloc", runs=True),
    "an input of 2^80 pixels": Attack(_enormous_picture, "at most 65536"),
    "Loop of 2^62 turns": Attack(_endless, "did not finish", runs=True),
    "40 functions, each calling the one before twice": Attack(_doubling_functions, "operators with its functions"),
    "40 functions, each hidden behind an overload": Attack(_doubling_overloads, "operators with its functions"),
    "a function that puts 2,000 copies of a graph in place": Attack(_copied_graph, "takes a graph as an attribute"),
    "a function that calls itself": Attack(_function_calling_itself, "call themselves"),
    "1,000,000 operators": Attack(_many_nodes, "at most 200000"),
    "600,000 tiny constants": Attack(_many_constants, "at most 500000"),
    "a constant declared as 64 GiB": Attack(lambda: _declared_larger((1 << 17, 1 << 17)), "at most 2147479552"),
    "a constant declared 100 times its data": Attack(lambda: _declared_larger((19200, 4)), "not a valid ONNX graph"),
    "a constant of negative size": Attack(lambda: _declared_larger((-192, -4)), "not a valid ONNX graph"),
    "a constant of rank 1000": Attack(lambda: _declared_larger((1,) * 1000), "rank 1000"),
    "a sparse constant of 4 TiB": Attack(_sparse_bomb, "at most 2147479552"),
    "500 graphs in one another": Attack(lambda: _nested(500), "not an ONNX file"),
    "2,000 graphs in one another": Attack(lambda: _nested(2000), "not an ONNX file"),
    "an operator of an unknown domain": Attack(lambda: _operator("evil", "Run"), "custom operator evil::Run"),
    "ai.onnx.contrib PyOp": Attack(lambda: _operator("ai.onnx.contrib", "PyOp"), "custom operator"),
    "com.microsoft EPContext": Attack(lambda: _operator("com.microsoft", "EPContext"), "compiled for one device"),
    "com.microsoft DecoderMaskedMultiHeadAttention, which crashes": Attack(
        lambda: _operator("com.microsoft", "DecoderMaskedMultiHeadAttention"), "none of the operators of"
    ),
    "EPContext as a function of its own": Attack(_disguised_context, "compiled for one device"),
    "an operator that does not exist": Attack(
        lambda: _operator("com.microsoft", "Nothing"), "none of the operators of"
    ),
    "an operator with too few inputs": Attack(
        lambda: _operator("com.microsoft", "QLinearAdd"), "ONNX Runtime cannot load", runs=True
    ),
    "an error that quotes a name that is not UTF-8": Attack(
        lambda: _error_about(b"\xff\xfe\xff\xfe"), "ONNX Runtime .*utf-8", runs=True
    ),
    "two nodes with one output": Attack(_duplicate, "not a valid ONNX graph"),
    "a cycle": Attack(_cycle, "not a valid ONNX graph"),
    "an input's name of 5,000 characters": Attack(_long_name, "has a name of 5000 characters"),
    "a name that is not UTF-8": Attack(lambda: _input_called(b"\xffmages"), "not printable UTF-8"),
    "a name with a NUL in it": Attack(lambda: _input_called(b"\0mages"), "not printable UTF-8"),
    "a PNG picture": Attack(lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture"),
    "a pickle": Attack(lambda: pickle.dumps({"a": 1}, protocol=4), "a Python pickle"),
    "a zip archive of no model": Attack(
        lambda: _zip("model.onnx", 1 << 20), "'model.onnx' of a zip archive: not an ONNX"
    ),
    "a zip archive of pictures": Attack(lambda: _zip("picture.png", 1 << 20), "a zip archive with no .onnx file"),
    "a zip archive that grows to 512 MiB": Attack(
        lambda: _zip("model.onnx", 512 << 20), "more than the .* bytes allowed"
    ),
    "a program": Attack(lambda: b"\x7fELF" + bytes(64), "a program"),
    "an empty file": Attack(lambda: b"", "it is empty"),
    **{
        f"cut off at {part:.0%}": Attack(lambda part=part: _truncated(part), "not an ONNX file")
        for part in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    },
    "outputs that are not numbers": Attack(_not_a_number, "not finite", runs=True),
    "outputs that depend on the other pictures": Attack(_mixes_the_batch, "beside another", runs=True),
    "two outputs for each picture": Attack(_other_classes, "shape|outputs", runs=True),
}


# -------------------------------------------------------------------------------------------------------------- bodies

PART = b'--B\r\nContent-Disposition: form-data; name="%s"\r\n'
FILE_PART = PART % b"file" + b"\r\n"


ENDLESS_BYTES = 40 << 20


class Body(NamedTuple):
    """A hostile multipart body with the boundary ``B``, in chunks, and how it is answered."""

    chunks: Callable[[], Iterator[bytes]]
    status: int
    slug: str


def _for_ever(head: bytes, chunk: bytes) -> Iterator[bytes]:
    """As good as that: more than any limit of the tests."""
    yield head
    for _ in range(ENDLESS_BYTES // len(chunk)):
        yield chunk


def _parts(count: int, name: bytes) -> Iterator[bytes]:
    for number in range(count):
        yield PART % (name % number if b"%" in name else name) + b"\r\nx\r\n"
    yield b"--B--\r\n"


BODIES: dict[str, Body] = {
    "a part with headers without end": Body(
        lambda: _for_ever(b"--B\r\n", b"X-Header: x\r\n" * 1000), 400, "malformed-body"
    ),
    "a header without end": Body(lambda: _for_ever(b"--B\r\nX: ", b"x" * 65536), 400, "malformed-body"),
    "lines without end before the first boundary": Body(lambda: _for_ever(b"", b"\r\n" * 1000), 413, "too-large"),
    "10,000 parts of other names": Body(lambda: _parts(10_000, b"name%d"), 422, "unknown-name"),
    "10,000 parts of one name": Body(lambda: _parts(10_000, b"name"), 422, "invalid-request"),
    "a file without end": Body(lambda: _for_ever(FILE_PART, b"x" * 65536), 413, "too-large"),
    "a text field without end": Body(lambda: _for_ever(PART % b"name" + b"\r\n", b"x" * 65536), 413, "too-large"),
    "more without end after the last boundary": Body(
        lambda: _for_ever(FILE_PART + b"x\r\n--B--\r\n", b"x" * 65536), 413, "too-large"
    ),
    "a multipart body as the file": Body(
        lambda: iter([FILE_PART, b"--C\r\n\r\n--BB\r\nx\r\n--C--", b"\r\n--B--\r\n"]), 422, "invalid-teacher"
    ),
    "a file called ../../../etc/passwd": Body(
        lambda: iter([FILE_PART.replace(b'"file"', b'"file"; filename="../../../etc/passwd"'), b"x\r\n--B--\r\n"]),
        422,
        "invalid-teacher",
    ),
}
