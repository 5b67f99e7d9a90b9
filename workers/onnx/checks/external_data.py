"""Weights beside an ONNX file (external data): their places, and the bytes that lie there.

Read as strictly as the file itself: a location is the plain name of a file that came with it, never a path; offset and
length lie inside that file; the length is that of the tensor's shape and type; all of it together is bounded. Nothing
is opened by a name out of the file: the caller has the files.

Source: onnx.proto3 of onnx 1.23, ``TensorProto.external_data``. Only onnx and the standard library are imported.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, NamedTuple, Protocol

import onnx
from onnx import TensorProto

from workers.errors import InvalidTeacher
from workers.onnx.checks.parsing import listed, short
from workers.onnx.checks.rules import count_of, element_of
from workers.onnx.checks.scopes import is_external, scopes_of

# Advice about a teacher that is too large.
SMALLER = "convert the weights to float16, or quantise them (onnxruntime.quantization)"
# A smaller tensor stays in the graph, where onnx's shape inference reads it. That of onnx.save, too.
MOVED_MIN_BYTES = 1024
_SKIP_BYTES = 8 << 20
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_DIGITS_MAX = 19  # of an offset below 2**63
# Two values in a byte, so that a shape tells no length.
_PACKED_NAMES = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
_PACKED = tuple(getattr(TensorProto, name) for name in _PACKED_NAMES if hasattr(TensorProto, name))


class Place(NamedTuple):
    """Place of a tensor's values: file name, offset and length in bytes."""

    location: str
    offset: int
    length: int


def external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Tensors of all scopes whose values lie outside the file."""
    for scope in scopes_of(model):
        yield from filter(is_external, scope.tensors)


def is_movable(tensor: TensorProto, length: int) -> bool:
    """Whether a tensor's values may lie outside of a graph that we keep: large ones whose length its shape tells."""
    return length >= MOVED_MIN_BYTES and tensor.data_type not in _PACKED


def places_of(
    tensors: Sequence[TensorProto], size_of: Callable[[str], int], bytes_max: int
) -> list[tuple[TensorProto, Place]]:
    """Places of external tensors, each within its file.

    Args:
        size_of: bytes of a file by its plain name; raises InvalidTeacher if it has not come with the model.
        bytes_max: of all values together.

    Raises:
        InvalidTeacher: a place that is none, or is not the tensor's.
    """
    placed, total = [], 0
    for tensor in tensors:
        place = place_of(tensor)
        total += place.length
        if total > bytes_max:
            raise InvalidTeacher(
                f"the external weights have more than the {bytes_max} bytes allowed together: {SMALLER}"
            )
        end, size = place.offset + place.length, size_of(place.location)
        if end > size:
            raise InvalidTeacher(
                f"the weights {short(tensor.name)!r} lie at {place.offset} to {end} of {short(place.location)!r}, "
                f"which has {size} bytes: the two files are of different exports, or one is cut short"
            )
        placed.append((tensor, place))
    return placed


class WeightFiles(Protocol):
    """Files of weights.

    Attributes:
        open_file: opens one by its plain name. It may be compressed: to go back in it is to read it again.
        position_of: where it lies among them; 0 where to go back to one costs nothing.
    """

    @property
    def open_file(self) -> Callable[[str], AbstractContextManager[IO[bytes]]]: ...
    @property
    def position_of(self) -> Callable[[str], int]: ...


def pieces(places: Sequence[Place], files: WeightFiles, piece_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Read the values at some places, each file once from its begin to its end where they do not overlap.

    Args:
        files: in which they lie; read in the order of their positions.
        piece_bytes: most bytes of a piece.

    Yields:
        (number of the place, offset in its values, piece), the pieces of a place in their order.

    Raises:
        InvalidTeacher: a file ends before a place does.
    """
    in_order = sorted(
        range(len(places)), key=lambda number: (files.position_of(places[number].location), places[number])
    )
    for location, numbers in itertools.groupby(in_order, lambda number: places[number].location):
        with files.open_file(location) as stream:
            position = 0
            for number in numbers:
                offset, length = places[number].offset, places[number].length
                if offset < position:
                    position = stream.seek(offset)
                # Read over what lies between: an archive then checks its sum of the whole.
                for _, _ in _read(stream, offset - position, _SKIP_BYTES, location):
                    pass
                for start, piece in _read(stream, length, piece_bytes, location):
                    yield number, start, piece
                position = offset + length
            while stream.read(_SKIP_BYTES):
                pass


def _read(stream: IO[bytes], length: int, piece_bytes: int, location: str) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < length:
        piece = stream.read(min(piece_bytes, length - start))
        if not piece:
            raise InvalidTeacher(f"{short(location)!r} ends before it should: it is cut short, send it again")
        yield start, piece
        start += len(piece)


def take_in(tensors: Sequence[tuple[TensorProto, Place]], files: WeightFiles) -> None:
    """Put the values at their places into tensors. Raises InvalidTeacher."""
    for tensor, place in tensors:
        if not place.length:
            set_values(tensor, b"")
    held = b""
    for number, start, piece in pieces([place for _, place in tensors], files, sys.maxsize):
        held = held + piece if start else piece
        tensor, place = tensors[number]
        if len(held) == place.length:
            set_values(tensor, held)


def set_values(tensor: TensorProto, values: bytes) -> None:
    """Put a tensor's values into it, in place of the place where they lay."""
    tensor.raw_data = values
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def set_place(tensor: TensorProto, place: Place) -> None:
    """Have a tensor's values lie outside the file."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place._asdict().items():
        tensor.external_data.add(key=key, value=str(value))


def place_of(tensor: TensorProto) -> Place:
    """Place of a tensor's values, of which nothing is in the file. Raises InvalidTeacher."""
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
    return Place(location, offset or 0, length)


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
