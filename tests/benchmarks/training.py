"""Training runs as the benchmarks measure them: random data of CIFAR's size, orders for runs on it, seconds of a step.

Weights, pictures and logits are random, and cost what any others do.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from store import CacheSpec, CacheWriter
from tests.benchmarks.bench import synchronize
from workers.config.job import RunSpec, StudentSpec
from workers.config.task import Folders, TrainingTask
from workers.config.training import Training
from workers.config.views import CropFlip, Views
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset
from workers.errors import Stopped
from workers.events import Emit, ignore
from workers.methods.catalog import parse_method
from workers.training.loop import train_group
from workers.training.run_handle import RunHandle

SAMPLES, CLASSES, SIDE = 50_000, 100, 32
CE_WEIGHT, KD_WEIGHT, TEMPERATURE = 0.1, 0.9, 4.0
STUDENT = "resnet8"
METHOD = {"preset": "kd", "ce_weight": CE_WEIGHT, "kd_weight": KD_WEIGHT, "temperature": TEMPERATURE}
VIEWS = Views(augmentation=CropFlip(pad=4), count=2)

WARM_UP_STEPS = {"cpu": 3, "cuda": 8}
"""On a GPU a run records its step meanwhile, and compares the first replays."""


def write_data(
    folder: Path, threads: int, samples: int = SAMPLES, *, test_samples: int = CLASSES, side: int = SIDE
) -> TrainingTask:
    """Prepare random pictures, and fill caches with random logits of their views: an order for them."""
    generator = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, rows in (("train", samples), ("test", test_samples)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(rows) % CLASSES
    np.savez(folder / "pictures.npz", allow_pickle=False, **arrays)
    folders, dataset = Folders(data_dir=folder, data_root=folder), NpzDataset(path="pictures.npz")
    train = prepare(dataset, "train", folder, folders.datasets)
    test = prepare(dataset, "test", folder, folders.datasets)
    return TrainingTask(
        folders=folders,
        run=RunSpec(index=0, student=StudentSpec(name=STUDENT), method=parse_method(METHOD), seed=0),
        training=Training(),
        views=VIEWS,
        train_fingerprint=train.fingerprint,
        test_fingerprint=test.fingerprint,
        train_cache=write_cache(folders.caches, train, VIEWS),
        test_cache=write_cache(folders.caches, test, Views()),
        folder=folder / "run",
        threads=threads,
    )


def write_cache(root: Path, dataset: Dataset, views: Views, classes: int = CLASSES) -> CacheSpec:
    """Fill a cache over the views of a split with random logits."""
    spec = CacheSpec(
        teacher_sha256="0" * 64,
        teacher_output="logits",
        output_kind="logits",
        dataset_fingerprint=dataset.fingerprint,
        split=dataset.split,
        samples=dataset.samples,
        classes=classes,
        preprocessing={},
        augmentation=views.augmentation.model_dump(mode="json"),
        augmentation_seed=views.seed,
        views=views.count,
        dtype="float16",
    )
    generator, writer = np.random.default_rng(0), CacheWriter(root, spec)
    for block in writer.pending_blocks():
        _, start, stop = spec.block_range(block)
        writer.write_block(block, generator.normal(0.0, 3.0, (stop - start, classes)).astype(np.float32))
    writer.finish()
    return spec


def train_steps(order: TrainingTask, before_step: Callable[[int], bool], emit: Emit = ignore) -> RunHandle:
    """A run for ``train_group`` that calls ``before_step`` with 0, 1, 2 ... and ends where that returns true."""
    asked = iter(range(2**63))
    return RunHandle(order, emit, lambda: before_step(next(asked)))


def seconds_of_step(
    orders: Sequence[TrainingTask],
    warm_up: int,
    steps: int,
    *,
    emit: Emit = ignore,
    before_clock: Callable[[], object] | None = None,
) -> float:
    """Seconds that a step of all these runs takes in one group: the mean of so many, after some that do not count.

    On a GPU the clock is read when its work is done, before and after the counted steps and not between them.

    Args:
        before_clock: called when the steps that do not count are done.

    Raises:
        Exception: what has ended a run.
    """
    device, end = torch.device(orders[0].training.device), warm_up + steps
    times: list[float] = []

    def before_step(number: int) -> bool:
        if number in (warm_up, end):
            synchronize(device)
            if number == warm_up and before_clock is not None:
                before_clock()
            times.append(time.perf_counter())
        return number >= end

    # They are asked in every step after the first.
    others = [train_steps(order, lambda number: number >= end, emit) for order in orders[1:]]
    for _, how in train_group([train_steps(orders[0], before_step, emit), *others]):
        if isinstance(how, Exception) and not isinstance(how, Stopped):
            raise how
    return (times[1] - times[0]) / steps
