"""History: measured times of the newest runs and inferences, read from the database."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord, TeacherRecord
from service.db.packed_events import unpack
from service.db.states import TERMINAL, State
from service.db.transitions import event_rows
from service.estimates.measured import (
    Measured,
    MeasuredCaches,
    MeasuredRun,
    augmentation_of_plan,
    cache_identity,
    measured_of,
    pictures_of_plan,
)

# The newest ones: those of long ago were perhaps measured on another machine.
RUNS_MAX = 300
JOBS_MAX = 32
# Runs whose last epoch is looked for among their events.
_ENDS_MAX = 32
_CACHE_EVENTS = ("stage", "cache_ready")


def read_measured(database: Database) -> Measured:
    """Read the newest measured times."""
    with database.read() as session:
        jobs = _jobs(session)
        runs = _runs(session, jobs)
        caches = list(_caches(session, jobs))
    # The newest of an identity counts.
    keys = {cache_identity(job.plan, job.teacher): [*job.caches.values()] for job in reversed(jobs.values())}
    return replace(measured_of(runs, caches), keys=keys)


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
            recipe=augmentation_of_plan(jobs[job_id].plan)["recipe"],
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
    # The first one waits for the processes that infer to start; the largest of the others has the teacher's rate.
    rated = max(inferred[1:] or inferred, key=lambda data: data["rows_inferred"], default=None)
    rows, seconds = (0, 0.0) if rated is None else (rated["rows_inferred"], rated["seconds"])
    whole_s = (trains[0] - job.started_at).total_seconds()
    inference_s = sum(data["rows_inferred"] for data in inferred) * seconds / rows if rows else 0.0
    return MeasuredCaches(
        job_id=job.id,
        teacher_sha256=job.teacher["sha256"],
        teacher_bytes=sizes.get(job.teacher_id),
        teacher_input=json.dumps(job.teacher["preprocessing"].get("size")),
        pictures=job.pictures,
        rows=rows,
        seconds=seconds,
        beside_s=max(0.0, whole_s - inference_s),
    )
