"""Forecast: when live jobs and their runs are expected to end, from how far they are and what was measured. Pure.

A run that has finished two epochs goes on at the pace of the second half of those that it has; before, it takes what
earlier runs have taken. A run that waits takes what runs of its student in this job take now, else what earlier ones
have. Starts and exports are as much slower, or faster, than measured ones as epochs are now.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import median
from typing import Any, NamedTuple

from service.db.models import Json
from service.db.states import State
from service.estimates.rates import InferenceRate
from service.estimates.schedule import Load, WaitingRun, expected_ends
from service.estimates.workload import Slots, Workload
from workers.config.job import Plan
from workers.config.run_block import student_at

_WAITING = frozenset({State.QUEUED, State.LOST})
_LEAST_S = 0.5
# An epoch that took so much longer than those that were measured says nothing of an export.
_SPEED_RATIO_MAX = 4.0


class ExpectedEnd(NamedTuple):
    """Expected end of a job or run.

    Attributes:
        as_of: when it was expected so.
        based_on: how it was found, in words.
    """

    expected_at: datetime
    as_of: datetime
    based_on: str

    def json(self) -> Json:
        """JSON of the columns ``eta``."""
        times = {"expected_at": self.expected_at.isoformat(), "as_of": self.as_of.isoformat()}
        return {**times, "based_on": self.based_on}


@dataclass(frozen=True)
class RunNow:
    """A run as it stands.

    Attributes:
        process: that its newest attempt was given to.
        epoch: how many are done, those of a run that it extends included.
        began_at: when that attempt began.
        epoch_ends: when each epoch of that attempt ended, by number.
        last_epoch_s: its share of the last epoch's time.
    """

    id: str
    index: int
    state: State
    process: str | None = None
    epoch: int = 0
    began_at: datetime | None = None
    epoch_ends: Sequence[tuple[int, datetime]] = ()
    last_epoch_s: float | None = None

    @property
    def pace_s(self) -> float | None:
        """Seconds from the end of one epoch to that of the next, in the second half of this attempt's epochs."""
        if len(self.epoch_ends) < 2:
            return None
        first, last = self.epoch_ends[(len(self.epoch_ends) - 1) // 2], self.epoch_ends[-1]
        return (last[1] - first[1]).total_seconds() / (last[0] - first[0])


@dataclass(frozen=True)
class JobNow:
    """A live job as it stands.

    Attributes:
        runs: in the order of the plan.
        began_at: when its present attempt began; None of one that waits for it.
        inference: of the training split's rows, as in the column.
        batches: a number for each run's batches, see ``workload.batch_numbers``.
        rows_to_infer: by all teachers; None where that is not known.
        later_s: of those of several teachers that follow the one at work; None where that is not known.
    """

    id: str
    plan: Plan
    priority: int
    key_id: str | None
    parallel_runs: int | None
    runs: Sequence[RunNow]
    stage: str | None
    inference: Mapping[str, Any] | None
    workload: Workload
    inference_rate: InferenceRate | None
    batches: Mapping[int, int]
    rows_to_infer: int | None = None
    later_s: float | None = 0.0
    began_at: datetime | None = None


class _Expected(NamedTuple):
    """Load of a job, and the bases of what is expected of its runs."""

    load: Load
    basis: dict[str, str]


def forecast(
    jobs: Sequence[JobNow], slots: Slots, now: datetime, *, failed: Callable[[str, Exception], None] | None = None
) -> dict[str, ExpectedEnd]:
    """Expected ends, by the id of job or run. What nothing is known of is left out, and what waits behind that.

    Args:
        jobs: in the order in which they are served.
        failed: told the id of a job that cannot be computed, and why; it counts as unknown. None raises.
    """
    found: dict[str, ExpectedEnd] = {}
    for device in ("cpu", "cuda"):
        expected, free, behind = list[_Expected](), slots.of(device), set[str]()
        is_known = True
        for job in (job for job in jobs if slots.device_of(job.plan) == device):
            each = _guarded(job, now, failed)
            if each is None:
                # Nobody knows when its slots are free again, nor who gets those that are before it has ended.
                is_known = False
                free -= _slots_held(job)
                continue
            expected.append(each)
            if not is_known and each.load.waiting:
                behind |= {job.id, *(run.id for run in each.load.waiting)}
        ends = expected_ends([each.load for each in expected], free)
        for each in expected:
            for id, basis in each.basis.items():
                if id in ends and id not in behind:
                    end = now + timedelta(seconds=max(_LEAST_S, ends[id]))
                    found[id] = ExpectedEnd(end, now, basis)
    return found


def _guarded(job: JobNow, now: datetime, failed: Callable[[str, Exception], None] | None) -> _Expected | None:
    try:
        return _expected(job, now)
    except Exception as error:
        if failed is None:
            raise
        failed(job.id, error)
        return None


def _slots_held(job: JobNow) -> int:
    """Slots of the processes that are at work for a job."""
    at_work = {run.process or run.id for run in job.runs if run.state is State.RUNNING}
    return len(at_work) * (1 if job.plan.evaluate else job.plan.training.actors)


def _expected(job: JobNow, now: datetime) -> _Expected | None:
    """Load of a job as it is expected; None where it is not known."""
    caches = _caches_left(job, now)
    if caches is None:
        return None
    ready_s, of_caches = caches
    groups: defaultdict[str, list[RunNow]] = defaultdict(list)
    for run in job.runs:
        if run.state is State.RUNNING:
            groups[run.process or run.id].append(run)
    paces = {run.index: pace_s / len(group) for group in groups.values() for run in group if (pace_s := run.pace_s)}
    job = _at_present_speed(job, paces)
    under_way, basis = list[dict[str, float]](), dict[str, str]()
    for group in groups.values():
        ends = _group_ends(job, group, now)
        if ends is None:
            return None
        under_way.append({id: end_s for id, (end_s, _) in ends.items()})
        basis |= {id: of_end for id, (_, of_end) in ends.items()}
    waiting = list[WaitingRun]()
    for run in (run for run in job.runs if run.state in _WAITING):
        epoch = _epoch_of_waiting(job, run, paces)
        if epoch is None and not job.plan.evaluate:
            return None
        seconds, of_epoch = epoch or (0.0, "")
        waiting.append(WaitingRun(run.id, run.index, (job.workload.epochs - run.epoch) * seconds))
        basis[run.id] = of_epoch
    process = job.workload.process
    load = Load(
        id=job.id,
        priority=job.priority,
        key_id=job.key_id,
        ready_s=ready_s,
        processes=1 if job.plan.evaluate else job.plan.training.actors,
        at_once=job.parallel_runs,
        largest_group=job.plan.largest_group,
        start_s=0.0 if process is None else process.start_s,
        end_s=0.0 if process is None else process.end_s,
        tail_s=0.0 if process is None else process.tail_s,
        waiting=waiting,
        under_way=under_way,
        batches_of=lambda run: job.batches.get(run.index),
    )
    whole = [*([of_caches] if of_caches else []), *dict.fromkeys(basis.values())]
    if process is None and not job.plan.evaluate:
        whole.append("without starts and exports, of which none has ended here")
    return _Expected(load, {**basis, job.id: "; ".join(each for each in whole if each)})


def _at_present_speed(job: JobNow, paces: Mapping[int, float]) -> JobNow:
    """The job, starts and ends of its processes taking as much longer than they did as its epochs do.

    A machine that has more or less to do than when it was measured is slower or faster at all of it.
    """
    process = job.workload.process
    ratios = [pace_s / rate.seconds for index, pace_s in paces.items() if (rate := job.workload.epoch.get(index))]
    if process is None or not ratios:
        return job
    ratio = min(max(median(ratios), 1 / _SPEED_RATIO_MAX), _SPEED_RATIO_MAX)
    times = {name: ratio * getattr(process, name) for name in ("start_s", "end_s", "tail_s")}
    return replace(job, workload=replace(job.workload, process=replace(process, **times)))


def _caches_left(job: JobNow, now: datetime) -> tuple[float, str] | None:
    """Seconds until the caches are complete, and how that was found; None where it is not known."""
    if job.stage == "training" or any(run.state is State.RUNNING for run in job.runs):
        return 0.0, ""
    inference = job.inference or {}
    if job.stage == "inference" and inference.get("eta_s") and inference["rows_done"] < inference["rows_total"]:
        return None if job.later_s is None else (inference["eta_s"] + job.later_s, "the rows that it infers a second")
    if (rate := job.inference_rate) is None:
        return None
    if job.stage == "inference" and inference and job.later_s:
        return job.later_s, f"caches: {rate.basis}"
    elapsed_s = 0.0 if job.began_at is None else (now - job.began_at).total_seconds()
    if not job.rows_to_infer:
        # None is missing, or it is not known how many are.
        return None if job.rows_to_infer is None else (max(0.0, rate.beside_s - elapsed_s), f"caches: {rate.basis}")
    if rate.rows_per_s is None:
        return None
    whole_s = rate.beside_s + job.rows_to_infer / rate.rows_per_s
    return max(0.0, whole_s - elapsed_s), f"caches: {rate.basis}"


def _group_ends(job: JobNow, group: Sequence[RunNow], now: datetime) -> dict[str, tuple[float, str]] | None:
    """Seconds until each run of a process ends, and how that was found; None where it is not known."""
    process = job.workload.process
    end_s, tail_s = (0.0, 0.0) if process is None else (process.end_s, process.tail_s)
    left: list[tuple[float, RunNow, str]] = []
    for run in group:
        found = _epochs_left(job, run, group, now)
        if found is None:
            return None
        left.append((found[0], run, found[1]))
    left.sort(key=lambda each: each[0])
    # One after the other leaves its artifacts.
    return {
        run.id: (max(left_s, 0.0) + _end_left(run, job, end_s, now) + tail_s * place, basis)
        for place, (left_s, run, basis) in enumerate(left)
    }


def _end_left(run: RunNow, job: JobNow, end_s: float, now: datetime) -> float:
    """Seconds that the end of a run still takes."""
    if run.epoch < job.workload.epochs or not run.epoch_ends:
        return end_s
    return max(0.0, end_s - (now - run.epoch_ends[-1][1]).total_seconds())


def _epochs_left(job: JobNow, run: RunNow, group: Sequence[RunNow], now: datetime) -> tuple[float, str] | None:
    """Seconds until a run's last epoch ends; None where it is not known."""
    left = job.workload.epochs - run.epoch
    if run.epoch_ends:
        since_s = (now - run.epoch_ends[-1][1]).total_seconds()
        pace_s = run.pace_s
        if pace_s is None and all(each.last_epoch_s is not None for each in group):
            pace_s = sum(each.last_epoch_s or 0.0 for each in group)
        if pace_s is not None:
            return left * pace_s - since_s, "its own epochs so far"
    rates = [job.workload.epoch.get(each.index) for each in group]
    if job.workload.process is None or run.began_at is None:
        return None
    epochs_s = sum(
        (job.workload.epochs - each.epoch) * rate.seconds for each, rate in zip(group, rates, strict=True) if rate
    )
    if any(rate is None for rate in rates):
        return None
    elapsed_s = (now - run.began_at).total_seconds()
    return job.workload.process.start_s + epochs_s - elapsed_s, f"epochs: {rates[0].basis if rates[0] else ''}"


def _epoch_of_waiting(job: JobNow, run: RunNow, paces: Mapping[int, float]) -> tuple[float, str] | None:
    """Seconds of an epoch of a run that waits; None where it is not known."""
    blocks = job.plan.blocks
    student = student_at(blocks, run.index)
    own = [pace_s for index, pace_s in paces.items() if student_at(blocks, index) == student]
    if own:
        return sum(own) / len(own), "the epochs so far of runs of its student in this job"
    rate = job.workload.epoch.get(run.index)
    return None if rate is None else (rate.seconds, f"epochs: {rate.basis}")
