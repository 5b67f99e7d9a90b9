"""Check by reading, without running it, that a file is an ONNX image classifier that may be run here.

Two ways in: ``check_onnx`` in this process, for files that were let in before, and ``inspection`` for uploads: the same
in a confined child process.

What it will not do: run the graph (``workers.onnx.smoke_test`` does, and after it ``workers.teacher.teacher``), follow
external data, or load custom operators. The rules about the graph's inside are in ``workers.onnx.rules``. Only onnx,
pydantic and the standard library are imported: the API process loads this file.
"""

import os
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto
from pydantic import BaseModel, ConfigDict

from workers.errors import InvalidTeacher
from workers.onnx.batch_rules import batch_hint
from workers.onnx.parsing import EXPORT_HINT, listed, parse, refusing, short
from workers.onnx.rules import check_graph, check_structure
from workers.onnx.teacher_graph import GraphValue, TeacherGraph, shape_text
from workers.onnx.versions import ONNX, check_versions

IMAGE_DTYPES = ("float16", "float32")
LOGIT_DTYPES = ("float16", "float32", "float64")
NAME_MAX = 256  # characters of an input's or output's name
OUTPUTS_MAX = 64
RANK_MAX = 8
SIZE_MAX = 1 << 16  # of the input: pictures in a batch, pixels, channels

# protobuf reads and writes less than 2 GiB, and onnx's checker counts a few bytes more than the file has. An operator
# may set a lower limit for uploads; this one holds for every file.
FILE_MAX_BYTES = (2 << 30) - 4096


