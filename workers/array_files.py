"""Headers of the two array files that data sets come in, IDX and NPZ, read without their contents.

Light: the API process loads this. Contents are read by ``workers.decoding``; nothing is unpickled, so
object arrays are refused there.
"""

import gzip
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from workers.errors import InvalidDataset

# Shape and dtype of each array by its name.
Headers = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

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
# macOS packs a file's attributes beside it, as __MACOSX/._NAME.
_MACOS = "__MACOSX/"


def open_idx(path: Path) -> IO[bytes]:
    """An IDX file's bytes, unpacked when it is named ``.gz``."""
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


def idx_content(path: Path) -> NDArray[np.uint8]:
    """An IDX file's values, uint8 of the shape in its header; the end of a .gz also checks its CRC.

    Raises:
        InvalidDataset: as ``idx_shape``, or it ends early or late.
    """
    shape = idx_shape(path)
    try:
        with open_idx(path) as file:
            file.read(4 + 4 * len(shape))
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDataset(f"{path} cannot be read: {error}") from error
    if len(data) != math.prod(shape):
        how = "is longer" if len(data) > math.prod(shape) else "ends earlier"
        raise InvalidDataset(f"{path} {how} than its header {list(shape)} says")
    return np.frombuffer(data, np.uint8).reshape(shape)


def npz_headers(path: Path) -> Headers:
    """Shape and dtype of every array in an ``.npz``, none of them loaded.

    Raises:
        InvalidDataset: not an archive of ``.npy`` files, or damaged.
    """
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.startswith(_MACOS):
                    continue
                with archive.open(member) as file:
                    shape, dtype = _npy_header(file)
                    expected_bytes = file.tell() + math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and member.file_size != expected_bytes:
                    raise InvalidDataset(
                        f"{path}: {member.filename} has {member.file_size} bytes, its header "
                        f"{dtype} {list(shape)} asks for {expected_bytes}"
                    )
                headers[member.filename.removesuffix(".npy")] = (shape, dtype)
    except InvalidDataset:
        raise
    except DAMAGED as error:
        raise InvalidDataset(f"{path} cannot be read as an .npz of arrays: {error}") from error
    return headers


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format, whose field names are not Latin-1")
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    return shape, dtype
