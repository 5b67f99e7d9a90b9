"""How much memory this process has, as the kernel counts it. Without torch, for processes that are measured."""

import re
from pathlib import Path


def own_bytes(field: str, file: str) -> int:
    """A figure of /proc/self/FILE that is given in kB, such as RssAnon of status or Pss of smaps_rollup."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
