"""Locks of a cache: bytes of its zarr.json, which the kernel unlocks when a process dies."""

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from store import layout
from store.errors import CacheBusy, CacheNotFound
from store.filesystem import lock_byte

# Bytes of zarr.json that are locked, far beyond its end. Byte b < 2^40 is block b.
FINISH_BYTE = 1 << 40
GROUP_BYTE = FINISH_BYTE + 1  # shared by writers, exclusive for Catalog.delete
USE_BYTE = GROUP_BYTE + 1  # shared by holders of the cache, exclusive for an eviction


class CacheLease:
    """Lease of one cache: keeps it from eviction until release(), the end of the process or of the last reference.

    Raises CacheNotFound. Waits for an eviction that has begun, and then finds the cache gone.
    """

    def __init__(self, group: Path) -> None:
        self._close = weakref.finalize(self, os.close, lock_shared(group, USE_BYTE))
        self._close.atexit = False  # the kernel does it

    def release(self) -> None:
        """Let the cache be evicted, unless others hold it. May be called twice."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def write_lock(group: Path, byte: int) -> Iterator[None]:
    """Lock one byte for writing, and keep Catalog.delete out meanwhile. Raises CacheNotFound (deleted)."""
    path = group / layout.GROUP_FILE
    deleted = CacheNotFound(f"{group} was deleted while it was being written")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise deleted from None
    try:
        lock_byte(descriptor, GROUP_BYTE, shared=True)
        lock_byte(descriptor, byte)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise deleted
        yield
    finally:
        os.close(descriptor)


def lock_shared(group: Path, byte: int) -> int:
    """Take a shared lock; returns the descriptor that has it until it is closed. Raises CacheNotFound."""
    path = group / layout.GROUP_FILE
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as closing:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        closing.callback(os.close, descriptor)
        lock_byte(descriptor, byte, shared=True)
        # If an eviction came first, the opened file has another name by now.
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            closing.pop_all()
            return descriptor
    raise CacheNotFound(f"{group} was deleted meanwhile, or has lost its {layout.GROUP_FILE}")


@contextlib.contextmanager
def exclusive_lock(group: Path, bytes_: Sequence[int]) -> Iterator[None]:
    """Lock these bytes against all who share one. Raises CacheBusy if another process has one."""
    try:
        descriptor = os.open(group / layout.GROUP_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # no manifest: no process can be writing or reading it
        return
    try:
        for byte in bytes_:
            lock_byte(descriptor, byte, wait=False)
        yield
    except CacheBusy as error:
        what = "in use" if byte == USE_BYTE else "being written"
        raise CacheBusy(f"{group} is {what}: stop its job, then delete it") from error
    finally:
        os.close(descriptor)
