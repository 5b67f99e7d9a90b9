"""What runs on this machine, by what stands in command lines and environments."""

import os
from collections.abc import Mapping
from pathlib import Path


def processes_with(*texts: str) -> Mapping[int, str]:
    """Every other process that has one of these in its command line or environment: its id and command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(folder.name) != os.getpid() and any(text.encode() in environment + line for text in texts):
            found[int(folder.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def api_process(supervisor: int) -> int:
    """The pid of the API below ``retort serve``."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    [api] = (int(pid) for pid in children if b"\0api\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return api
