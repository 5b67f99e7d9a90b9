"""Declarations of a graph's inputs and outputs: name, element type and shape of each.

Only onnx and the standard library are imported: the API process loads this file.
"""

from onnx import TensorProto, ValueInfoProto

from workers.errors import InvalidTeacher
from workers.onnx.checks.parsing import short
from workers.onnx.checks.teacher_graph import GraphValue

NAME_MAX = 256  # characters of an input's or output's name
RANK_MAX = 8


def value_of(info: ValueInfoProto) -> GraphValue:
    """Declaration of an input or output.

    Raises:
        InvalidTeacher: its name cannot be shown, or its rank is too high.
    """
    if not (isinstance(info.name, str) and info.name.isprintable()):  # databases, logs and terminals are to hold it
        raise InvalidTeacher(f"the name {short(info.name)!r} of an input or output is not printable UTF-8")
    if not info.type.HasField("tensor_type"):
        return GraphValue(name=info.name, dtype=_type_name(info), shape=None)
    tensor = info.type.tensor_type
    if len(tensor.shape.dim) > RANK_MAX:
        raise InvalidTeacher(f"{short(info.name)!r} has rank {len(tensor.shape.dim)}, at most {RANK_MAX} is allowed")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else short(dim.dim_param) or None for dim in tensor.shape.dim
        )
    return GraphValue(name=info.name, dtype=_dtype_name(tensor.elem_type), shape=shape)


def is_tensor(info: ValueInfoProto) -> bool:
    """Whether it is a tensor, or declares nothing: no sequence, map or optional value."""
    return info.type.WhichOneof("value") in (None, "tensor_type")


def _type_name(info: ValueInfoProto) -> str:
    kind = info.type.WhichOneof("value")
    return "undeclared" if kind is None else kind.removesuffix("_type").replace("_", " ")


def _dtype_name(data_type: int) -> str:
    if data_type not in TensorProto.DataType.values():
        return "undeclared"
    name = str(TensorProto.DataType.Name(data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
