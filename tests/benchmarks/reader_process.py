"""``python -m tests.benchmarks.reader_process KIND PATH SAMPLES CLASSES``: one of several readers, without torch.

It reads every row once, in batches of 256 in an order of its own, says so on a line, and for every line that it is
sent answers how much memory is its own: PSS in kB, in which a page that n processes share counts 1/n for each.
"""

import sys
from pathlib import Path

import numpy as np

from store import CacheReader
from tests.benchmarks.memory import own_bytes


def main() -> None:
    kind, path, samples, classes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    order = np.random.default_rng().permutation(samples)
    batch = np.empty((256, classes), np.float16)
    if kind == "store":
        reader = CacheReader.from_key(path.parent, path.name)
        rows = reader.row_map(0, order)
        for start in range(0, samples - 255, 256):
            rows.gather(start, start + 256, batch)
    else:
        logits_NC = np.memmap(path, np.float16, "r", shape=(samples, classes))
        if kind == "copy":
            logits_NC = np.array(logits_NC)
        for start in range(0, samples - 255, 256):
            np.take(logits_NC, order[start : start + 256], axis=0, out=batch, mode="clip")
    del order
    sys.stdout.write("read\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(f"{own_bytes('Pss', 'smaps_rollup') >> 10}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
