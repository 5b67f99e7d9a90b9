"""What a training step gives the device to do, and whether it waits; called in a process on the fake device.

At B = 64, C = 100 and 32x32 pictures, with resnet8. A run's steps are those that ``train_group`` makes between two
questions whether to stop, in its second epoch; the bare loop trains the same student by cross-entropy on pictures that
lie ready on the device, with the same optimizer at the same precision.
"""

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F

from tests.benchmarks.epoch import network
from tests.benchmarks.training import SIDE, write_data
from tests.fake_cuda.counts import Counts, counting, read_counts
from workers.config.schedules import OneCycleSchedule
from workers.config.task import TrainingTask
from workers.config.training import Adam, Ema, RmsProp, Sgd, Training
from workers.errors import Stopped
from workers.events import Epoch, ignore
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.training import loop
from workers.training import run as training_run
from workers.training.metrics import step_reports
from workers.training.run_handle import RunHandle

P, R = ParamSpec("P"), TypeVar("R")

ALL = tuple(sorted(set(PRESETS) - {"custom"}))
STUDENT, BATCH, STEPS_PER_EPOCH = "resnet8", 64, 12
FIRST, LAST = 3, 9
"""The steps of the second epoch between which is counted."""

GROUP = tuple({"preset": "kd", "temperature": temperature} for temperature in (1.0, 2.0, 4.0, 8.0))


@dataclass
class Steps:
    """Of a run or a group, in steady state, per step.

    Attributes:
        launches: kernels, library calls, memsets, copies and graphs.
        synchronising: where torch says that a step waits for the device.
    """

    launches: float = 0.0
    synchronisations: float = 0.0
    blocking_copies: float = 0.0
    synchronising: list[str] = field(default_factory=list)


class _Window:
    """Asked before each step whether to stop: begins to count at one step, and stops at another."""

    def __init__(self) -> None:
        self.calls, self.epochs = 0, 0
        self.first_of_epoch = 0
        self.before, self.counts = Counts(), Counts()
        self.is_over = False

    def emit(self, event: object) -> None:
        if isinstance(event, Epoch):
            self.epochs += 1
            self.first_of_epoch = self.calls

    def __call__(self) -> bool:
        step = self.calls - self.first_of_epoch
        self.calls += 1
        # Reading a cache's statistics before the first step asks as well.
        if self.epochs == 1 and step == 0 and not STEPS_PER_EPOCH <= self.first_of_epoch < 2 * STEPS_PER_EPOCH:
            raise AssertionError(
                f"asked {self.first_of_epoch} times in {STEPS_PER_EPOCH} steps: cannot tell steps apart"
            )
        if self.epochs == 1 and step == FIRST:
            self.before = read_counts()
            torch.cuda.set_sync_debug_mode("warn")
        elif self.epochs == 1 and step == LAST:
            torch.cuda.set_sync_debug_mode("default")
            self.counts = read_counts() - self.before
            self.is_over = True
        return self.is_over


