"""Arrays in memory that a process shares with a confined child: a batch is written once and never copied.

The memory has a descriptor and no name; the child inherits the descriptor and can neither resize nor name it. Arrays
lie in slots, each mapped by itself; a slot is used again once nothing refers to its array any more, so a stage that
keeps few batches in flight has few of them, with their pages in place.
"""

import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

_ALIGNMENT = 1 << 21  # of slots, so that the kernel can take huge pages for them


class Slot(NamedTuple):
    """A range of the shared memory, in bytes."""

    offset: int
    size: int


class _Lent:
    """Owner of a slot: an array in it, and every view of that, refers to it."""

    def __init__(self, mapped: mmap.mmap, shape: Sequence[int], dtype: np.dtype[np.number]) -> None:
        whole = np.frombuffer(mapped, dtype, count=int(np.prod(shape)))
        self.__array_interface__ = {**whole.__array_interface__, "shape": tuple(shape), "strides": None}
        self._whole = whole


class SharedArrays:
    """Shared arrays, the parent's side: arrays to be filled and then named to the child by their offset.

    Attributes:
        descriptor: of the memory, to be inherited.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("retort-batches", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # A child that could cut it short would have every access end this process.
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._lock = threading.Lock()
        self._size = 0
        self._slots: dict[Slot, mmap.mmap] = {}
        self._addresses: dict[Slot, int] = {}
        # Appended to by finalizers, at any moment and in any thread: no lock is taken there.
        self._free: list[Slot] = []
        self._close = weakref.finalize(self, os.close, self.descriptor)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.number]:
        """Make an uninitialised C-contiguous array."""
        kind: np.dtype[Any] = np.dtype(dtype)
        needed = max(1, int(np.prod(shape)) * kind.itemsize)
        with self._lock:
            slot = next((each for each in self._free if needed <= each.size <= 2 * needed + _ALIGNMENT), None)
            if slot is not None:
                self._free.remove(slot)
            else:
                slot = self._add(-(-needed // _ALIGNMENT) * _ALIGNMENT)
        lent = _Lent(self._slots[slot], shape, kind)
        weakref.finalize(lent, self._free.append, slot).atexit = False
        return np.asarray(lent)

    def offset_of(self, array: NDArray[np.number]) -> int | None:
        """Offset of a C-contiguous array in bytes; None if it is not one of these."""
        address = int(array.__array_interface__["data"][0])
        for slot, start in [*self._addresses.items()]:
            if start <= address and address + array.nbytes <= start + slot.size and array.flags.c_contiguous:
                return slot.offset + address - start
        return None

    def close(self) -> None:
        """Close the descriptor; existing arrays stay."""
        self._close()

    def _add(self, size: int) -> Slot:
        slot = Slot(self._size, size)
        os.ftruncate(self.descriptor, self._size + size)
        self._size += size
        self._slots[slot] = mmap.mmap(self.descriptor, size, offset=slot.offset)
        self._addresses[slot] = np.frombuffer(self._slots[slot], np.uint8).__array_interface__["data"][0]
        return slot


class SharedReader:
    """Shared arrays, the child's side.

    Args:
        descriptor: that it has inherited.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    def array(self, offset: int, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.number]:
        """The array at this offset, read only."""
        count = int(np.prod(shape))
        end = offset + count * np.dtype(dtype).itemsize
        if self._mapped is None or len(self._mapped) < end:
            self._mapped = mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size, prot=mmap.PROT_READ)
        return np.frombuffer(self._mapped, dtype, count, offset).reshape(shape)
