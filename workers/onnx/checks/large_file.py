"""Large teacher: a graph and its weights, of 2 GiB or more together, in one tar archive of our own writing.

protobuf, and with it any single ONNX file, ends at 2 GiB. A teacher beyond that is kept as one file all the same::

    header of model.onnx         512 bytes
    model.onnx                   the graph; the values of large initializers are external data in the next member
    header of model.onnx.data    512 bytes
    model.onnx.data              raw little-endian tensors in the graph's order, each at a multiple of 512 bytes
    end                          1,024 zero bytes

``tar xf`` makes the pair of it that onnx and ONNX Runtime read. Nothing in it is a choice: the same model gives the
same bytes, whose SHA-256 is the teacher's, and the reader takes no archive of other places. Of the client's file names,
offsets and holes none is left, nor which large initializers came beside the graph and which in it (as raw_data: those
in typed fields, float_data and the like, stay there). Each must be read by something.

Sources: tar(5) for the header, in GNU's form; onnx.proto3 of onnx 1.23 for external data. Only onnx and the standard
library are imported: the API process loads this file.
"""

import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper

from workers.errors import InvalidTeacher
from workers.onnx.checks.external_data import SMALLER, Place, external_tensors, is_movable, place_of, set_place
from workers.onnx.checks.parsing import listed, parse, refusing, short
from workers.onnx.checks.scopes import is_external, scopes_of, subgraphs

GRAPH_NAME, DATA_NAME = "model.onnx", "model.onnx.data"
BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * BLOCK)


class LargeLayout(NamedTuple):
    """Layout of a large teacher's file, by the sizes of its members in bytes."""

    graph_bytes: int
    data_bytes: int

    @property
    def data_offset(self) -> int:
        """Offset of the first tensor."""
        return BLOCK + padded(self.graph_bytes) + BLOCK

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.data_offset + padded(self.data_bytes) + len(_END)

    def headers(self) -> Iterator[tuple[int, bytes]]:
        """The headers of the members, each with its offset."""
        yield 0, _header(GRAPH_NAME, self.graph_bytes)
        yield self.data_offset - BLOCK, _header(DATA_NAME, self.data_bytes)


def padded(size: int) -> int:
    """Bytes that a member or a tensor takes in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def find_layout(path: Path) -> LargeLayout | None:
    """Layout of a large teacher's file; None of any other file.

    Raises:
        InvalidTeacher: it begins like one, and is not as we write it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not file.read(BLOCK).startswith(GRAPH_NAME.encode() + b"\0"):
            return None
        graph_bytes = _size_at(file, 0, GRAPH_NAME)
        data_bytes = _size_at(file, LargeLayout(graph_bytes, 0).data_offset - BLOCK, DATA_NAME)
        layout = LargeLayout(graph_bytes, data_bytes)
        file.seek(layout.size_bytes - len(_END))
        if file.read() != _END or data_bytes != padded(data_bytes):
            raise _not_ours(f"it has {os.fstat(file.fileno()).st_size} bytes, {layout.size_bytes} by its headers")
    return layout


def read_graph(path: Path, layout: LargeLayout) -> bytes:
    """Bytes of the graph of a large teacher's file."""
    with path.open("rb") as file:
        file.seek(BLOCK)
        return file.read(layout.graph_bytes)


def graph_beside_data(path: Path, layout: LargeLayout) -> bytes:
    """The graph as ONNX Runtime loads it: the places of its weights are those in the file ``path`` itself.

    Raises:
        InvalidTeacher: with these places it has 2 GiB or more.
    """
    model = parse(read_graph(path, layout))
    for tensor in model.graph.initializer:
        if is_external(tensor):
            _, offset, length = place_of(tensor)
            set_place(tensor, Place(path.name, layout.data_offset + offset, length))
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:  # the places here are longer than those in the file
        raise InvalidTeacher(
            f"the graph has {layout.graph_bytes} bytes, and 2 GiB or more with the places of its weights in "
            f"{short(path.name)!r}, which no ONNX file has: {SMALLER}"
        ) from error


