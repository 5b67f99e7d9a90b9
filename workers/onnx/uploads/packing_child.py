"""Child that makes one file of an upload of several; see ``workers.onnx.uploads.packing``.

Nothing else imports this file.

It is asked once for what can be one ONNX file, and twice for what is too large for that: how large the file will be
(``answer``), and then to fill it (``fill``), so that the weights never lie in memory.
"""

import mmap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto
from pydantic import JsonValue

from workers.errors import InvalidTeacher
from workers.onnx.checks.external_data import (
    SMALLER,
    Place,
    external_tensors,
    is_movable,
    pieces,
    places_of,
    set_values,
    take_in,
)
from workers.onnx.checks.large_file import BLOCK, LargeLayout, check_read, move_out
from workers.onnx.checks.parsing import parse
from workers.onnx.uploads.received_files import ReceivedFiles, open_received

_PIECE_BYTES = 8 << 20


def answer(
    path: str, data: str | None, data_name: str | None, *, descriptor: int, bytes_max: int, single_max: int
) -> JsonValue:
    """Write the one ONNX file to the memory of a descriptor; answers its size, or why there is none.

    Of a model that has more than ``single_max`` bytes with its weights the size of a large teacher's file is answered,
    and nothing is written.
    """
    try:
        with _opened(path, data, data_name, bytes_max) as received:
            model, placed = _placed(received, bytes_max)
            is_large = model.ByteSize() + sum(place.length for _, place in placed) > single_max
            if is_large:
                size = _LargeFile(model, placed, single_max).layout.size_bytes
            else:
                content = _one_file(received, model, placed)
                size = len(content)
        if size > bytes_max:
            raise InvalidTeacher(f"the file with its weights has more than the {bytes_max} bytes allowed: {SMALLER}")
    except InvalidTeacher as error:
        return {"error": str(error)}
    if not is_large:
        with mmap.mmap(descriptor, size) as memory:
            memory[:] = content
    return {"size": size, "is_large": is_large}


def fill(
    path: str, data: str | None, data_name: str | None, *, descriptor: int, bytes_max: int, single_max: int, size: int
) -> JsonValue:
    """Write the file of a large teacher, whose size ``answer`` has told, to a descriptor; answers that size."""
    try:
        with _opened(path, data, data_name, bytes_max) as received:
            large = _LargeFile(*_placed(received, bytes_max), single_max)
            if large.layout.size_bytes != size:
                raise InvalidTeacher("the upload has changed while it was read: send it again")
            with mmap.mmap(descriptor, size) as memory:
                large.write(memory, received)
    except InvalidTeacher as error:
        return {"error": str(error)}
    return {"size": size, "is_large": True}


def _opened(
    path: str, data: str | None, data_name: str | None, bytes_max: int
) -> AbstractContextManager[ReceivedFiles]:
    return open_received(Path(path), Path(data) if data else None, data_name, bytes_max)


def _placed(received: ReceivedFiles, bytes_max: int) -> tuple[onnx.ModelProto, list[tuple[TensorProto, Place]]]:
    """The model, and its tensors whose values lie outside of it, with their places. Raises InvalidTeacher."""
    if not received.model:
        raise InvalidTeacher("the ONNX file is empty: it was cut off, or is still being written")
    model = parse(received.model)
    outside = list(external_tensors(model))
    if received.has_data and not outside:
        raise InvalidTeacher("the model has its weights in the file itself: send it alone, without `data`")
    return model, places_of(outside, received.size_of, bytes_max)


def _one_file(received: ReceivedFiles, model: onnx.ModelProto, placed: Sequence[tuple[TensorProto, Place]]) -> bytes:
    """Bytes of the model with its weights in it; those that have come if they are in it already."""
    if not placed:
        return received.model
    take_in(placed, received)
    return _serialized(model)


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise _graph_too_large() from error


def _graph_too_large() -> InvalidTeacher:
    return InvalidTeacher(
        "the model has 2 GiB or more without the large initializers of its main graph, which alone may lie outside of "
        f"an ONNX file here: {SMALLER}"
    )


class _Target(NamedTuple):
    """Destination of the values of a tensor that lie outside: an offset in the data, or the graph (None)."""

    tensor: TensorProto
    place: Place
    offset: int | None


class _LargeFile:
    """A large teacher's file, of a model and the places of its weights; the model is changed.

    Large initializers of the main graph lie beside it, also those that came in it; everything else goes into it.

    Attributes:
        layout: of the file.
    """

    def __init__(self, model: onnx.ModelProto, placed: Sequence[tuple[TensorProto, Place]], single_max: int) -> None:
        self._model = model
        length_of = {id(tensor): place.length for tensor, place in placed}
        initializers = [(each, length_of.get(id(each), len(each.raw_data))) for each in model.graph.initializer]
        moved = [(tensor, length) for tensor, length in initializers if is_movable(tensor, length)]
        check_read(model, [tensor for tensor, _ in moved])
        values_of = {id(tensor): tensor.raw_data for tensor, _ in moved if id(tensor) not in length_of}
        offsets, data_bytes = move_out(moved)
        offset_of = {id(tensor): offset for (tensor, _), offset in zip(moved, offsets, strict=True)}
        self._came_inside = [(offset_of[key], values) for key, values in values_of.items()]
        self._targets = [_Target(tensor, place, offset_of.get(id(tensor))) for tensor, place in placed]
        inside = [target for target in self._targets if target.offset is None]
        if model.ByteSize() + sum(target.place.length for target in inside) > single_max or not moved:
            raise _graph_too_large()
        for target in inside:  # as long as what comes in its place
            set_values(target.tensor, bytes(target.place.length))
        self.layout = LargeLayout(len(_serialized(model)), data_bytes)

    def write(self, memory: mmap.mmap, received: ReceivedFiles) -> None:
        """Write the file into memory of its size."""
        inside: dict[int, bytearray] = {}
        places = [target.place for target in self._targets]
        for number, start, piece in pieces(places, received, _PIECE_BYTES):
            offset = self._targets[number].offset
            if offset is None:
                inside.setdefault(number, bytearray()).extend(piece)
            else:
                _put(memory, self.layout.data_offset + offset + start, piece)
        for offset, came in self._came_inside:
            _put(memory, self.layout.data_offset + offset, came)
        for number, values in inside.items():
            self._targets[number].tensor.raw_data = bytes(values)
        graph = _serialized(self._model)
        assert len(graph) == self.layout.graph_bytes
        for offset, block in (*self.layout.headers(), (BLOCK, graph)):
            _put(memory, offset, block)


def _put(memory: mmap.mmap, offset: int, block: bytes) -> None:
    memory[offset : offset + len(block)] = block
