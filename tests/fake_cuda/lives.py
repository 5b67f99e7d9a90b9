"""Whole runs on the fake device, from the first step to what they leave; called in a process on it."""

import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.training import SIDE, write_data
from tests.fake_cuda.steps import order_of
from workers.config.task import TrainingTask
from workers.config.views import ResizedCrop, Views
from workers.errors import Stopped
from workers.events import Epoch
from workers.run_files import ARTIFACTS, CHECKPOINT
from workers.students.catalog import OWN, STUDENTS
from workers.students.student_info import StudentInfo
from workers.training.loop import train_run


def smallest_of_families() -> list[StudentInfo]:
    """One student of each family, the one with the fewest weights."""
    chosen: dict[str, StudentInfo] = {}
    for info in sorted(OWN.values(), key=lambda info: info.parameters_100 or 0):
        chosen.setdefault(info.family, info)
    return list(chosen.values())


def live_presets(presets: Sequence[str], exported: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A run of each preset, on eight batches; of those to be exported, to the end."""
    with tempfile.TemporaryDirectory() as folder:
        base = write_data(Path(folder), 1, 8 * 64)
        return {preset: _live(order_of(base, preset), preset in exported) for preset in presets}


def live_students(students: Sequence[str], exported: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A run of each student by cross-entropy, on two batches; of those to be exported, to the end."""
    # The fake has no plan for it; flash attention is a kernel like others.
    torch.backends.cuda.enable_cudnn_sdp(False)
    with tempfile.TemporaryDirectory() as folder:
        base = write_data(Path(folder), 1, 2 * 64)
        return {name: _live(_order_of_student(base, name), name in exported) for name in students}


def _order_of_student(base: TrainingTask, name: str) -> TrainingTask:
    info = STUDENTS[name]
    side = max(SIDE, -(-info.min_side // info.side_multiple) * info.side_multiple)
    views = Views(augmentation=ResizedCrop(size=(side, side)))
    order = order_of(base, "ce")
    run = order.run.model_copy(update={"student": order.run.student.model_copy(update={"name": name})})
    return order.model_copy(update={"run": run, "views": views, "train_cache": None, "test_cache": None})


def _live(order: TrainingTask, to_the_end: bool) -> dict[str, Any]:
    """Train an epoch, evaluate, save; if to the end, two and export. Says what was left, or what was raised."""
    epochs: list[dict[str, float | None]] = []
    started = time.monotonic()

    def emit(event: object) -> None:
        if isinstance(event, Epoch):
            epochs.append(event.metrics)

    device = error = None
    try:
        result = train_run(order, emit, lambda: bool(epochs) and not to_the_end)
        environment = result["environment"]
        assert isinstance(environment, dict)
        device = environment["device"]
    except Stopped:
        pass
    except Exception:
        error = traceback.format_exc(limit=-8)
    artifacts = order.folder / ARTIFACTS
    answer = {
        "epochs": len(epochs),
        "device": device,
        "error": error,
        "checkpoint": (order.folder / CHECKPOINT).exists(),
        "artifacts": sorted(path.name for path in artifacts.iterdir()) if artifacts.exists() else [],
        "seconds": time.monotonic() - started,
    }
    for path in [*order.folder.glob("*.pt"), *artifacts.glob("*")]:
        path.unlink()
    return answer
