"""Chunk files of a block: their sizes and trailers, and their values with every byte checked."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from store import layout
from store.documents import BlockRecord
from store.errors import CacheCorrupt
from store.filesystem import CHECKSUM_BYTES, crc32c, read_trailer
from store.spec import CacheSpec


def check_chunk_files(group: Path, record: BlockRecord) -> None:
    """Raise CacheCorrupt unless each chunk file is there, has its size and ends in its checksum.

    Cheap (one page per file): it finds missing, cut and swapped files, not flipped bits.
    """
    for name, file in record.files.items():
        path = group / name
        try:
            trailer = read_trailer(path, file.size)
        except FileNotFoundError:
            raise CacheCorrupt(f"{path}: the file is missing") from None
        if trailer is None:
            raise CacheCorrupt(f"{path}: {path.stat().st_size} bytes, and must have {file.size}")
        if trailer != file.crc32c:
            raise CacheCorrupt(
                f"{path}: ends in checksum {trailer:08x}, but {file.crc32c:08x} was committed: "
                "damaged, or another chunk's file"
            )


def read_chunk(
    group: Path,
    spec: CacheSpec,
    array: str,
    block: int,
    record: BlockRecord,
    out: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[Any]:
    """Read the values [rows] or [rows, columns] of one chunk, every byte checked against the record.

    They are read into ``out`` if it is given: C-contiguous, of the array's dtype and just these rows.
    Raises CacheCorrupt naming the file.
    """
    name = layout.chunk_name(array, spec, block)
    path = group / name
    expected = record.files[name]
    stored, rows = spec.arrays[array], layout.chunk_rows(array, spec)
    shape = (rows,) if stored.columns is None else (rows, stored.columns)
    whole = out if out is not None and len(out) == rows else np.empty(shape, stored.numpy_dtype)
    trailer = bytearray(CHECKSUM_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == expected.size:
                size = os.preadv(file.fileno(), [whole.reshape(-1).view(np.uint8).data, trailer], 0)
    except FileNotFoundError:
        raise CacheCorrupt(f"{path}: the file is missing") from None
    if size != expected.size:
        raise CacheCorrupt(f"{path}: {size} bytes, and must have {expected.size}")
    found = crc32c(whole)
    if found != expected.crc32c or found != int.from_bytes(trailer, "little"):
        raise CacheCorrupt(
            f"{path}: content of checksum {found:08x}, but {expected.crc32c:08x} was committed: "
            "damaged; delete the cache and compute it again"
        )
    if out is None:
        return whole[: record.rows]
    if out is not whole:
        out[:] = whole[: record.rows]
    return out
