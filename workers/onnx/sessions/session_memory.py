"""Memory of a session of ONNX Runtime, by the size of its file and the machine's memory. Nothing of it is imported."""

from pathlib import Path

from store.memory_limit import memory_bytes
from workers.onnx.checks.check import size_of
from workers.onnx.versions import RUNTIME_BYTES

# ONNX Runtime holds the file, its parsed form, and the weights once more in the layout of its kernels.
FILE_COPIES = 5
# Of the machine's memory, all sessions that are at work beside each other together.
MEMORY_SHARE = 0.5


def share_bytes() -> int:
    """Bytes of the machine's memory that all sessions may take together."""
    return int(MEMORY_SHARE * memory_bytes())


def needed_bytes(path: Path) -> int:
    """Address space of a session on any file of that size: the file, which may be mapped, and copies of it.

    The copies take the sessions' share of the machine's memory at most: a large file may be padding.
    """
    size_bytes = size_of(path)
    return RUNTIME_BYTES + size_bytes + min((FILE_COPIES - 1) * size_bytes, share_bytes())


def sessions_max(path: Path) -> int:
    """Number of sessions on one file, at least one, whose weights fit into the sessions' share of the memory.

    Each may hold them once more in the layout of its kernels, whatever of the file all of them map.
    """
    return max(1, share_bytes() // max(1, size_of(path)))
