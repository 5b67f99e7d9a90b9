"""Many students, one cache: ``python -m tests.benchmarks.students [--json FILE] [--quick]``.

- memory: up to four processes train students on the same dataset and cache; each has read every picture and every
  logit before it is measured. "Total" is the sum of their PSS (a page that n processes map counts 1/n in each), "data"
  the part of it that lies in the files of pictures and logits, over the bytes of those files: 1.0 is one copy for all.
  On a CPU, whatever the device of the rest.
- group: resnet8 by several methods in one process, by ``train_group``, instead of one after the other: time of the same
  steps.

The data are those of ``tests.benchmarks.training``.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from store import CacheReader
from tests.benchmarks.bench import EITHER, options, show, write
from tests.benchmarks.memory import own_bytes
from tests.benchmarks.training import WARM_UP_STEPS, seconds_of_step, train_steps, write_data
from workers.config.task import TrainingTask
from workers.config.training import Training
from workers.data.preparation.prepared import open_prepared
from workers.methods.catalog import parse_method
from workers.training.loop import train_group
from workers.training.training_feed import TrainingFeed

PROCESSES = (1, 2, 3, 4)
GROUPS = (1, 2, 4)
METHODS = ("kd", "dkd", "normkd", "dtkd")
MiB = 1 << 20


# -------------------------------------------------------------------------------------------------------------- memory


def mapped(files: Sequence[Path]) -> int:
    """PSS in bytes of this process's mappings of files in these folders."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split(maxsplit=5)
        if not name.endswith(":"):
            counts = len(values) == 5 and any(values[4].startswith(f"{folder}/") for folder in files)
        elif name == "Pss:" and counts:
            total += int(values[0]) << 10
    return total


def reader_process(order: TrainingTask) -> None:
    """Read everything, train a little; then, line by line from standard input, report memory until it ends."""
    torch.set_num_threads(1)
    train = open_prepared(order.folders.datasets, order.train_fingerprint)
    assert order.train_cache is not None
    reader = CacheReader(order.folders.caches, order.train_cache)
    feed = TrainingFeed(train, order.views, reader, 256, 0, torch.device("cpu"))
    for epoch in range(order.train_cache.views):
        for _ in feed.epoch(epoch):
            pass
    list(train_group([train_steps(order, lambda number: number >= 3)]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        files = [train.path, reader.path]
        sys.stdout.write(json.dumps({"pss": own_bytes("Pss", "smaps_rollup"), "data": mapped(files)}) + "\n")
        sys.stdout.flush()


def measure_processes(order: TrainingTask, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Bytes of so many processes together, ``pss`` and ``data``."""
    found: dict[int, dict[str, float]] = {}
    running: list[subprocess.Popen[str]] = []
    try:
        for number in range(1, max(counts) + 1):
            local_slice = order.model_copy(update={"folder": order.folder / f"process-{number}", "threads": 1})
            command = [sys.executable, "-m", "tests.benchmarks.students", "--process", local_slice.model_dump_json()]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            running.append(process)
            assert process.stdout.readline() == "ready\n"
            if number in counts:
                told = [ask(each) for each in running]
                found[number] = {name: sum(one[name] for one in told) for name in ("pss", "data")}
    finally:
        for process in running:
            process.communicate()
    return found


def ask(process: "subprocess.Popen[str]") -> dict[str, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("now\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


# --------------------------------------------------------------------------------------------------------------- group


def measure_groups(
    order: TrainingTask, sizes: Sequence[int], warm_up: int, steps: int, rounds: int
) -> dict[int, dict[str, float]]:
    """By size of the group: ``ratio`` of its time to that of its runs apart."""

    def orders(size: int) -> list[TrainingTask]:
        runs = [order.run.model_copy(update={"method": parse_method(name)}) for name in METHODS[:size]]
        return [order.model_copy(update={"run": run, "folder": order.folder / run.method.label}) for run in runs]

    ratios: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size in sizes:
            apart = sum(seconds_of_step([each], warm_up, steps) for each in orders(size))
            together = seconds_of_step(orders(size), warm_up, steps)
            if number:
                ratios[size].append(together / apart)
    return {size: {"ratio": median(values)} for size, values in ratios.items()}


# ---------------------------------------------------------------------------------------------------------------- told


def told_memory(memory: Mapping[int, Mapping[str, float]], data_bytes: int) -> list[tuple[str, ...]]:
    rows, before = list[tuple[str, ...]](), 0.0
    for count, figures in memory.items():
        extra = f"{(figures['pss'] - before) / MiB:,.0f}"
        rows.append((str(count), f"{figures['pss'] / MiB:,.0f}", extra, f"{figures['data'] / data_bytes:.2f}"))
        before = figures["pss"]
    return rows


def on_device(order: TrainingTask, device: str) -> TrainingTask:
    return order.model_copy(update={"training": Training(device=device)})


def main() -> None:
    if sys.argv[1:2] == ["--process"]:
        reader_process(TrainingTask.model_validate_json(sys.argv[2]))
        return
    given = options("What another student on the same cache costs.", ("memory", "group"), ("group",), devices=EITHER)
    figures: dict[str, object] = {}
    with TemporaryDirectory() as folder:
        order = on_device(write_data(Path(folder), torch.get_num_threads()), "cpu")
        assert order.train_cache is not None
        train = open_prepared(order.folders.datasets, order.train_fingerprint)
        logits_bytes = order.train_cache.views * order.train_cache.samples * order.train_cache.row_bytes
        data_bytes = train.samples * math.prod(train.picture_shape) + logits_bytes
        if "memory" in given.parts:
            memory = measure_processes(order, PROCESSES)
            figures["memory"] = {"data_bytes": data_bytes, "processes": memory}
            print(f"Memory in MiB; pictures and logits are {data_bytes / MiB:,.0f}")
            show(("processes>", "total PSS>", "of the last>", "data (copies)>"), told_memory(memory, data_bytes))
        if "group" in given.parts:
            sizes, steps, rounds = (GROUPS[:2], 3, 1) if given.quick else (GROUPS, 25, 5)
            warm_up = WARM_UP_STEPS[given.device.type]
            groups = measure_groups(on_device(order, given.device.type), sizes, warm_up, steps, rounds)
            figures["groups"] = groups
            print("A group of students in one process")
            show(("students>", "time / apart>"), [(str(size), f"{each['ratio']:.3f}") for size, each in groups.items()])
    write(given, figures)


if __name__ == "__main__":
    main()
