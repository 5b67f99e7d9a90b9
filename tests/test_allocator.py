"""The C library's allocator in a training process: what is freed stays, until it is given back."""

import ctypes
import json
import subprocess
import sys

import pytest

_CHILD = """
import json, mmap, resource, sys, threading
import numpy as np
from workers import allocator

BLOCK, BLOCKS = 2 << 20, 40

def step():
    blocks = [np.empty(BLOCK, np.uint8) for _ in range(BLOCKS)]
    for block in blocks:
        block.fill(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

def measure():
    step()
    found["as it comes"] = faults(3)
    assert allocator.keep_freed_memory()
    step()
    found["kept"] = faults(3)
    held = resident()
    allocator.give_back_freed_memory()
    found["given back"] = held - resident()

found = {}
if sys.argv[1] == "thread":
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
else:
    measure()
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_not_fetched_anew_in_every_step_and_is_given_back_in_the_end(where: str) -> None:
    """Actors train in a thread, whose arena is another than the main one."""
    done = subprocess.run([sys.executable, "-c", _CHILD, where], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    pages = 40 * (2 << 20) / 4096
    assert found["as it comes"] > 0.2 * pages
    assert found["kept"] < 0.05 * pages
    assert found["given back"] > 0.5 * pages * 4096
