"""Counter of teacher forward passes, in a file of each process: what was run stays counted when the process is killed.

A job's counters lie in one folder, and their sum is what was run for it, whoever was killed since. A process that is
killed between a batch and its counting leaves that batch out, so the sum is exact or short by one batch for each kill.
"""

import contextlib
import os
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from workers.config.job import JobSpec, Plan
from workers.teacher.cache_plan import CachePlan

# Of a fixed width, so that a number is replaced in one write.
_DIGITS = 20
_EARLIER = "earlier"


class ForwardCounter:
    """The counter of one process, or of one session of it.

    Args:
        folder: of the job; made here. On a full disk nothing is counted: what inference has to write says so.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        self._rows = 0
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / uuid.uuid4().hex, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            weakref.finalize(self, os.close, self._descriptor)

    def add(self, rows: int) -> None:
        """Count pictures. The kernel has the number when this returns; a kill does not take it away."""
        self._rows += rows
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, f"{self._rows:0{_DIGITS}d}".encode(), 0)


def count_forwards(folder: Path) -> int:
    """The sum of all counters in a folder; 0 if there is none."""
    try:
        return sum(int(path.read_bytes() or b"0") for path in folder.iterdir())
    except FileNotFoundError:
        return 0


def carry_over(folder: Path, rows: int) -> None:
    """Raise the sum to at least ``rows``: what was reported before there were counters, or by a backup.

    Raises:
        OSError: the disk is full, say; nothing has changed.
    """
    missing = rows - count_forwards(folder)
    if missing <= 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    earlier = folder / _EARLIER
    before = int(earlier.read_bytes() or b"0") if earlier.exists() else 0
    partial = folder.with_name(f"{folder.name}.partial")
    partial.write_bytes(f"{before + missing:0{_DIGITS}d}".encode())
    partial.replace(earlier)


def forwards_needed(job: JobSpec, plan: CachePlan, epochs_of: Mapping[int, int] = MappingProxyType({})) -> int:
    """Teacher forward passes that a live teacher would need for all runs of a job whose caches are planned.

    Args:
        epochs_of: as of ``forwards_of_live_teacher``.
    """
    measured = [spec for spec in (plan.validation_cache, plan.test_cache) if spec is not None]
    held_out = 0 if job.validation is None or plan.validation_cache is None else plan.validation_cache.samples
    trained = plan.train_cache.samples - held_out
    passes = forwards_of_live_teacher(job, trained, sum(spec.samples for spec in measured), epochs_of)
    return passes * len(job.all_teachers)


def forwards_of_live_teacher(
    job: Plan, trained: int, measured: int, epochs_of: Mapping[int, int] = MappingProxyType({})
) -> int:
    """Teacher forward passes that a live teacher would need for all runs of a job.

    It is run on every training picture of every epoch of every run that distils (on two views of it, if the method
    compares two), and once per run on the validation and test splits (its agreement). Plain cross-entropy needs none
    and counts none.

    Args:
        trained: pictures of an epoch.
        measured: pictures of the validation and test splits.
        epochs_of: epochs that runs, by their index, have trained for, where early stopping has ended them; of others
            it is all.
    """
    methods = {run.index: run.method.expand() for run in job.runs()}
    distilling = {index: method for index, method in methods.items() if method.needs_teacher}
    # Epochs of a run that is extended needed them for that one.
    passes = sum(
        (epochs_of.get(index, job.training.epochs) - job.epochs_before) * method.views * trained
        for index, method in distilling.items()
    )
    return passes + len(distilling) * measured


def forwards_avoided(needed: int, run: int) -> int:
    """Forward passes of a live teacher that the cache spares; none where it costs more.

    It does with more views than epochs, with nothing but cross-entropy, or where much was inferred twice.
    """
    return max(0, needed - run)
