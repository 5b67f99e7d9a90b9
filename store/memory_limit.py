"""Memory that this process may use: the machine's, or the least of the limits of its container."""

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

# Files with the limit of this process's container: cgroup v2, cgroup v1.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory_bytes(limits: Sequence[Path] = _MEMORY_LIMITS) -> int:
    """Bytes of the machine's memory, or the least of the limits (files that hold a number or "max") on it.

    psutil has the machine's alone, and a container's limit is what counts.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE]
    for path in limits:
        with contextlib.suppress(OSError, ValueError):  # no such limit; "max"
            found.append(int(path.read_text()))
    return min(found)
