"""Memory map of all chunk files of one array in one address range, as one two-dimensional numpy array.

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

The holes are PROT_NONE: an index into one kills the process. So ``rows`` never leaves this package,
indices are checked before they come here, and nothing here is ever pickled. Files must not be cut
while they are mapped; the writer never does, it replaces them, and a mapping keeps the old file
alive.

Rows that are not in memory yet come one page fault at a time, each with megabytes around it that
the kernel reads ahead. Files that memory cannot hold are slow by orders of magnitude that way: for them
there are ``read_single_pages`` and ``prefetch``. Files that fit are read sooner in order (``read_in_order``) than
by the faults of a random order. See ``store.read_ahead``.
"""

import errno
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from store.errors import AddressSpaceExhausted
from store.mapped_range import MappedRange
from store.memory_limit import memory_bytes

HUGE_PAGE_BYTES = 2 << 20
TOUCH_BYTES = 512  # below this a row is copied as soon as it is looked at


@dataclass(frozen=True)
class ChunkRows:
    """Rows of all chunks of an array: row r of chunk i is ``rows[i * stride_rows + r]``; every other index is a hole.

    Take them with mode "clip": it checks nothing, which indices of rows do not need, and spares a buffered copy.
    ``release`` unmaps at once; ``rows`` must not be touched afterwards. It also runs when nothing
    refers to this object any more.
    """

    rows: npt.NDArray[np.generic]  # [chunks * stride_rows, C]
    stride_rows: int
    kind: Literal["huge", "page", "loaded"]
    _range: MappedRange | None = None

    def touch(self, indices_B: npt.NDArray[np.int64]) -> None:
        """Have both ends of these rows fetched side by side, so that a copy of the rows hardly waits.

        Copying row after row waits for the memory and the page table at each; after this it takes 0.6 times as long
        where pages are small, 0.75 times where they are huge. Does nothing for rows that are short.
        """
        classes = self.rows.shape[1]
        if classes * self.rows.itemsize >= TOUCH_BYTES:
            ends_B2 = indices_B[:, None] * classes + (0, classes - 1)
            self.rows.reshape(-1).take(ends_B2, mode="clip")

    def prefetch(self, indices_B: npt.NDArray[np.int64]) -> None:
        """Start to read these rows in the background.

        1-2 us a row, also for those in memory already. Does nothing where the files are loaded.
        """
        if self._range is not None:
            row_bytes = self.rows.strides[0]
            self._range.prefetch(indices_B * row_bytes, row_bytes)

    def read_single_pages(self) -> None:
        """Let a page fault read no page but its own from now on, for files that memory cannot hold."""
        if self._range is not None:
            self._range.advise(mmap.MADV_NOHUGEPAGE)  # it would take precedence
            self._range.advise(mmap.MADV_RANDOM)

    def in_memory(self, chunks: range) -> bool:
        """Whether all pages of these chunks are in memory; true where the kernel does not say."""
        return self._range is None or all(self._range.in_memory(chunk) for chunk in chunks)

    def read_in_order(self, chunks: range) -> None:
        """Start to read these chunks from start to end, in threads that end with the work or with release().

        An error of the disk ends them silently: taking the row raises it again.
        """
        if self._range is not None:
            self._range.read_in_order(chunks)

    def release(self) -> None:
        """Stop reading ahead and unmap the files. May be called twice."""
        if self._range is not None:
            self._range.release()


def map_chunks(paths: Sequence[Path], block_rows: int, classes: int, dtype: np.dtype[np.generic]) -> ChunkRows:
    """Map chunk files of ``block_rows`` rows each, the best way that the machine allows.

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


def _map_all(paths: Sequence[Path], length_bytes: int, stride_bytes: int, alignment: int) -> MappedRange | None:
    """Map every file at its stride; None where the kernel does not allow it."""
    # A file and the hole behind it are one map each; half of the limit is left to the rest of the process.
    if 2 * len(paths) > _max_map_count() // 2:
        return None
    try:
        reserved = MappedRange(len(paths) * stride_bytes, alignment)
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
    """Load the rows of every file into memory, one chunk after the other."""
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


def _max_map_count() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:
        return 65530  # the kernel's default
