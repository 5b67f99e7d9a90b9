"""A student's step on the cache, and with the teacher in the loop: ``python -m tests.benchmarks.epoch [--json FILE]``.

Three loops train the same student with the same optimizer, precision and threads. They take turns within one process,
and each row of the table, which is one of ``--parts`` and takes a minute, has a process of its own:

- floor: cross-entropy on batches that lie ready in memory as float32, channels last; nothing is augmented, normalised,
  checked or counted on the way. What any loop over this student costs.
- cache: ``train_run`` itself with method kd on a cache of two views (crop_flip, padded by 4). A step is everything from
  one batch to the next: pictures, cached logits, student, loss, checks, update, metrics.
- live: the usual loop, which runs the teacher forward at every step, on the floor's batches. The teacher is a torch
  module in evaluation mode, without gradient.

cache / floor is what the service adds to a step, live / cache what it saves. If both networks computed equally fast,
live / floor would be 1 + F_T / (3 F_S), where F counts the operations of a forward pass. The data are those of
``tests.benchmarks.training``.

On a GPU all three train in the precision that the run chooses. The run's step is replayed as a CUDA graph there, the
others' are not, so the two ratios say more than what a step has to do; the bars are for a CPU.

Shapes: B batch, C classes; x_BKHW pictures, y_B labels, z_BC logits.
"""

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from store import CacheReader
from tests.benchmarks.bench import EITHER, Options, Timing, options, show, synchronize, write
from tests.benchmarks.training import (
    CE_WEIGHT,
    CLASSES,
    KD_WEIGHT,
    SAMPLES,
    SIDE,
    TEMPERATURE,
    WARM_UP_STEPS,
    write_data,
)
from workers.augmentation.apply import to_input
from workers.config.job import StudentSpec
from workers.config.task import TrainingTask
from workers.config.training import Sgd, Training
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.errors import Stopped
from workers.events import ignore
from workers.precision import Precision, choose_precision
from workers.students.build import build_student
from workers.training.feed.batches import student_preprocessing
from workers.training.loop import train_run
from workers.training.training_feed import TrainingFeed

READY_BATCHES = 64
"""For the loops that prepare none: at least 50 MB, more than a processor's caches hold."""

MOST_ROUNDS = 300
"""So few that all are in one epoch, at any batch size measured here."""

STEPS_TOGETHER = 16
"""Of a loop, whose mean is one figure: the run makes several batches at once, and adds up its metrics now and then."""

MOST_ADDED, LEAST_SAVED = 1.05, 0.9
"""Of cache / floor; and of live / cache as a share of what the counted operations promise."""