class FileLimits(BaseModel):
    """The largest file that is accepted.

    Attributes:
        file_bytes: of the whole file.
        tensor_bytes: of all constants in it together, as their shapes declare them.
        nodes: operators; those in subgraphs and functions count once each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_bytes: int = FILE_MAX_BYTES
    tensor_bytes: int = FILE_MAX_BYTES
    nodes: int = 200_000


LIMITS = FileLimits()


def check_onnx(path: Path, output: str | None = None, limits: FileLimits = LIMITS) -> TeacherGraph:
    """Read ``path`` and refuse it, with one sentence, unless it is a self-contained ONNX image classifier.

    Args:
        path: the file.
        output: name of the output that holds the logits; None takes the only rank-2 floating-point one.
        limits: the largest file accepted.

    Raises:
        InvalidTeacher: what is wrong and what to do about it.
    """
    content = _read(path, limits)
    model = parse(content)
    facts = check_graph(model, nodes_max=limits.nodes, tensor_bytes_max=limits.tensor_bytes)
    check_versions(model.ir_version, facts.opset, ONNX)
    image = _image_input(model)
    if not all(_is_shaped(info) for info in model.graph.output):
        content = _derive_output_shapes(model, content)
    check_structure(content)
    outputs = _outputs(model)
    chosen = _logits_output(outputs, output)
    return TeacherGraph(
        inputs=(image,),
        outputs=outputs,
        output=chosen,
        ir_version=model.ir_version,
        batch_hint=batch_hint(model),
        **facts._asdict(),
    )


def _read(path: Path, limits: FileLimits) -> bytes:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            # So many bytes are taken from memory before the first is read: never the limit itself.
            content = file.read(size_bytes) if size_bytes <= limits.file_bytes else b""
    except OSError as error:
        raise InvalidTeacher(f"the teacher's file cannot be read: {error.strerror}") from error
    if size_bytes > limits.file_bytes:
        raise InvalidTeacher(
            f"the teacher's file has {size_bytes} bytes, which is larger than the {limits.file_bytes} bytes allowed"
        )
    if not content:
        raise InvalidTeacher(f"not an ONNX file: it is empty. {EXPORT_HINT}")
    return content


def _value(info: ValueInfoProto) -> GraphValue:
    if not (isinstance(info.name, str) and info.name.isprintable()):  # databases, logs and terminals are to hold it
        raise InvalidTeacher(f"the name {short(info.name)!r} of an input or output is not printable UTF-8")
    if not info.type.HasField("tensor_type"):
        return GraphValue(name=info.name, dtype=info.type.WhichOneof("value") or "undeclared", shape=None)
    tensor = info.type.tensor_type
    if len(tensor.shape.dim) > RANK_MAX:
        raise InvalidTeacher(f"{short(info.name)!r} has rank {len(tensor.shape.dim)}, at most {RANK_MAX} is allowed")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else short(dim.dim_param) or None for dim in tensor.shape.dim
        )
    return GraphValue(name=info.name, dtype=_dtype_name(tensor.elem_type), shape=shape)


def _dtype_name(data_type: int) -> str:
    if data_type not in TensorProto.DataType.values():
        return "undeclared"
    name = str(TensorProto.DataType.Name(data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _image_input(model: onnx.ModelProto) -> GraphValue:
    held = {tensor.name for tensor in model.graph.initializer}  # before IR version 4 the weights were inputs, too
    inputs = [_value(info) for info in model.graph.input if info.name not in held]
    if len(inputs) != 1:
        names = listed(value.name for value in inputs) or "none"
        raise InvalidTeacher(
            f"the graph has {len(inputs)} inputs ({names}), a teacher has exactly one: the pictures. "
            "Make the others constants of the module that is exported"
        )
    image = inputs[0]
    named = f"the input {short(image.name)!r}"
    if len(image.name) > NAME_MAX:
        raise InvalidTeacher(f"{named} has a name of {len(image.name)} characters, at most {NAME_MAX} are allowed")
    if image.dtype not in IMAGE_DTYPES:
        raise InvalidTeacher(
            f"{named} is {image.dtype}, it must be float32 or float16: export the model without the cast and the "
            "scaling that follow it, and give those as `scale`, `mean` and `std` of the preprocessing"
        )
    if image.shape is None or len(image.shape) != 4:
        rank = "no declared rank" if image.shape is None else f"rank {len(image.shape)} {shape_text(image.shape)}"
        raise InvalidTeacher(
            f"{named} has {rank}, it must have rank 4: batch, channels, height, width (or channels last)"
        )
    if any(isinstance(size, int) and not 1 <= size <= SIZE_MAX for size in image.shape):
        raise InvalidTeacher(
            f"{named} has shape {shape_text(image.shape)}, every size must be at least 1 and at most {SIZE_MAX}"
        )
    return image


def _is_shaped(info: ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.HasField("shape"))


def _derive_output_shapes(model: onnx.ModelProto, content: bytes) -> bytes:
    """Fill in output shapes that the file leaves out, in ``model`` and in the returned bytes."""
    with refusing("the shapes in the graph contradict each other"):
        inferred = onnx.shape_inference.infer_shapes(content)
    for info, found in zip(model.graph.output, inferred.graph.output, strict=True):
        if not _is_shaped(found):
            raise InvalidTeacher(
                f"the shape of the output {short(info.name)!r} is not declared and cannot be derived: declare it, or "
                "remove the output"
            )
        info.CopyFrom(found)
    return bytes(model.SerializeToString())


def _outputs(model: onnx.ModelProto) -> tuple[GraphValue, ...]:
    infos = model.graph.output
    if len(infos) > OUTPUTS_MAX or any(len(info.name) > NAME_MAX for info in infos):
        raise InvalidTeacher(
            f"the graph has {len(infos)} outputs; at most {OUTPUTS_MAX} are allowed, with names of at most {NAME_MAX} "
            "characters"
        )
    return tuple(_value(info) for info in infos)


def _logits_output(outputs: tuple[GraphValue, ...], wanted: str | None) -> str:
    fitting = [v.name for v in outputs if v.dtype in LOGIT_DTYPES and v.shape is not None and len(v.shape) == 2]
    described = ", ".join(f"{short(v.name)} ({v.dtype} {shape_text(v.shape)})" for v in outputs[:8]) or "none"
    if wanted is not None:
        if wanted in fitting:
            return wanted
        exists = any(value.name == wanted for value in outputs)
        problem = "is not floating point with rank 2 (batch, classes)" if exists else "does not exist"
        raise InvalidTeacher(f"the output {short(wanted)!r} {problem}; the outputs are: {described}")
    if not fitting:
        raise InvalidTeacher(
            f"no output is floating point with rank 2 (batch, classes); the outputs are: {described}. Export the "
            "logits as an output: a number for each class, before any ArgMax, TopK or squeeze"
        )
    if len(fitting) > 1:
        raise InvalidTeacher(
            f"{len(fitting)} outputs could be the logits: {listed(fitting)}. Name the right one in `output`"
        )
    return fitting[0]


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
