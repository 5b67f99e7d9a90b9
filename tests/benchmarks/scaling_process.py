"""``python -m tests.benchmarks.scaling_process write|read FOLDER SAMPLES CLASSES``: one measurement, without torch.

``write`` makes a cache of one view in the folder, ``read`` opens it and gathers an epoch of shuffled batches. Each
prints one JSON object: seconds, and the most memory of its own that the process had beyond what it began with. That is
its anonymous pages (RssAnon), so neither mapped files nor the page cache, looked at every few milliseconds. The logits
that are written and the order of the epoch are the caller's, and there before it begins.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from store import CacheReader, CacheSpec, CacheWriter
from tests.benchmarks.memory import own_bytes
from tests.support.store_cases import make_spec

BATCH = 256
LOOK_EVERY_S = 0.004
OPENINGS, ROW_MAPS, EPOCHS = 5, 3, 3


def spec_of(samples: int, classes: int) -> CacheSpec:
    """A cache of one view, float16."""
    return make_spec(samples=samples, classes=classes)


def private_bytes() -> int:
    """Anonymous memory of this process."""
    return own_bytes("RssAnon", "status")


@contextmanager
def watched(figures: dict[str, float]) -> Iterator[Sequence[int]]:
    """Note the most that ``private_bytes`` grew by while the body ran, which is given what it was at every look."""
    done, before = threading.Event(), private_bytes()
    seen = [before]

    def look() -> None:
        while not done.wait(LOOK_EVERY_S):
            seen.append(private_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    yield seen
    seen.append(private_bytes())
    done.set()
    watcher.join()
    figures["private_bytes"] = max(seen) - before


def seconds(call: Callable[[], object], times: int) -> float:
    """Median of some calls."""
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return median(spent)


def write(folder: Path, spec: CacheSpec) -> dict[str, float]:
    """``write_s``: every block, its statistics, checksums and fsync included, and the end."""
    rows = min(spec.block_rows, spec.samples)
    block_RC = np.random.default_rng(0).normal(0, 1.5, (rows, spec.classes)).astype(np.float32)
    figures: dict[str, float] = {}

    def fill() -> None:
        writer = CacheWriter(folder, spec)
        for block in writer.pending_blocks():
            _, start, stop = spec.block_range(block)
            writer.write_block(block, block_RC[: stop - start])
        writer.finish()

    with watched(figures):
        figures["write_s"] = seconds(fill, times=1)
    return figures


def read(folder: Path, spec: CacheSpec) -> dict[str, float]:
    """``open_s``, ``row_map_s`` and ``epoch_s``; the first epoch is not timed."""
    order_N = np.random.default_rng(1).permutation(spec.samples)
    batch_BC = np.empty((BATCH, spec.classes), spec.numpy_dtype)
    figures: dict[str, float] = {}

    with watched(figures):
        figures["open_s"] = seconds(lambda: CacheReader(folder, spec).close(), OPENINGS)
        with CacheReader(folder, spec) as reader:
            figures["row_map_s"] = seconds(lambda: reader.row_map(0, order_N), ROW_MAPS)
            rows = reader.row_map(0, order_N)

            def epoch() -> None:
                for start in range(0, spec.samples, BATCH):
                    rows.gather(start, start + BATCH, batch_BC[: spec.samples - start])

            epoch()
            figures["epoch_s"] = seconds(epoch, EPOCHS)
    return figures


def main() -> None:
    folder, spec = Path(sys.argv[2]), spec_of(int(sys.argv[3]), int(sys.argv[4]))
    measure = {"write": write, "read": read}[sys.argv[1]]
    sys.stdout.write(json.dumps(measure(folder, spec)) + "\n")


if __name__ == "__main__":
    main()
