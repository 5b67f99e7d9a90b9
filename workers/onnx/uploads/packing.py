"""Packing of an upload into one ONNX file: a model with its weights beside it, as two parts or in an archive.

What makes one file of it is a confined child (``packing_child``), which can write no file: it fills memory of a
descriptor, and this process copies that over the upload. From there on it is an ONNX file as any other. Light: the API
process loads this file.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from workers.errors import InvalidTeacher
from workers.onnx.checks.check import size_of
from workers.onnx.sandboxing import sandbox

# Of the child: it holds the archive's files, the model with its weights, and that as bytes.
_BASE_BYTES = 2 << 30
_COPIES = 5
_COPY_BYTES = 8 << 20
_MAGIC = ((0, b"PK\x03\x04"), (0, b"\x1f\x8b"), (257, b"ustar"))


class PackedFile(NamedTuple):
    """A file that was made of several.

    Attributes:
        sha256: of its bytes, 64 hex digits.
    """

    sha256: str
    size_bytes: int


class _PackingAnswer(BaseModel):
    """Answer of the child: the size of the file in bytes, or why there is none."""

    size: int = 0
    error: str = ""


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive, a tar archive or a gzip file."""
    with path.open("rb") as file:
        head = file.read(512)
    return any(head.startswith(magic, offset) for offset, magic in _MAGIC)


def pack(
    path: Path,
    data: Path | None,
    data_name: str | None,
    *,
    bytes_max: int,
    timeout_s: float,
    check_room: Callable[[int], None] = lambda needed_bytes: None,
) -> PackedFile:
    """Make one ONNX file of a model and its weights, in the place of the model's.

    Args:
        path: an ONNX file, or an archive that holds one; replaced.
        data: the file of its weights; None of an archive.
        data_name: the name under which that came; None is not known.
        bytes_max: of the new file.
        timeout_s: wall-clock seconds for the child.
        check_room: called with the bytes that are about to be written; raises when there is no room for them.

    Raises:
        InvalidTeacher: they do not belong together, or are damaged, hostile or too large.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    files = [path.resolve(), *([data.resolve()] if data else [])]
    with fillable_memory(bytes_max) as descriptor:
        outcome = sandbox.call(
            "workers.onnx.uploads.packing_child:answer",
            {
                "path": str(files[0]),
                "data": str(files[1]) if data else None,
                "data_name": data_name,
                "descriptor": descriptor,
                "bytes_max": bytes_max,
            },
            readable=files,
            memory_bytes=_BASE_BYTES + _COPIES * (sum(map(size_of, files)) if data else bytes_max),
            timeout_s=timeout_s,
            descriptors=[descriptor],
        )
        if outcome.breach is not None:
            raise InvalidTeacher(f"putting the teacher's files together {outcome.breach}")
        size = _size(outcome.value, bytes_max)
        check_room(size)
        return copy_memory(descriptor, path, size)


@contextlib.contextmanager
def fillable_memory(size: int) -> Iterator[int]:
    """Yield a descriptor of so many bytes of memory, for a child to fill; they are gone at the end."""
    descriptor = os.memfd_create("retort-upload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        # A child that could cut it short would have every access end this process.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield descriptor
    finally:
        os.close(descriptor)


def _size(value: object, bytes_max: int) -> int:
    try:
        found = _PackingAnswer.model_validate(value)
    except ValidationError:
        found = _PackingAnswer(error="putting the teacher's files together gives no answer of ours: they are hostile")
    if found.error or not 0 < found.size <= bytes_max:
        raise InvalidTeacher(found.error or "putting the teacher's files together gives no file")
    return found.size


def copy_memory(descriptor: int, path: Path, size: int) -> PackedFile:
    """Copy memory that has a descriptor over an existing file, durably."""
    digest = hashlib.sha256()
    with path.open("r+b") as file:
        file.truncate(0)
        for start in range(0, size, _COPY_BYTES):
            piece = os.pread(descriptor, min(_COPY_BYTES, size - start), start)
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return PackedFile(digest.hexdigest(), size)
