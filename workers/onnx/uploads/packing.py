"""Packing of an upload into one file: a model with its weights beside it, as two parts or in an archive.

What makes one file of it is a confined child (``packing_child``), which can write no file: it fills memory of a
descriptor, and this process copies that to the file. From there on it is an ONNX file as any other. Of 2 GiB or more,
which no ONNX file has, it becomes a large teacher's file (``large_file``): the child fills the pages of a file of the
size that it has told before, which the kernel writes, so that the weights never lie in memory. Light: the API process
loads this file.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError

from workers.errors import InvalidTeacher
from workers.files import file_sha256
from workers.onnx.checks.check import FILE_MAX_BYTES, size_of
from workers.onnx.sandboxing import sandbox

# Of the child: it holds the model with its weights, each tensor once more, and all of it as bytes.
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
    """Answer of the child: the size of the file in bytes, or why there is none.

    Attributes:
        is_large: it is that of a large teacher, and still to be filled.
    """

    size: int = 0
    is_large: bool = False
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
    target: Path,
    *,
    bytes_max: int,
    timeout_s: float,
    check_room: Callable[[int], None] = lambda needed_bytes: None,
    single_max: int = FILE_MAX_BYTES,
) -> PackedFile:
    """Make one file of a model and its weights.

    Args:
        path: an ONNX file, or an archive that holds one.
        data: the file of its weights; None of an archive.
        data_name: the name under which that came; None is not known.
        target: an existing file that receives it; may be ``path`` itself if it has less than ``single_max`` bytes.
        bytes_max: of the new file.
        timeout_s: wall-clock seconds for the child, beside those for reading what is large.
        check_room: called with the bytes that are about to be written; raises when there is no room for them.
        single_max: most bytes of an ONNX file; a model that has more becomes a large teacher's file.

    Raises:
        InvalidTeacher: they do not belong together, or are damaged, hostile or too large.
        WorkerError: the child could not start, for a reason that is not the file's.
        OSError: the disk has no room for the file.
    """
    files = [path.resolve(), *([data.resolve()] if data else [])]
    sent_bytes = sum(map(size_of, files))
    arguments: dict[str, JsonValue] = {
        "path": str(files[0]),
        "data": str(files[1]) if data else None,
        "data_name": data_name,
        "bytes_max": bytes_max,
        "single_max": single_max,
    }
    copied_bytes = min(sent_bytes if data else bytes_max, single_max)

    def ask(function: str, descriptor: int, written_bytes: int, **more: int) -> _PackingAnswer:
        outcome = sandbox.call(
            f"workers.onnx.uploads.packing_child:{function}",
            {**arguments, "descriptor": descriptor, **more},
            readable=files,
            memory_bytes=_BASE_BYTES + _COPIES * copied_bytes + written_bytes,
            timeout_s=sandbox.with_reading(timeout_s, sent_bytes + written_bytes),
            descriptors=[descriptor],
        )
        if outcome.breach is not None:
            raise InvalidTeacher(f"putting the teacher's files together {outcome.breach}")
        return _checked(outcome.value, bytes_max)

    with fillable_memory(min(bytes_max, single_max)) as descriptor:
        found = ask("answer", descriptor, 0)
        check_room(found.size)
        if not found.is_large:
            return copy_memory(descriptor, target, found.size)
    with target.open("r+b") as file:
        # Else a full disk would end the child amid its writing.
        os.posix_fallocate(file.fileno(), 0, found.size)
        ask("fill", file.fileno(), found.size, size=found.size)
        os.fsync(file.fileno())
    return PackedFile(file_sha256(target), found.size)


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


def _checked(value: object, bytes_max: int) -> _PackingAnswer:
    try:
        found = _PackingAnswer.model_validate(value)
    except ValidationError:
        found = _PackingAnswer(error="putting the teacher's files together gives no answer of ours: they are hostile")
    if found.error or not 0 < found.size <= bytes_max:
        raise InvalidTeacher(found.error or "putting the teacher's files together gives no file")
    return found


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