PAIRS = (("resnet56", "resnet8"), ("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
BATCHES = (64, 128)
PARTS = {f"{student}-{batch}": (teacher, student, batch) for batch in BATCHES for teacher, student in PAIRS}

LOOPS = ("floor", "cache", "live")


@dataclass(frozen=True)
class Plan:
    """A row of the table.

    Attributes:
        order: of the run on the cache; names the student and the batch size.
        device: that it trains on.
        seconds: how long the loops take turns, if ``MOST_ROUNDS`` do not end it earlier.
    """

    teacher: str
    order: TrainingTask
    device: torch.device
    seconds: float

    @property
    def student(self) -> str:
        return self.order.run.student.name

    @property
    def batch(self) -> int:
        return self.order.training.batch_size


@dataclass(frozen=True)
class Cell:
    """What was measured of a plan.

    Attributes:
        precision: that all loops train in.
        steps: by loop, means of ``STEPS_TOGETHER``; the n-th of each were made in the same rounds.
        start: what an epoch on the cache does before its first batch is there, and that batch.
        predicted: live / floor by counted operations.
    """

    plan: Plan
    precision: Precision
    steps: Mapping[str, Timing]
    start: Timing
    predicted: float

    def ratio(self, loop: str, to: str) -> float:
        return self.steps[loop].median_s / self.steps[to].median_s

    def spread(self, loop: str, to: str) -> float:
        """Half of the interquartile range of the ratio, round by round."""
        ratios = [a / b for a, b in zip(self.steps[loop].seconds, self.steps[to].seconds, strict=True)]
        return Timing(ratios).spread_s

    @property
    def start_share(self) -> float:
        """The start of an epoch on the cache, as a share of its steps."""
        return self.start.median_s / (self.steps["cache"].median_s * SAMPLES / self.plan.batch)


# -------------------------------------------------------------------------------------------------------- what is timed


def network(name: str, device: torch.device) -> nn.Module:
    """As ``train_run`` builds it."""
    torch.manual_seed(0)
    made = build_student(name, CLASSES, in_channels=3, image_side=SIDE).to(device)
    return made.to(memory_format=torch.channels_last)


def ready_batches(feed: TrainingFeed, train: Dataset) -> list[tuple[Tensor, Tensor]]:
    """(x_BKHW, y_B) of an epoch's first steps, as the student gets them."""
    preprocessing = student_preprocessing(train, (SIDE, SIDE))
    batches = itertools.islice(feed.epoch(0), READY_BATCHES)
    return [(to_input(batch.views[0].images, preprocessing, channels_last=True), batch.labels) for batch in batches]


def hand_written(
    student: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    precision: Precision,
) -> Callable[[], None]:
    """A step of a loop without any trimmings; ``loss`` is told x_BKHW, y_B and the student's z_BC."""
    device = batches[0][0].device
    chosen = Sgd()
    optimizer = torch.optim.SGD(
        student.parameters(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
    )
    turns = itertools.cycle(batches)

    def step() -> None:
        x_BKHW, y_B = next(turns)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            z_BC = student(x_BKHW)
            value = loss(x_BKHW, y_B, z_BC)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        optimizer.step()

    return step


def cross_entropy(_: Tensor, y_B: Tensor, z_BC: Tensor) -> Tensor:
    return F.cross_entropy(z_BC, y_B)


def distilled(teacher: nn.Module, x_BKHW: Tensor, y_B: Tensor, z_BC: Tensor) -> Tensor:
    """Cross-entropy and KL, as the usual repositories of distillation methods write them."""
    with torch.no_grad():
        z_t_BC = teacher(x_BKHW)
    log_q_BC = F.log_softmax(z_BC / TEMPERATURE, dim=1)
    p_BC = F.softmax(z_t_BC / TEMPERATURE, dim=1)
    kl = F.kl_div(log_q_BC, p_BC, reduction="none").sum(1).mean() * TEMPERATURE**2
    return CE_WEIGHT * F.cross_entropy(z_BC, y_B) + KD_WEIGHT * kl


def operations(counted: nn.Module, x_BKHW: Tensor) -> int:
    """Of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(x_BKHW)
    return int(counter.get_total_flops())


def turns(others: Mapping[str, Callable[[], None]], plan: Plan, steps: Mapping[str, Timing]) -> Iterator[bool]:
    """What ``train_run`` is answered when it asks, before each batch, whether to stop.

    While it waits for the answer the other loops make their steps; its own lies between two answers. Every round has
    one step of each loop, in another order.
    """
    generator, order = random.Random(0), list(LOOPS)
    warm_up, sums = WARM_UP_STEPS[plan.device.type], dict.fromkeys(LOOPS, 0.0)
    end = time.perf_counter() + plan.seconds
    for number in range(MOST_ROUNDS):
        generator.shuffle(order)
        for name in order:
            synchronize(plan.device)
            started = time.perf_counter()
            if name == "cache":
                yield False
            else:
                others[name]()
            synchronize(plan.device)
            if number >= warm_up:
                sums[name] += time.perf_counter() - started
        made = number + 1 - warm_up
        if made > 0 and made % STEPS_TOGETHER == 0:
            for name in LOOPS:
                steps[name].seconds.append(sums[name] / STEPS_TOGETHER)
                sums[name] = 0.0
            if time.perf_counter() > end and made >= 2 * STEPS_TOGETHER:
                break
    yield True


def measure(plan: Plan) -> Cell:
    """One row of the table, in a process of its own."""
    order, device = plan.order, plan.device
    assert order.train_cache is not None
    torch.set_num_threads(order.threads)
    train = open_prepared(order.folders.datasets, order.train_fingerprint)
    reader = CacheReader(order.folders.caches, order.train_cache)
    feed = TrainingFeed(train, order.views, reader, plan.batch, order.run.seed, device)
    batches = ready_batches(feed, train)
    teacher = network(plan.teacher, device).eval()
    student = network(plan.student, device)
    forward_teacher, forward_student = (operations(counted, batches[0][0]) for counted in (teacher, student))
    picture, is_replayed = (3, SIDE, SIDE), device.type == "cuda"
    precision, _ = choose_precision(
        order.training.precision, device, student, plan.batch, picture, is_replayed=is_replayed
    )
    others = {
        "floor": hand_written(student, batches, cross_entropy, precision),
        "live": hand_written(network(plan.student, device), batches, partial(distilled, teacher), precision),
    }
    steps = {name: Timing() for name in LOOPS}
    answers = turns(others, plan, steps)
    with contextlib.suppress(Stopped):
        train_run(order, ignore, lambda: next(answers))
    start = Timing()
    for epoch in range(1, 6):
        started = time.perf_counter()
        next(feed.epoch(epoch))
        synchronize(device)
        start.seconds.append(time.perf_counter() - started)
    return Cell(plan, precision, steps, start, 1 + forward_teacher / (3 * forward_student))


# --------------------------------------------------------------------------------------------------------- what is told


def plans(given: Options, folder: Path) -> list[Plan]:
    """The rows of the table."""
    seconds = 1.0 if given.quick else 50.0
    order = write_data(folder, torch.get_num_threads())
    made = []
    for teacher, student, batch in (PARTS[name] for name in given.parts):
        training = Training(epochs=2, batch_size=batch, device=given.device.type)
        run = order.run.model_copy(update={"student": StudentSpec(name=student)})
        changed = {"run": run, "training": training, "folder": folder / f"{student}-{batch}"}
        made.append(Plan(teacher, order.model_copy(update=changed), given.device, seconds))
    return made


def title(cell: Cell) -> str:
    return f"{cell.plan.teacher} to {cell.plan.student} at B={cell.plan.batch}"


def row(cell: Cell) -> list[str]:
    return [
        title(cell),
        *(f"{cell.steps[loop].median_s:.4f}" for loop in LOOPS),
        f"{cell.ratio('cache', 'floor'):.3f} ±{cell.spread('cache', 'floor'):.3f}",
        f"{cell.ratio('live', 'cache'):.2f} ±{cell.spread('live', 'cache'):.2f}",
        f"{cell.predicted:.2f}",
    ]


def verdict(cells: list[Cell]) -> str:
    """Which rows miss which bar."""
    missed = []
    for cell in cells:
        added, saved = cell.ratio("cache", "floor"), cell.ratio("live", "cache")
        least = LEAST_SAVED * cell.predicted
        if added > MOST_ADDED:
            missed.append(f"{title(cell)}: cache/floor {added:.3f}")
        if saved < least:
            missed.append(f"{title(cell)}: live/cache {saved:.2f}, not {least:.2f}")
    bars = f"cache/floor at most {MOST_ADDED:g}; live/cache at least {LEAST_SAVED:g} of 1 + F_T/(3 F_S)"
    return f"On two cores, {bars}: {'missed by ' + '; '.join(missed) if missed else 'all rows hold'}"


def as_json(cell: Cell) -> dict[str, object]:
    """The row's figures; times in seconds."""
    plan = cell.plan
    return {
        "teacher": plan.teacher,
        "student": plan.student,
        "batch": plan.batch,
        "precision": cell.precision,
        "steps": len(cell.steps["cache"].seconds) * STEPS_TOGETHER,
        "median_s": {loop: cell.steps[loop].median_s for loop in LOOPS},
        "cache_to_floor": cell.ratio("cache", "floor"),
        "cache_to_floor_spread": cell.spread("cache", "floor"),
        "live_to_cache": cell.ratio("live", "cache"),
        "live_to_cache_spread": cell.spread("live", "cache"),
        "live_to_floor_by_operations": cell.predicted,
        "epoch_start_s": cell.start.median_s,
        "epoch_start_share": cell.start_share,
    }


def main() -> None:
    told = "A student's step on the cache, beside the bare one and the one with the teacher in the loop."
    given = options(told, tuple(PARTS), tuple(PARTS)[:1], devices=EITHER)
    cells = []
    with TemporaryDirectory() as folder:
        for plan in plans(given, Path(folder)):
            # A process of its own: no row inherits what another left in the allocator or in torch's caches.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                cells.append(process.submit(measure, plan).result())
    print(
        f"Seconds of a step: medians of means of {STEPS_TOGETHER} rounds, ± half the interquartile range of their "
        f"ratios; {CLASSES} classes"
    )
    show(["", *(f"{loop}>" for loop in LOOPS), "cache/floor>", "live/cache>", "1 + F_T/(3 F_S)>"], map(row, cells))
    print(f"What an epoch on the cache does before its first step: {max(cell.start_share for cell in cells):.2%} of it")
    print(verdict(cells))
    write(given, {"benchmark": "epoch", "cells": [as_json(cell) for cell in cells]})


if __name__ == "__main__":
    main()
