"""All chunk files of one array, in one address range, as one two-dimensional numpy array.

A chunk file is R flat rows and a four-byte checksum, so each file is mapped (MAP_FIXED) at a
multiple of one stride inside a reserved range. The stride is a multiple of the row size, which
makes the whole range an array of rows with holes in it, and one np.take gathers rows of any chunks:
as fast as np.memmap over one big file.

In order of preference:

- "huge": stride = lcm(2 MiB, row bytes), so that the page cache's 2 MiB pages can be mapped whole. A
  file has such pages once it was written, or read through this mapping, but not once it was read
  with read(2), which costs about a tenth of the speed for as long as the file stays in memory;
- "page": stride = lcm(page size, row bytes), where the first needs more address space than there is
  (odd row sizes times many files, or RLIMIT_AS): about a tenth slower, too;
- "loaded": the files' rows copied into memory, where mapping is refused (vm.max_map_count,
  RLIMIT_AS).

The holes are PROT_NONE: an index into one kills the process. So `rows` never leaves this package,
indices are checked before they come here, and nothing here is ever pickled. Files must not be cut
while they are mapped; the writer never does, it replaces them, and a mapping keeps the old file
alive.

Rows that are not in memory yet come one page fault at a time, each with megabytes around it that
the kernel reads ahead. That is ruin for files that memory cannot hold: for them there are
`read_single_pages` and `prefetch`. Files that fit are read sooner in order (`read_in_order`) than
by the faults of a random order. See read_ahead.py.
"""

import contextlib
import ctypes
import errno
import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from store.errors import AddressSpaceExhausted

HUGE_PAGE_BYTES = 2 << 20
TOUCH_BYTES = 512  # below this a row is copied as soon as it is looked at

# Not in Python's mmap module; the value is the same on every Linux but alpha, hppa and mips.
_MAP_FIXED = 0x10
_PROT_NONE = 0
# Linux 5.14; not in Python's mmap module, either.
_MADV_POPULATE_READ = 22

_READ_AHEAD_THREADS = 2
# What a thread reads in one call, which release() waits for.
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

# What this process, or the container that it is in, may use: cgroup v2, cgroup v1.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class ChunkRows:
    """Row r of chunk i is `rows[i * stride_rows + r]`; every other index is a hole.

    `release` unmaps at once; `rows` must not be touched afterwards. It also runs when nothing
    refers to this object any more.
    """

    rows: npt.NDArray[np.generic]  # [chunks * stride_rows, C]
    stride_rows: int
    kind: Literal["huge", "page", "loaded"]
    _range: "_Range | None" = None

    def take(self, indices_B: npt.NDArray[np.int64], out: npt.NDArray[np.generic]) -> None:
        """Copy these rows to `out` [B, C], C-contiguous and of their dtype.

        The indices must be those of rows: mode "clip" checks nothing, and spares a buffered copy.
        """
        classes = self.rows.shape[1]
        if classes * self.rows.itemsize >= TOUCH_BYTES:
            # Copying row after row waits for the memory and the page table at each. Single values
            # are fetched side by side, and with both ends of a row there the copy hardly waits:
            # in 0.6 times the time where pages are small, in 0.75 where they are huge.
            ends_B2 = indices_B[:, None] * classes + (0, classes - 1)
            self.rows.reshape(-1).take(ends_B2, mode="clip")
        self.rows.take(indices_B, axis=0, out=out, mode="clip")

    def prefetch(self, indices_B: npt.NDArray[np.int64]) -> None:
        """Have these rows read in the background.

        1-2 us a row, also for those in memory already. Does nothing where the files are loaded.
        """
        if self._range is not None:
            row_bytes = self.rows.strides[0]
            self._range.prefetch(indices_B * row_bytes, row_bytes)

    def read_single_pages(self) -> None:
        """From now on a page fault reads no page but its own, for files that memory cannot hold."""
        if self._range is not None:
            self._range.advise(mmap.MADV_NOHUGEPAGE)  # it would take precedence
            self._range.advise(mmap.MADV_RANDOM)

    def in_memory(self, chunks: range) -> bool:
        """Whether every page of these chunks is; true where the kernel does not tell (a foreign, read-only file)."""
        return self._range is None or all(self._range.in_memory(chunk) for chunk in chunks)

    def read_in_order(self, chunks: range) -> None:
        """Start to read these chunks from start to end, in threads that end with the work or with release().

        An error of the disk ends them silently: whoever takes the row meets it again.
        """
        if self._range is not None:
            self._range.read_in_order(chunks)

    def release(self) -> None:
        """Unmap the files, which stops those who read them ahead. May be called twice."""
        if self._range is not None:
            self._range.release()


