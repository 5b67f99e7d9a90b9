"""How much memory this process has, as the kernel counts it. Without torch, for processes that are measured."""

import re
from pathlib import Path


def own_bytes(field: str, file: str, pid: int | None = None) -> int:
    """A figure of /proc/self/FILE, or another process's, that is in kB: RssAnon of status, Pss of smaps_rollup."""
    text = Path("/proc", "self" if pid is None else str(pid), file).read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
