"""Weights beside an ONNX file, put into it: one self-contained file of a model that was saved as several.

Read as strictly as the file itself: a location is the plain name of a file that came with it, never a path; offset and
length lie inside that file; the length is that of the tensor's shape and type; all of it together is bounded. Nothing
is opened by a name out of the file: the caller has the bytes.

Source: onnx.proto3 of onnx 1.23, ``TensorProto.external_data``. Only onnx and the standard library are imported.
"""

from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto

from workers.errors import InvalidTeacher
from workers.onnx.checks.parsing import listed, short
from workers.onnx.checks.rules import count_of, element_of
from workers.onnx.checks.scopes import scopes_of

# Advice about a teacher that is too large.
SMALLER = "convert the weights to float16, or quantise them (onnxruntime.quantization)"
Bytes = bytes | memoryview
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_DIGITS_MAX = 19  # of an offset below 2**63
# Two values in a byte, so that a shape tells no length.
_PACKED_NAMES = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
_PACKED = tuple(getattr(TensorProto, name) for name in _PACKED_NAMES if hasattr(TensorProto, name))


def external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Tensors of all scopes whose values lie outside the file."""
    for scope in scopes_of(model):
        for tensor in scope.tensors:
            if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
                yield tensor


def take_in(model: onnx.ModelProto, file_of: Callable[[str], Bytes], bytes_max: int) -> None:
    """Put the values of all external tensors into the model.

    Args:
        model: is changed.
        file_of: bytes of a file by its plain name; raises InvalidTeacher if it has not come with the model.
        bytes_max: of all values together.

    Raises:
        InvalidTeacher: a place that is none, or is not the tensor's.
    """
    total = 0
    for tensor in external_tensors(model):
        location, offset, length = _place(tensor)
        total += length
        if total > bytes_max:
            raise InvalidTeacher(
                f"the external weights have more than the {bytes_max} bytes allowed together: {SMALLER}"
            )
        content = file_of(location)
        if offset + length > len(content):
            raise InvalidTeacher(
                f"the weights {short(tensor.name)!r} lie at {offset} to {offset + length} of {short(location)!r}, "
                f"which has {len(content)} bytes: the two files are of different exports, or one is cut short"
            )
        tensor.raw_data = bytes(content[offset : offset + length])
        del tensor.external_data[:]
        tensor.ClearField("data_location")


def _place(tensor: TensorProto) -> tuple[str, int, int]:
    """File name, offset and length in bytes of a tensor's values."""
    named = f"the weights {short(tensor.name)!r}"
    given = {entry.key: entry.value for entry in tensor.external_data}
    unknown = given.keys() - _KEYS
    if unknown or len(given) != len(tensor.external_data):
        raise InvalidTeacher(f"{named} have the place {listed(unknown) or 'twice'}, which is none of {listed(_KEYS)}")
    location = given.get("location", "")
    if not _is_plain(location):
        raise InvalidTeacher(
            f"{named} lie at {short(location)!r}, which is no plain file name: save the model with "
            "onnx.save(model, path, save_as_external_data=True, location='NAME.onnx.data')"
        )
    expected = _expected_bytes(tensor, named)
    offset, length = (_number(given.get(key), key, named) for key in ("offset", "length"))
    length = expected if length is None else length
    is_packed = tensor.data_type in _PACKED
    if (length > expected) if is_packed else (length != expected):
        raise InvalidTeacher(f"{named} have {length} bytes, their shape and type need {expected}: the file is damaged")
    held = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    if any(len(getattr(tensor, field)) for field in held):
        raise InvalidTeacher(f"{named} lie in the file and outside: it is damaged")
    return location, offset or 0, length


def _is_plain(location: str) -> bool:
    """Whether it is a file's name, and no path."""
    is_text = isinstance(location, str) and location.isprintable()
    return is_text and location not in ("", ".", "..") and not set(location) & set("/\\")


def _expected_bytes(tensor: TensorProto, named: str) -> int:
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        raise InvalidTeacher(f"{named} are text: only numbers may lie outside the file")
    return count_of(tensor.dims) * element_of(tensor.data_type)[0]


def _number(text: str | None, key: str, named: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise InvalidTeacher(f"{named} have the {key} {short(text)!r}, which is no number of bytes")
    return int(text)
