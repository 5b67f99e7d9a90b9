"""Measured times: what ended runs and inferences have taken. ``history`` reads them from the database.

Seconds of a run are its share of its process's time, as ``result.json`` has them: a process that trains g runs gives
each step's time to those that have used it. What a process takes beside the epochs of its runs (to start, to evaluate
at the end, to export) is the rest between its start and its end.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from workers.config.cache import CacheOptions

SECOND_VIEW = "second_view"


@dataclass(frozen=True)
class MeasuredRun:
    """Run that has succeeded in one attempt.

    Attributes:
        process: name of its process; runs of one process were trained on the same batches.
        pictures: what its pictures are, see ``pictures_of_plan``.
        recipe: of the augmentation, see ``recipe_of_plan``.
        device: ``cpu`` or ``cuda``.
        trained, measured: pictures of an epoch, and of the splits that are evaluated after it.
        views: of each picture in a step: 2 of a method that compares two.
        seconds: of all epochs, evaluation included: its share of its process's time.
        images_per_s: while it trained.
        group: runs of its process.
        at_once: processes that trained at the same time, itself included, in the mean.
        end_s: from its last epoch to its end; None where the events are packed, or were not looked at.
    """

    job_id: str
    process: str
    student: str
    method: str
    batch_size: int
    pictures: str
    recipe: str
    device: str
    trained: int
    measured: int
    epochs: int
    seconds: float
    images_per_s: float
    started_at: datetime
    finished_at: datetime
    views: int = 1
    group: int = 1
    at_once: float = 1.0
    end_s: float | None = None

    def epoch_s(self, trained: int, measured: int, views: int) -> float:
        """Seconds of an epoch of so many pictures and views; evaluation takes what was left of the measured time."""
        training_s = self.trained / self.images_per_s
        evaluation_s = max(0.0, self.seconds / self.epochs - training_s)
        of_evaluation = measured / self.measured if self.measured else 0.0
        return training_s * trained / self.trained * views / self.views + evaluation_s * of_evaluation


@dataclass(frozen=True)
class MeasuredProcess:
    """Process that has trained runs, all to their end, and what it has taken beside their epochs.

    Attributes:
        runs: how many.
        end_s: of the first that has ended, as of ``MeasuredRun``.
        tail_s: between the end of one run and that of the next; None of a single run.
    """

    student: str
    pictures: str
    device: str
    runs: int
    beside_s: float
    end_s: float | None
    tail_s: float | None


@dataclass(frozen=True)
class MeasuredCaches:
    """Caches of a job, from its start to its training.

    Attributes:
        teacher_bytes: of its file; None of one that was deleted.
        recipe: of the views, see ``recipe_of_plan``.
        rows, seconds: of one cache that went through the teacher, and how long that took; 0 where nothing was inferred.
        beside_s: all else: starting, preparing the data, the preflight, combining rows, verification.
    """

    job_id: str
    teacher_sha256: str
    teacher_bytes: int | None
    teacher_input: str
    pictures: str
    recipe: str
    rows: int
    seconds: float
    beside_s: float


@dataclass(frozen=True)
class MeasuredTimes:
    """Measured times, the newest first.

    Attributes:
        keys: of the caches of jobs, by ``cache_identity``.
    """

    runs: Sequence[MeasuredRun] = ()
    processes: Sequence[MeasuredProcess] = ()
    caches: Sequence[MeasuredCaches] = ()
    keys: Mapping[str, Collection[str]] = field(default_factory=dict)


def pictures_of_plan(plan: Mapping[str, Any]) -> str:
    """Key of the pictures that a stored plan trains on, equal where times can be compared.

    Pictures of one size, kept in one way; where only the pictures tell their size it is the dataset that has to be the
    same.
    """
    dataset = plan["dataset"]
    size = augmentation_of_plan(plan).get("size") or dataset.get("image_size")
    what = {"storage": dataset.get("storage", "decoded"), "size": list(size)} if size else dataset
    return json.dumps(what, sort_keys=True, default=str)


def augmentation_of_plan(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Augmentation of a stored plan."""
    found: Mapping[str, Any] = (plan.get("views") or {}).get("augmentation") or {"recipe": "none"}
    return found


def recipe_of_plan(plan: Mapping[str, Any]) -> str:
    """Recipe of the augmentation of a stored plan with its operations, each of which takes time: their names alone."""
    found = augmentation_of_plan(plan)
    operations = [name for name, value in found.items() if isinstance(value, Mapping) and name != SECOND_VIEW]
    second = found.get(SECOND_VIEW)
    if second is not None:
        others = [name for name, value in second.items() if value is not None]
        operations.append(f"second views ({', '.join(others) or 'plain'})")
    return " with ".join([found["recipe"], *([", ".join(operations)] if operations else [])])


def cache_identity(plan: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """Equal for two jobs that use the same caches, as long as nobody changes the files of the dataset."""
    parts = {
        name: plan.get(name) for name in ("dataset", "views", "cache", "validation", "test", "evaluate", "combine")
    }
    of_teacher = {name: teacher.get(name) for name in ("sha256", "output", "preprocessing", "reading", "members")}
    return json.dumps([parts, of_teacher], sort_keys=True, default=str)


def member_identities(plan: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    """Identity of a job of each of several teachers alone, with dense caches as members have them; none of one."""
    alone = {**plan, "combine": None, "cache": CacheOptions(dtype=plan["cache"]["dtype"]).model_dump(mode="json")}
    return [cache_identity(alone, member) for member in teacher.get("members") or ()]


def measured_of(runs: Sequence[MeasuredRun], caches: Sequence[MeasuredCaches] = ()) -> MeasuredTimes:
    """Group runs by their processes, and count who trained beside whom."""
    by_process: defaultdict[str, list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        by_process[run.process].append(run)
    spans = {
        name: (min(run.started_at for run in group), max(run.finished_at for run in group))
        for name, group in by_process.items()
    }
    beside = {name: _at_once(name, spans) for name in spans}
    counted = [replace(run, group=len(by_process[run.process]), at_once=beside[run.process]) for run in runs]
    return MeasuredTimes(counted, [_process(group) for group in by_process.values()], caches)


def _at_once(name: str, spans: Mapping[str, tuple[datetime, datetime]]) -> float:
    """Processes at work, itself included, in the mean over the time of one."""
    begin, end = spans[name]
    length_s = max((end - begin).total_seconds(), 1e-3)
    overlap_s = sum(
        max(0.0, (min(end, other_end) - max(begin, other_begin)).total_seconds())
        for other_begin, other_end in spans.values()
    )
    return overlap_s / length_s


def _process(runs: Sequence[MeasuredRun]) -> MeasuredProcess:
    first, ends = min(runs, key=lambda run: run.finished_at), sorted(run.finished_at for run in runs)
    whole_s = (ends[-1] - min(run.started_at for run in runs)).total_seconds()
    tail_s = (ends[-1] - ends[0]).total_seconds() / (len(runs) - 1) if len(runs) > 1 else None
    beside_s = max(0.0, whole_s - sum(run.seconds for run in runs))
    return MeasuredProcess(
        student=first.student,
        pictures=first.pictures,
        device=first.device,
        runs=len(runs),
        beside_s=beside_s,
        end_s=first.end_s,
        tail_s=tail_s,
    )
