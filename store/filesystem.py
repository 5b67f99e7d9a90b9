"""File system primitives: durable atomic files, checksums, byte locks, the error of a full disk.

Linux only: open-file-description locks (fcntl(2)) are what lets several processes and threads share
one cache.
"""

import contextlib
import errno
import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from store.errors import CacheBusy, DiskFull

PARTIAL = ".partial"  # also the suffix that zarr's LocalStore gives its own temporary files
CHECKSUM_BYTES = 4  # what zarr's crc32c codec appends to a chunk: the checksum, little-endian


def crc32c(payload: npt.NDArray[np.generic]) -> int:
    """CRC-32C (Castagnoli) of an array's bytes, by the library that zarr's crc32c codec uses.

    Never take it of a whole chunk file: the CRC of data followed by its own CRC is the same constant
    for all data, so it would prove nothing.
    """
    # google_crc32c has no type information; it takes numpy arrays, but no memoryview.
    return int(google_crc32c.value(payload.reshape(-1).view(np.uint8)))


def read_trailer(path: Path, size_bytes: int) -> int | None:
    """Read the checksum at the end of a chunk file; None if the file has not exactly that many bytes.

    Raises FileNotFoundError. Costs one page of I/O: it tells two chunk files apart, not a flipped
    bit.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != size_bytes:
            return None
        trailer = os.pread(descriptor, CHECKSUM_BYTES, size_bytes - CHECKSUM_BYTES)
        return int.from_bytes(trailer, "little")
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Make a file's content, or a directory's entries, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(top: Path) -> None:
    """fsync every file and directory under ``top``, and ``top`` itself; the leaves first."""
    for folder, _, names in os.walk(top, topdown=False):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` so that readers, and a restart after a crash, see all of it or nothing."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)


@contextlib.contextmanager
def disk_full_as_error(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into DiskFull; let any other error pass."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFull) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        status = os.statvfs(folder)
        free_bytes = status.f_bavail * status.f_frsize
        raise DiskFull(
            f"no room to write {needed_bytes} bytes under {folder} ({free_bytes} bytes are free; "
            "a quota may leave less): nothing was committed; free some space and start again, what "
            "is committed is kept",
            needed_bytes,
            free_bytes,
        ) from error


def lock_byte(descriptor: int, byte: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock one byte of an open file until its descriptor is closed, by the owner or by its death.

    The byte need not exist. The lock belongs to the descriptor's open file description, so it also
    excludes other threads of this process that opened the file themselves.
    Raises CacheBusy if ``wait`` is false and another holds it.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    # struct flock: short l_type, l_whence; off_t l_start, l_len; pid_t l_pid (0 for these locks)
    flock = struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, flock)
    except BlockingIOError as error:
        raise CacheBusy("the cache is being written at this moment") from error
