"""Memory of this machine or of this process's cgroup: bytes in use, and processes killed for want of it."""

import contextlib
from pathlib import Path
from typing import NamedTuple

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class Memory(NamedTuple):
    """Bytes of memory in use, of this machine or of the cgroup, whichever is fuller; page cache counts as free."""

    used: int
    total: int

    def __str__(self) -> str:
        return f"{self.used / 2**30:.1f} of {self.total / 2**30:.1f} GiB"


def oom_kills() -> int:
    """Count the processes of this cgroup that the kernel has killed for want of memory, of any limit.

    Where a cgroup does not count them, of the whole machine; 0 where nothing does.
    """
    for folder, name in ((_cgroup(""), "memory.events"), (_cgroup("memory"), "memory.oom_control")):
        if (count := _counts(folder / name).get("oom_kill")) is not None:
            return count
    return _counts(_PROC / "vmstat").get("oom_kill", 0)


def memory() -> Memory | None:
    """Memory in use and in all; None where the kernel does not say."""
    machine = {name.rstrip(":"): 1024 * count for name, count in _counts(_PROC / "meminfo").items()}
    if "MemTotal" not in machine or "MemAvailable" not in machine:
        return None
    found = [Memory(machine["MemTotal"] - machine["MemAvailable"], machine["MemTotal"])]
    for folder, limit, used, cache in (
        (_cgroup(""), "memory.max", "memory.current", "inactive_file"),
        (_cgroup("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        total, in_use = _number(folder / limit), _number(folder / used)
        if total is not None and in_use is not None and total < machine["MemTotal"]:
            dropped = _counts(folder / "memory.stat").get(cache, 0)
            found.append(Memory(max(0, in_use - dropped), total))
    # Processes are killed for the fuller one.
    return max(found, key=lambda each: each.used / max(1, each.total))


def _cgroup(controller: str) -> Path:
    """The folder of this process's cgroup: version 2 where the controller is empty, else of that one of version 1."""
    top = _CGROUP / controller
    with contextlib.suppress(OSError):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # In a container its own cgroup may be mounted as the topmost one, under a path of the host's.
            if controller in controllers.split(",") and (top / path.lstrip("/")).is_dir():
                return top / path.lstrip("/")
    return top


def _counts(path: Path) -> dict[str, int]:
    """Counts in a file of lines of a name and a number; empty where there is none."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(" ")
            number = rest.split()[:1]
            if number and number[0].isdecimal():
                found[name] = int(number[0])
    return found


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        text = path.read_text().strip()
        return int(text) if text.isdecimal() else None
    return None