def measure(orders: Sequence[TrainingTask]) -> Steps:
    """The steps of a group of runs, trained in this process, which is on the fake device."""
    window = _Window()
    handles = [RunHandle(orders[0], window.emit, window)]
    handles += [RunHandle(order, ignore, lambda: window.is_over) for order in orders[1:]]
    # An event in the midst of the window would read from the device, as it may.
    silent = patch.object(step_reports, "INTERVAL_S", 1e9)
    with silent, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ended = [how for _, how in loop.train_group(handles)]
    if errors := [how for how in ended if not isinstance(how, Stopped)]:
        raise AssertionError(f"a run did not stop when it was told to: {errors}") from errors[0]
    found = sorted({f"{w.filename}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)})
    return _per_step(window.counts, LAST - FIRST, found)


def _per_step(counts: Counts, steps: int, synchronising: list[str]) -> Steps:
    return Steps(
        launches=counts.launches / steps,
        synchronisations=counts.synchronisations / steps,
        blocking_copies=counts.blocking_copies / steps,
        synchronising=synchronising,
    )


def bare(precision: str) -> Steps:
    """The steps of cross-entropy and nothing else."""
    device = torch.device("cuda", 0)
    student = network(STUDENT, device)
    x_BKHW = torch.zeros(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    y_B = torch.zeros(BATCH, dtype=torch.int64, device=device)
    chosen = Sgd()
    optimizer = torch.optim.SGD(
        student.parameters(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay, fused=True
    )

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            z_BC = student(x_BKHW)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(z_BC.float(), y_B))
        optimizer.step()

    for _ in range(FIRST):
        step()
    with counting() as counts:
        for _ in range(FIRST, LAST):
            step()
    return _per_step(counts, LAST - FIRST, [])


def order_of(base: TrainingTask, method: object, place: int = 0, **training: object) -> TrainingTask:
    """Train ``STUDENT`` by this method on the data of ``base``."""
    chosen = Training(epochs=2, batch_size=BATCH, device="cuda").model_copy(update=training)
    student = base.run.student.model_copy(update={"name": STUDENT})
    run = base.run.model_copy(update={"index": place, "student": student, "method": parse_method(method)})
    folder = base.folder.with_name(f"run-{place}")
    return base.model_copy(update={"run": run, "training": chosen, "folder": folder, "checkpoint_s": 1e9})


def eager(precision: str) -> dict[str, object]:
    """Settings of a training whose steps are launched one by one."""
    graphs = {"cuda_graph": "off"} if "cuda_graph" in Training.model_fields else {}
    return {"precision": precision, **graphs}


def measure_presets(presets: Sequence[str], precision: str) -> dict[str, dict[str, Any]]:
    """The steps of each preset alone, launched one by one, and of the bare loop (``bare``)."""
    answer = {"bare": asdict(bare(precision))}
    with tempfile.TemporaryDirectory() as folder:
        base = write_data(Path(folder), 1, BATCH * STEPS_PER_EPOCH)
        for preset in presets:
            answer[preset] = asdict(measure([order_of(base, preset, **eager(precision))]))
    return answer


def measure_options(optimizer: str) -> dict[str, dict[str, Any]]:
    """The steps of a run with all that a step can do beside its method, launched one by one and replayed."""
    kinds = {"rmsprop": RmsProp(momentum=0.9, centered=True), "adam": Adam()}
    options: dict[str, object] = {
        "optimizer": kinds[optimizer],
        "schedule": OneCycleSchedule(),
        "ema": Ema(),
        "no_decay": "norm_and_bias",
        "accumulate": 3,
        "max_gradient_norm": 5.0,
    }
    answer = {}
    with tempfile.TemporaryDirectory() as folder:
        base = write_data(Path(folder), 1, BATCH * STEPS_PER_EPOCH)
        for place, graph in enumerate(("off", "on")):
            order = order_of(base, "ctkd", place, cuda_graph=graph, precision="float32", **options)
            answer[graph] = asdict(measure([order]))
    return answer


def measure_group(precision: str) -> dict[str, Any]:
    """The steps of four runs in one process, and of each of them alone, as they run by default."""
    with tempfile.TemporaryDirectory() as folder:
        base = write_data(Path(folder), 1, BATCH * STEPS_PER_EPOCH)
        orders = [order_of(base, method, place, precision=precision) for place, method in enumerate(GROUP)]
        apart = [asdict(measure([order])) for order in orders]
        for order in orders:
            # Its checkpoint would be taken up.
            shutil.rmtree(order.folder)
        return {"apart": apart, "together": asdict(measure(orders))}


def measure_epoch_end(preset: str) -> dict[str, dict[str, int]]:
    """What one evaluation of the test split, in four batches, and one checkpoint cost."""
    costs: dict[str, Counts] = {}

    def counted(name: str, function: Callable[P, R]) -> Callable[P, R]:
        def counting_it(*arguments: P.args, **named: P.kwargs) -> R:
            with counting() as costs[name]:
                return function(*arguments, **named)

        return counting_it

    window = _Window()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(training_run.RunState, "evaluate", counted("evaluation", training_run.RunState.evaluate)),
        patch.object(training_run.RunState, "save", counted("checkpoint", training_run.RunState.save)),
    ):
        base = write_data(Path(folder), 1, BATCH * STEPS_PER_EPOCH)
        order = order_of(base, preset, eval_batch_size=25)
        with contextlib.suppress(Stopped):
            loop.train_run(order, window.emit, window)
    return {
        name: {"synchronisations": counts.synchronisations, "blocking_copies": counts.blocking_copies}
        for name, counts in costs.items()
    }
