"""Writing that survives a kill and a full disk, and waiting for one's turn; the workers' few file primitives.

Light. The store has its own (``store.filesystem``): it knows nothing of workers, and its errors are its own.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from workers.errors import DiskLow, Stopped
from workers.events import ShouldStop

# Stays free on a disk beside what is to be written.
MARGIN_BYTES = 64 << 20
_WAIT_S = 0.1


def sync(file: BinaryIO) -> None:
    """Have the kernel write an open file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, what: str) -> Iterator[BinaryIO]:
    """Write a file that appears whole or not at all, in place of an older one.

    Yields:
        The open file, under a temporary name of this process; it is renamed at the end and removed on any failure.

    Raises:
        DiskLow: the disk ran full; ``what`` says of what.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with disk_full_is_disk_low(path.parent, what):
        try:
            with partial.open("wb") as file:
                yield file
                sync(file)
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_full_is_disk_low(folder: Path, what: str) -> Iterator[None]:
    """Turn the operating system's "no space left" into DiskLow: where, writing what, and what is free by then."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not isinstance(error, DiskLow):
            free = shutil.disk_usage(folder).free
            raise DiskLow(
                f"the disk of {folder} ran full while writing {what} ({free:,} bytes are free): free some space"
            ) from error
        raise


@contextlib.contextmanager
def alone(path: Path, should_stop: ShouldStop, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel lets go of it when the process dies.

    Raises:
        Stopped: ``should_stop`` said so while another process held it; ``what`` says what that one does.
    """
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_stop():
                    raise Stopped(f"stopped while another process {what}") from None
                time.sleep(_WAIT_S)
        yield


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