def map_chunks(paths: Sequence[Path], block_rows: int, classes: int, dtype: np.dtype[np.generic]) -> ChunkRows:
    """Map chunk files of `block_rows` rows each, the best way that the machine allows.

    Raises FileNotFoundError, AddressSpaceExhausted.
    """
    row_bytes = classes * dtype.itemsize
    alignments: tuple[tuple[Literal["huge", "page"], int], ...]
    alignments = (("huge", HUGE_PAGE_BYTES), ("page", mmap.PAGESIZE))
    for kind, alignment in alignments:
        stride_bytes = math.lcm(alignment, row_bytes)
        stride_bytes *= -(-block_rows * row_bytes // stride_bytes)
        mapped = _map_all(paths, block_rows * row_bytes, stride_bytes, alignment)
        if mapped is not None:
            rows = mapped.array(dtype).reshape(-1, classes)
            return ChunkRows(rows, stride_bytes // row_bytes, kind, mapped)
    return ChunkRows(_load_all(paths, block_rows, classes, dtype), block_rows, "loaded")


class _Range:
    """A reserved range of addresses with files in it; unmapped by release() or by the garbage collector."""

    def __init__(self, size_bytes: int, alignment: int) -> None:
        """Raises OSError (ENOMEM) when there is no such range."""
        self.size_bytes = size_bytes
        reserved_bytes = size_bytes + alignment
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _mmap(None, reserved_bytes, _PROT_NONE, flags, -1)
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
        """Put the first bytes of a file at an offset of this range, read-only and shared."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _mmap(self.start + offset_bytes, length_bytes, mmap.PROT_READ, flags, descriptor)
        finally:
            os.close(descriptor)
        self._files.append((self.start + offset_bytes, length_bytes))

    def advise(self, advice: int) -> None:
        """Tell the kernel how the range will be used; it may take no notice."""
        _libc.madvise(self.start, self.size_bytes, advice)

    def prefetch(self, offsets_B: npt.NDArray[np.int64], length_bytes: int) -> None:
        """Have these parts of the range read; where the kernel refuses, a touch will do it."""
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
        """The whole range as a read-only flat array; it does not keep the range alive."""
        buffer = (ctypes.c_ubyte * self.size_bytes).from_address(self.start)
        flat = np.ctypeslib.as_array(buffer).view(dtype)
        flat.flags.writeable = False
        return flat


def _map_all(paths: Sequence[Path], length_bytes: int, stride_bytes: int, alignment: int) -> _Range | None:
    """Every file at its stride, or None where the kernel does not allow it."""
    # A file and the hole behind it are one map each; half of the limit is left to everybody else.
    if 2 * len(paths) > _max_map_count() // 2:
        return None
    try:
        reserved = _Range(len(paths) * stride_bytes, alignment)
        for index, path in enumerate(paths):
            reserved.map_file(path, index * stride_bytes, length_bytes)
        if alignment == HUGE_PAGE_BYTES:
            reserved.advise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        # ENODEV: a file system that cannot map files at all.
        if error.errno not in (errno.ENOMEM, errno.ENODEV):
            raise
        return None
    return reserved


def _load_all(
    paths: Sequence[Path], block_rows: int, classes: int, dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    """The rows of every file, one chunk after the other, in memory."""
    needed_bytes = len(paths) * block_rows * classes * dtype.itemsize
    refusal = (
        f"{len(paths)} chunk files ({needed_bytes} bytes) can neither be mapped nor loaded: raise "
        "vm.max_map_count or RLIMIT_AS, or use a machine with more memory"
    )
    if needed_bytes > memory_bytes():
        raise AddressSpaceExhausted(refusal)
    try:
        rows = np.empty((len(paths) * block_rows, classes), dtype)
    except MemoryError:
        raise AddressSpaceExhausted(refusal) from None
    for index, path in enumerate(paths):
        with path.open("rb") as file:
            file.readinto(rows[index * block_rows : (index + 1) * block_rows].view(np.uint8).data)
    rows.flags.writeable = False
    return rows


def memory_bytes(limits: Sequence[Path] = _MEMORY_LIMITS) -> int:
    """The machine's memory, or the least of the limits (files that hold a number or "max") on it.

    psutil tells the machine's alone, and a container's limit is what counts.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE]
    for path in limits:
        with contextlib.suppress(OSError, ValueError):  # no such limit; "max"
            found.append(int(path.read_text()))
    return min(found)


def _mmap(address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
    result = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if result == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {length} bytes: {os.strerror(number)}")
    return int(result)


def _max_map_count() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:
        return 65530  # the kernel's default
