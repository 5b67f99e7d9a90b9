"""Reserved range of addresses with files mapped into it, by the calls that Python's mmap module lacks.

Linux only: files are put at fixed addresses of a range, and the kernel is asked which of their pages are in memory.
"""

import ctypes
import errno
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Not in Python's mmap module; the value is the same on every Linux but alpha, hppa and mips.
_MAP_FIXED = 0x10
_PROT_NONE = 0
# Linux 5.14; not in Python's mmap module, either.
_MADV_POPULATE_READ = 22

_READ_AHEAD_THREADS = 2
# Bytes that a thread reads in one call, which release() waits for.
_READ_AHEAD_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_MAP_FAILED = ctypes.c_void_p(-1).value


class MappedRange:
    """A reserved range of addresses with files in it; unmapped by release() or by the garbage collector."""

    def __init__(self, size_bytes: int, alignment: int) -> None:
        """Reserve the range. Raises OSError (ENOMEM) when there is none of that size."""
        self.size_bytes = size_bytes
        reserved_bytes = size_bytes + alignment
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _mmap(None, reserved_bytes, protection=_PROT_NONE, flags=flags, descriptor=-1)
        self.start = -(-address // alignment) * alignment
        self._unmap = weakref.finalize(self, _libc.munmap, address, reserved_bytes)
        self._unmap.atexit = False  # a daemon thread may still be reading; the kernel cleans up
        self._files: list[tuple[int, int]] = []  # address and bytes
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def release(self) -> None:
        """Stop reading ahead and unmap. May be called twice."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._unmap()

    def map_file(self, path: Path, offset_bytes: int, length_bytes: int) -> None:
        """Map the first bytes of a file at an offset of this range, read-only and shared."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _mmap(
                self.start + offset_bytes, length_bytes, protection=mmap.PROT_READ, flags=flags, descriptor=descriptor
            )
        finally:
            os.close(descriptor)
        self._files.append((self.start + offset_bytes, length_bytes))

    def advise(self, advice: int) -> None:
        """Advise the kernel how the range will be used; it may ignore that."""
        _libc.madvise(self.start, self.size_bytes, advice)

    def prefetch(self, offsets_B: npt.NDArray[np.int64], length_bytes: int) -> None:
        """Start to read these parts of the range; where the kernel refuses, the first access reads them."""
        firsts_B = (self.start + offsets_B) & -mmap.PAGESIZE
        lengths_B = self.start + offsets_B + length_bytes - firsts_B
        for first, length in zip(firsts_B.tolist(), lengths_B.tolist(), strict=True):
            _libc.madvise(first, length, mmap.MADV_WILLNEED)

    def in_memory(self, index: int) -> bool:
        """Whether all pages of a file are in the page cache."""
        address, length_bytes = self._files[index]
        flags = np.ones(-(-length_bytes // mmap.PAGESIZE), np.uint8)
        _libc.mincore(address, length_bytes, flags.ctypes.data)
        return bool((flags & 1).all())

    def read_in_order(self, indices: Sequence[int]) -> None:
        """Start to read these files in the background, in order."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for part in range(_READ_AHEAD_THREADS):
            mine = indices[part::_READ_AHEAD_THREADS]
            thread = threading.Thread(target=self._read_files, args=(mine,), name="read-ahead", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read_files(self, indices: Sequence[int]) -> None:
        """Read files and fill this process's page table with their pages."""
        advice = _MADV_POPULATE_READ
        for index in indices:
            address, length_bytes = self._files[index]
            for done_bytes in range(0, length_bytes, _READ_AHEAD_BYTES):
                if self._stop.is_set():
                    return
                start, piece_bytes = address + done_bytes, min(_READ_AHEAD_BYTES, length_bytes - done_bytes)
                if _libc.madvise(start, piece_bytes, advice) != 0:
                    if advice != _MADV_POPULATE_READ or ctypes.get_errno() != errno.EINVAL:
                        return
                    # An older kernel: it only starts to read, and leaves the page table to the page faults.
                    advice = mmap.MADV_WILLNEED
                    _libc.madvise(start, piece_bytes, advice)

    def array(self, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
        """View of the whole range as a read-only flat array; it does not keep the range alive."""
        buffer = (ctypes.c_ubyte * self.size_bytes).from_address(self.start)
        flat = np.ctypeslib.as_array(buffer).view(dtype)
        flat.flags.writeable = False
        return flat


def _mmap(address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
    result = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if result == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {length} bytes: {os.strerror(number)}")
    return int(result)
