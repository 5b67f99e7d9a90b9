"""IDX and NPZ files: their headers, and their contents piece by piece.

A packed array may be a thousand times as large as its file, so what a header announces is bounded before anything is
unpacked, and no more is unpacked than it announces. Light: the API process loads this. Nothing is unpickled: arrays of
objects are refused.
"""

import gzip
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from workers.errors import InvalidDataset
from workers.texts import listed, shortened


class Header(NamedTuple):
    """Header of a ``.npy`` file."""

    shape: tuple[int, ...]
    is_fortran_order: bool
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return shortened(f"{self.dtype} {list(self.shape)}")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Headers = Mapping[str, Header]

# What the standard library and NumPy raise on files that are not what they seem; RuntimeError: an
# encrypted archive, or a compression that this Python lacks; TokenError: a header that is not Python.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
)
# Of a .npy file's start. NumPy reads 10,000 characters at most, but only after it has read as many as are announced.
_HEADER_MAX_BYTES = 12 << 10
_PIECE_BYTES = 1 << 20
_FORTRAN_MAX_BYTES = 1 << 30


# Advice about arrays of other names, or in another file.
_SAVE = (
    "save them by numpy.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...), or without "
    "splits as images and labels"
)


def open_idx(path: Path) -> IO[bytes]:
    """Open an IDX file's bytes, unpacked when it is named ``.gz``."""
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def idx_shape(path: Path) -> tuple[int, ...]:
    """Dimensions in an IDX file's header (big endian: 0, 0, type 8 = uint8, rank, one uint32 each).

    Raises:
        InvalidDataset: not an IDX file of uint8 of rank 1 or 3, or unpacked and of another size than
            its header says.
    """
    try:
        with open_idx(path) as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if (zeros, kind) != (0, 8) or rank not in (1, 3):
                raise InvalidDataset(f"{path} is not an IDX file of uint8 pictures or labels")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InvalidDataset(f"{path} cannot be read as an IDX file: {error}") from error
    expected_bytes = 4 + 4 * rank + math.prod(shape)
    if path.suffix != ".gz" and path.stat().st_size != expected_bytes:
        raise InvalidDataset(
            f"{path} has {path.stat().st_size} bytes, its header {list(shape)} asks for {expected_bytes}"
        )
    return shape


def idx_pieces(path: Path, step: int = 0) -> Generator[NDArray[np.uint8], None, None]:
    """Values of an IDX file, ``step`` of its first axis at a time, or 1 MiB; the end of a .gz also checks its CRC.

    Raises:
        InvalidDataset: as ``idx_shape``, or it ends early or late.
    """
    count, *row = idx_shape(path)
    row_bytes = math.prod(row)
    step = step or max(1, _PIECE_BYTES // max(1, row_bytes))
    try:
        with open_idx(path) as file:
            file.read(4 + 4 * (1 + len(row)))
            for first in range(0, count, step):
                rows = min(step, count - first)
                data = file.read(rows * row_bytes)
                if len(data) != rows * row_bytes:
                    raise InvalidDataset(f"{path} ends after {first + len(data) // row_bytes} of {count} rows")
                yield np.frombuffer(data, dtype=np.uint8).reshape(rows, *row)
            if file.read(1):
                raise InvalidDataset(f"{path} is longer than its header says ({count} rows)")
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDataset(f"{path} cannot be read: {error}") from error


def npz_headers(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Headers:
    """Headers of some arrays in an ``.npz``, none of them loaded; others are not looked at.

    Raises:
        InvalidDataset: not an archive of ``.npy`` files, or damaged; or it lacks one of the ``needed``.
    """
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            for name in (*needed, *optional):
                if name not in members:
                    continue
                member = members[name]
                with _open_member(archive, member) as file:
                    header, start = _npy_header(file)
                expected_bytes = start + header.size_bytes
                if not header.dtype.hasobject and member.file_size != expected_bytes:
                    raise InvalidDataset(
                        f"{path}: {member.filename} has {member.file_size} bytes, its header {header} asks for "
                        f"{expected_bytes}"
                    )
                headers[name] = header
    except InvalidDataset:
        raise
    except DAMAGED as error:
        advice = f"; {_SAVE}" if path.is_file() and path.suffix.lower() != ".npz" else ""
        raise InvalidDataset(f"{path} cannot be read as an .npz of arrays: {shortened(error)}{advice}") from error
    missing = [name for name in needed if name not in headers]
    if missing:
        raise InvalidDataset(f"{path} lacks {', '.join(missing)}; it holds {listed(members)}. {_SAVE.capitalize()}")
    return headers


def npz_pieces(path: Path, name: str, step: int = 0) -> Generator[NDArray[Any], None, None]:
    """Values of an array of an ``.npz``, ``step`` of its first axis at a time, or 1 MiB; the end also checks its CRC.

    No more than a piece is in memory, unless the array is in Fortran's order.

    Raises:
        InvalidDataset: damaged, or of objects; ends early or late; in Fortran's order and more than 1 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive, _open_member(archive, _members(archive)[name]) as file:
            header, start = _npy_header(file)
            if header.dtype.hasobject:
                raise ValueError("an array of objects, which are not unpickled")
            file.seek(start)
            count, *row = header.shape
            row_bytes = header.size_bytes // max(1, count)
            step = step or max(1, _PIECE_BYTES // max(1, row_bytes))
            if header.is_fortran_order and row:
                if header.size_bytes > _FORTRAN_MAX_BYTES:
                    raise ValueError(
                        f"it has {header.size_bytes} bytes in Fortran's order, in which at most {_FORTRAN_MAX_BYTES} "
                        "are read: save numpy.ascontiguousarray of it"
                    )
                whole = np.frombuffer(file.read(header.size_bytes), header.dtype).reshape(header.shape, order="F")
                yield from (whole[first : first + step] for first in range(0, count, step))
            else:
                for first in range(0, count, step):
                    rows = min(step, count - first)
                    yield np.frombuffer(file.read(rows * row_bytes), header.dtype).reshape(rows, *row)
    except DAMAGED as error:
        raise InvalidDataset(f"{path}: {name} cannot be read: {shortened(error)}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {member.filename.removesuffix(".npy"): member for member in archive.infolist()}


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    # With the others, zipfile unpacks all that it has read of the file at once, however much that is.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{shortened(member.filename)} is packed by method {member.compress_type}; save it with numpy.savez or "
            "numpy.savez_compressed"
        )
    return archive.open(member)


def _npy_header(file: IO[bytes]) -> tuple[Header, int]:
    """The header at the start of a file, and how many bytes it takes."""
    beginning = io.BytesIO(file.read(_HEADER_MAX_BYTES))
    version = np.lib.format.read_magic(beginning)
    if version == (1, 0):
        header = Header(*np.lib.format.read_array_header_1_0(beginning))
    elif version == (2, 0):
        header = Header(*np.lib.format.read_array_header_2_0(beginning))
    else:
        raise ValueError(f"version {version} of the .npy format, whose field names are not Latin-1")
    if min(header.shape, default=0) < 0:
        raise ValueError(f"shape {header.shape}")
    return header, beginning.tell()
