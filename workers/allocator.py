"""The C library's memory allocator: freed memory is kept for the next training step, not given back and fetched anew.

glibc returns large blocks to the system when they are freed. A step frees all of its activations and the next one wants
as much, so the system clears the same pages for every step: 2,000 to 7,000 page faults a step of resnet8 at batch
sizes 64 and 128, 8 % of its processor time. GPUs have torch's own cache of blocks, which does the same.
"""

import ctypes

# Of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_NEVER, _MOST = -1, 2**31 - 1
# A thread has an arena made of heaps of so much; with less room asked for, one that is empty is unmapped.
_HEAP_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, up to ``give_back_freed_memory``; False where the C library is another."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    wanted = ((_TRIM_THRESHOLD, _NEVER), (_MMAP_THRESHOLD, _MOST), (_TOP_PAD, _HEAP_BYTES))
    return all(bool(library.mallopt(name, value)) for name, value in wanted)


def give_back_freed_memory() -> None:
    """Return what is free now to the system."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))