def move_out(tensors: Sequence[tuple[TensorProto, int]]) -> tuple[list[int], int]:
    """Give initializers the places that their values have in our file, one behind the other; none are left in them.

    Args:
        tensors: each with the bytes of its values, in the graph's order.

    Returns:
        Their offsets in the data, and the bytes of the data.
    """
    offsets, end = [], 0
    for tensor, length in tensors:
        tensor.ClearField("raw_data")
        set_place(tensor, Place(DATA_NAME, end, length))
        offsets.append(end)
        end += padded(length)
    return offsets, end


def check_read(model: onnx.ModelProto, tensors: Iterable[TensorProto]) -> None:
    """Check that the graph reads these initializers: else a small archive of padding would become a file of many GiB.

    Raises:
        InvalidTeacher: nothing reads one of them.
    """
    nodes = [node for scope in scopes_of(model) for node in scope.nodes]
    graphs = [model.graph, *subgraphs(nodes)]
    read = {name for node in nodes for name in node.input} | {each.name for graph in graphs for each in graph.output}
    unread = [short(tensor.name) for tensor in tensors if tensor.name not in read]
    if unread:
        raise InvalidTeacher(
            f"no operator of the graph reads the weights {listed(unread)}, which would lie beside it for nothing: "
            "remove them from model.graph.initializer, and save the model again"
        )


def check_places(model: onnx.ModelProto, data_bytes: int) -> None:
    """Check that the external data of a graph are those that ``move_out`` makes: nothing else, no hole, no overlap.

    Args:
        model: the graph.
        data_bytes: of the data beside it.

    Raises:
        InvalidTeacher: a tensor has another place, or is none that lies outside, or a name comes twice.
    """
    initializers = list(model.graph.initializer)
    outside = [tensor for tensor in initializers if is_external(tensor)]
    if sum(1 for _ in external_tensors(model)) != len(outside):
        raise _not_ours("tensors that are no initializers of the graph lie outside of it")
    if len({tensor.name for tensor in initializers}) != len(initializers):
        raise _not_ours("two initializers have one name")
    end = 0
    for tensor in outside:
        length = place_of(tensor).length
        expected = TensorProto()
        set_place(expected, Place(DATA_NAME, end, length))
        if list(tensor.external_data) != list(expected.external_data) or not is_movable(tensor, length):
            raise _not_ours(f"the place of the weights {short(tensor.name)!r} is not {DATA_NAME} at {end}")
        end += padded(length)
    if end != data_bytes:
        raise _not_ours(f"its weights have {end} bytes, its data {data_bytes}")


def with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the weights outside are inputs: onnx's checker and shape inference would look for their file.

    Raises:
        InvalidTeacher: a weight has no name that can be one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    initializers, declared = list(copy.graph.initializer), {info.name for info in copy.graph.input}
    with refusing("not a valid ONNX graph"):
        inputs = [
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in initializers
            if is_external(tensor) and tensor.name not in declared
        ]
    inside = [tensor for tensor in initializers if not is_external(tensor)]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(inside)
    copy.graph.input.extend(inputs)
    return copy


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _size_at(file: IO[bytes], offset: int, name: str) -> int:
    """Size of the member whose header, exactly as we write it, is at an offset."""
    file.seek(offset)
    block = file.read(BLOCK)
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "strict").size
    except (tarfile.TarError, ValueError) as error:
        raise _not_ours(f"it has no header of {name} at {offset}") from error
    if size <= 0 or block != _header(name, size):
        raise _not_ours(f"its header of {name} at {offset} is another")
    # Before anything is looked for behind it: there is no such offset as 2**70.
    if size > (file_bytes := os.fstat(file.fileno()).st_size):
        raise _not_ours(f"it has {file_bytes} bytes, its {name} has {size} by its header")
    return size


def _not_ours(why: str) -> InvalidTeacher:
    return InvalidTeacher(
        f"the archive of a graph and its weights is none that Retort has written ({why}): upload it, which makes one "
        "of it, or upload the model again if the file was changed since"
    )
