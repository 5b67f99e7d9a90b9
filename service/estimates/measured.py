"""Measured times: what ended runs and inferences have taken, read from the database.

Seconds of a run are its share of its process's time, as ``result.json`` has them: a process that trains g runs gives
each step's time to those that have used it. What a process takes beside the epochs of its runs (to start, to evaluate
at the end, to export) is the rest between its start and its end.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord, TeacherRecord
from service.db.packed_events import unpack
from service.db.states import TERMINAL, State
from service.db.transitions import event_rows

# The newest ones: those of long ago were perhaps measured on another machine.
RUNS_MAX = 300
JOBS_MAX = 32
# Runs whose last epoch is looked for among their events.
_ENDS_MAX = 32
_CACHE_EVENTS = ("stage", "cache_ready")


@dataclass(frozen=True)
class MeasuredRun:
    """Run that has succeeded in one attempt.

    Attributes:
        process: name of its process; runs of one process were trained on the same batches.
        pictures: what its pictures are, see ``pictures_of``.
        device: ``cpu`` or ``cuda``.
        trained, measured: pictures of an epoch, and of the splits that are evaluated after it.
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
    device: str
    trained: int
    measured: int
    epochs: int
    seconds: float
    images_per_s: float
    started_at: datetime
    finished_at: datetime
    group: int = 1
    at_once: float = 1.0
    end_s: float | None = None

    def epoch_s(self, trained: int, measured: int) -> float:
        """Seconds of an epoch of so many pictures; evaluation takes what was left of the measured time."""
        training_s = self.trained / self.images_per_s
        evaluation_s = max(0.0, self.seconds / self.epochs - training_s)
        of_evaluation = measured / self.measured if self.measured else 0.0
        return training_s * trained / self.trained + evaluation_s * of_evaluation


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
        rows, seconds: that went through the teacher, and how long that took.
        beside_s: all else: starting, preparing the data, the preflight, verification.
    """

    job_id: str
    teacher_sha256: str
    teacher_bytes: int | None
    teacher_input: str
    pictures: str
    rows: int
    seconds: float
    beside_s: float


@dataclass(frozen=True)
class Measured:
    """Measured times, the newest first.

    Attributes:
        keys: of the caches of jobs, by ``cache_identity``.
    """

    runs: Sequence[MeasuredRun] = ()
    processes: Sequence[MeasuredProcess] = ()
    caches: Sequence[MeasuredCaches] = ()
    keys: Mapping[str, Collection[str]] = field(default_factory=dict)


def pictures_of(dataset: Mapping[str, Any], size: Sequence[int] | None, augmentation: Mapping[str, Any]) -> str:
    """Key of what makes reading pictures fast or slow, equal where times can be compared.

    Args:
        size: (height, width) in pixels of what students see; None where only the pictures tell, and then it is the
            dataset itself that has to be the same.
    """
    of_files = {"storage": dataset.get("storage", "decoded"), "size": size and list(size)}
    what = of_files if size else dict(dataset)
    return json.dumps([what, augmentation], sort_keys=True, default=str)


def cache_identity(plan: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """Equal for two jobs that use the same caches, as long as nobody changes the files of the dataset."""
    parts = {name: plan.get(name) for name in ("dataset", "views", "cache", "validation", "test", "evaluate")}
    of_teacher = {name: teacher.get(name) for name in ("sha256", "output", "preprocessing")}
    return json.dumps([parts, of_teacher], sort_keys=True, default=str)


def read_measured(database: Database) -> Measured:
    """Read the newest measured times."""
    with database.read() as session:
        jobs = _jobs(session)
        runs = _runs(session, jobs)
        caches = list(_caches(session, jobs))
    # The newest of an identity counts.
    keys = {cache_identity(job.plan, job.teacher): [*job.caches.values()] for job in reversed(jobs.values())}
    return replace(measured_of(runs, caches), keys=keys)


def measured_of(runs: Sequence[MeasuredRun], caches: Sequence[MeasuredCaches] = ()) -> Measured:
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
    return Measured(counted, [_process(group) for group in by_process.values()], caches)


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


# ------------------------------------------------------------------------------------------------------------- queries


@dataclass(frozen=True)
class _Job:
    """Columns of a job that tell how its times compare."""

    id: str
    plan: Json
    teacher: Json
    teacher_id: str
    caches: Mapping[str, str]
    attempt: int
    started_at: datetime | None

    @property
    def pictures(self) -> str:
        return pictures_of_plan(self.plan)


def pictures_of_plan(plan: Mapping[str, Any]) -> str:
    """``pictures_of`` a stored plan."""
    dataset, views = plan["dataset"], plan.get("views") or {}
    augmentation = views.get("augmentation") or {"recipe": "none"}
    return pictures_of(dataset, augmentation.get("size") or dataset.get("image_size"), augmentation)


def _jobs(session: Session) -> dict[str, _Job]:
    columns = (JobRecord.id, JobRecord.plan, JobRecord.teacher, JobRecord.teacher_id, JobRecord.caches)
    query = select(*columns, JobRecord.attempt, JobRecord.started_at).where(JobRecord.caches.is_not(None))
    rows = session.execute(query.order_by(JobRecord.id.desc()).limit(JOBS_MAX)).all()
    return {
        id: _Job(id, plan, teacher, teacher_id, caches=caches or {}, attempt=attempt, started_at=started_at)
        for id, plan, teacher, teacher_id, caches, attempt, started_at in rows
    }


def _runs(session: Session, jobs: Mapping[str, _Job]) -> list[MeasuredRun]:
    """Runs of these jobs that have succeeded in one attempt, of processes all of whose runs have."""
    names = ("id", "job_id", "actor", "state", "attempt", "student", "method", "started_at", "finished_at")
    columns = [getattr(RunRecord, name) for name in names]
    result = RunRecord.result
    figures = [result["seconds"].as_float(), result["images_per_s"].as_float(), result["epochs"].as_integer()]
    query = select(*columns, *figures, result["splits"], result["environment"])
    query = query.where(RunRecord.job_id.in_(jobs), RunRecord.state.in_(TERMINAL), RunRecord.actor.is_not(None))
    found, spoilt = dict[str, MeasuredRun](), set[str]()
    for id, job_id, process, state, attempt, student, method, started_at, finished_at, *known in session.execute(
        query.order_by(RunRecord.id.desc()).limit(RUNS_MAX)
    ):
        seconds, images_per_s, epochs, splits, environment = known
        if state is not State.SUCCEEDED or attempt != 1 or not (seconds and images_per_s and epochs and splits):
            spoilt.add(process)
            continue
        found[id] = MeasuredRun(
            job_id=job_id,
            process=process,
            student=student,
            method=method,
            batch_size=jobs[job_id].plan["training"]["batch_size"],
            pictures=jobs[job_id].pictures,
            device=(environment or {}).get("device", "cpu"),
            trained=splits["train"],
            measured=sum(count for split, count in splits.items() if split != "train"),
            epochs=epochs,
            seconds=seconds,
            images_per_s=images_per_s,
            started_at=started_at,
            finished_at=finished_at,
        )
    whole = {id: run for id, run in found.items() if run.process not in spoilt}
    last = _last_epochs(session, list(whole)[:_ENDS_MAX])
    return [
        replace(run, end_s=(run.finished_at - last[id]).total_seconds()) if id in last else run
        for id, run in whole.items()
    ]


def _last_epochs(session: Session, run_ids: Sequence[str]) -> dict[str, datetime]:
    """Ends of the last epochs of runs whose events are not packed."""
    query = select(EventRecord.run_id, func.max(EventRecord.at).label("at"))
    query = query.where(EventRecord.run_id.in_(run_ids), EventRecord.type == "epoch").group_by(EventRecord.run_id)
    return {row.run_id: row.at for row in session.execute(query)}


def _caches(session: Session, jobs: Mapping[str, _Job]) -> Iterable[MeasuredCaches]:
    """Caches of jobs that were built in one attempt, the newest first."""
    ids = [job.id for job in jobs.values() if job.attempt == 1 and job.started_at is not None]
    plain = EventRecord.job_id.in_(ids) & (EventRecord.run_id == "") & EventRecord.type.in_(_CACHE_EVENTS)
    of_job: defaultdict[str, dict[int, EventRecord]] = defaultdict(dict)
    for row in event_rows(session, select(EventRecord).where(plain)):
        of_job[row.job_id][row.seq] = row
    packed = select(PackedEventsRecord).where(PackedEventsRecord.job_id.in_(ids), PackedEventsRecord.run_id == "")
    for some in session.scalars(packed):
        of_job[some.job_id] |= {row.seq: row for row in unpack(some) if row.type in _CACHE_EVENTS}
    teachers = session.execute(select(TeacherRecord.id, TeacherRecord.size_bytes))
    sizes = {row.id: row.size_bytes for row in teachers}
    for id in ids:
        found = _caches_of(jobs[id], sizes, [of_job[id][seq] for seq in sorted(of_job[id])])
        if found is not None:
            yield found


def _caches_of(job: _Job, sizes: Mapping[str, int], events: Sequence[EventRecord]) -> MeasuredCaches | None:
    trains = [row.at for row in events if row.type == "stage" and row.data.get("stage") == "training"]
    ready = [row.data for row in events if row.type == "cache_ready"]
    if not trains or not ready or job.started_at is None:
        return None
    inferred = [data for data in ready if data["rows_inferred"]]
    seconds = sum(data["seconds"] for data in inferred)
    return MeasuredCaches(
        job_id=job.id,
        teacher_sha256=job.teacher["sha256"],
        teacher_bytes=sizes.get(job.teacher_id),
        teacher_input=json.dumps(job.teacher["preprocessing"].get("size")),
        pictures=job.pictures,
        rows=sum(data["rows_inferred"] for data in inferred),
        seconds=seconds,
        beside_s=max(0.0, (trains[0] - job.started_at).total_seconds() - seconds),
    )
