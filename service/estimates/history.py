"""History: measured times of the newest runs and inferences, read from the database."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.job_teachers import members_of
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord, TeacherRecord
from service.db.queries.packed_events import unpack
from service.db.states import State
from service.db.transitions import DAMAGED, event_rows
from service.estimates.measured import (
    MeasuredCaches,
    MeasuredRun,
    MeasuredTimes,
    cache_identity,
    measured_of,
    pictures_of_plan,
    recipe_of_plan,
)
from workers.errors import WorkerError
from workers.methods.catalog import parse_method

# The newest ones: those of long ago were perhaps measured on another machine.
RUNS_MAX = 300
JOBS_MAX = 32
# Runs whose last epoch is looked for among their events.
_ENDS_MAX = 32
_CACHE_EVENTS = ("stage", "cache_ready")
# What reading a stored job raises: damage, and documents that lack something, or are none.
_UNREADABLE = (*DAMAGED, zlib.error, LookupError, TypeError, AttributeError)


def read_measured(database: Database) -> MeasuredTimes:
    """Read the newest measured times. Jobs of which something cannot be read are left out."""
    newest = select(JobRecord.id).where(JobRecord.caches.is_not(None)).order_by(JobRecord.id.desc()).limit(JOBS_MAX)
    runs, caches, keys = dict[str, MeasuredRun](), list[MeasuredCaches](), dict[str, list[str]]()
    with database.read() as session:
        teachers = session.execute(select(TeacherRecord.id, TeacherRecord.size_bytes))
        sizes = {row.id: row.size_bytes for row in teachers}
        for id in session.scalars(newest).all():
            try:
                job = _job(session, id)
                of_runs, of_caches = _runs(session, job, RUNS_MAX - len(runs)), _caches(session, job, sizes)
            except _UNREADABLE:
                continue
            runs |= of_runs
            caches += of_caches
            # The newest of an identity counts.
            keys.setdefault(job.identity, list(job.caches.values()))
        last = _last_epochs(session, list(runs)[:_ENDS_MAX])
    ended = [
        replace(run, end_s=(run.finished_at - last[id]).total_seconds()) if id in last else run
        for id, run in runs.items()
    ]
    return replace(measured_of(ended, caches), keys=keys)


@dataclass(frozen=True)
class _Job:
    """Facts about a job that tell how its times compare."""

    id: str
    identity: str
    pictures: str
    recipe: str
    batch_size: int
    teacher: Json
    teacher_id: str
    caches: Mapping[str, str]
    attempt: int
    started_at: datetime | None
    extends: bool


def _job(session: Session, id: str) -> _Job:
    columns = (JobRecord.plan, JobRecord.teacher, JobRecord.teacher_id, JobRecord.caches, JobRecord.attempt)
    row = session.execute(select(*columns, JobRecord.started_at).where(JobRecord.id == id)).one_or_none()
    if row is None:
        raise LookupError(f"job {id} was deleted meanwhile")
    return _Job(
        id=id,
        identity=cache_identity(row.plan, row.teacher),
        pictures=pictures_of_plan(row.plan),
        recipe=recipe_of_plan(row.plan),
        batch_size=row.plan["training"]["batch_size"],
        teacher=row.teacher,
        teacher_id=row.teacher_id,
        caches=row.caches or {},
        attempt=row.attempt,
        started_at=row.started_at,
        extends="extends" in row.plan,
    )


def _runs(session: Session, job: _Job, limit: int) -> dict[str, MeasuredRun]:
    """The newest runs of a job that have succeeded in one attempt, of processes all of whose runs have.

    None of one that extends a run: its seconds are also those of that run.
    """
    if job.extends:
        return {}
    names = ("id", "actor", "state", "attempt", "student", "method", "method_spec", "started_at", "finished_at")
    columns = [getattr(RunRecord, name) for name in names]
    result = RunRecord.result
    figures = [result["seconds"].as_float(), result["images_per_s"].as_float(), result["epochs"].as_integer()]
    query = select(*columns, *figures, result["splits"], result["environment"])
    query = query.where(RunRecord.job_id == job.id, RunRecord.actor.is_not(None))
    rows = session.execute(query.order_by(RunRecord.id.desc()).limit(limit)).all()
    found, spoilt = dict[str, MeasuredRun](), set[str]()
    if rows and len(rows) == limit:
        # Others of its process may be cut off.
        spoilt.add(rows[-1].actor)
    for id, process, state, attempt, student, method, method_spec, started_at, finished_at, *known in rows:
        seconds, images_per_s, epochs, splits, environment = known
        if state is not State.SUCCEEDED or attempt != 1 or not (seconds and images_per_s and epochs and splits):
            spoilt.add(process)
            continue
        found[id] = MeasuredRun(
            job_id=job.id,
            process=process,
            student=student,
            method=method,
            batch_size=job.batch_size,
            pictures=job.pictures,
            recipe=job.recipe,
            device=(environment or {}).get("device", "cpu"),
            trained=splits["train"],
            measured=sum(count for split, count in splits.items() if split != "train"),
            epochs=epochs,
            seconds=seconds,
            images_per_s=images_per_s,
            started_at=started_at,
            finished_at=finished_at,
            views=_views_of(method_spec),
        )
    return {id: run for id, run in found.items() if run.process not in spoilt}


def _views_of(method_spec: Json) -> int:
    """Views of a picture in a step; 1 of a method that this version does not know."""
    try:
        return parse_method(method_spec).expand().views
    except (ValueError, WorkerError):
        return 1


def _last_epochs(session: Session, run_ids: Sequence[str]) -> dict[str, datetime]:
    """Ends of the last epochs of runs whose events are not packed."""
    query = select(EventRecord.run_id, func.max(EventRecord.at).label("at"))
    query = query.where(EventRecord.run_id.in_(run_ids), EventRecord.type == "epoch").group_by(EventRecord.run_id)
    return {row.run_id: row.at for row in session.execute(query)}


def _caches(session: Session, job: _Job, sizes: Mapping[str, int]) -> list[MeasuredCaches]:
    """Caches of a job that were built in one attempt, of each of its teachers.

    Args:
        sizes: of the teachers' files in bytes, by id.
    """
    if job.attempt != 1 or job.started_at is None:
        return []
    plain = (EventRecord.job_id == job.id) & (EventRecord.run_id == "") & EventRecord.type.in_(_CACHE_EVENTS)
    of_seq = {row.seq: row for row in event_rows(session, select(EventRecord).where(plain))}
    packed = select(PackedEventsRecord).where(PackedEventsRecord.job_id == job.id, PackedEventsRecord.run_id == "")
    for some in session.scalars(packed):
        of_seq |= {row.seq: row for row in unpack(some) if row.type in _CACHE_EVENTS}
    return _caches_of(job, sizes, [of_seq[seq] for seq in sorted(of_seq)])


def _caches_of(job: _Job, sizes: Mapping[str, int], events: Sequence[EventRecord]) -> list[MeasuredCaches]:
    trains = [row.at for row in events if row.type == "stage" and row.data.get("stage") == "training"]
    ready = [row.data for row in events if row.type == "cache_ready"]
    if not trains or not ready or job.started_at is None:
        return []
    members = members_of(job.teacher)
    by_teacher = _by_teacher(ready, len(members))
    # The first one waits for the processes that infer to start; the largest of the others has the teacher's rate.
    first = next((data for data in ready if data["rows_inferred"]), None)
    inferred = [[data for data in some if data["rows_inferred"]] for some in by_teacher]
    rated = [
        max([data for data in some if data is not first] or some, key=lambda data: data["rows_inferred"], default=None)
        for some in inferred
    ]
    inference_s = sum(
        sum(data["rows_inferred"] for data in some) * one["seconds"] / one["rows_inferred"]
        for some, one in zip(inferred, rated, strict=True)
        if one is not None
    )
    whole_s = (trains[0] - job.started_at).total_seconds()
    return [
        MeasuredCaches(
            job_id=job.id,
            teacher_sha256=member["sha256"],
            teacher_bytes=sizes.get(member.get("id", job.teacher_id)),
            teacher_input=json.dumps(member["preprocessing"].get("size")),
            pictures=job.pictures,
            recipe=job.recipe,
            rows=0 if one is None else one["rows_inferred"],
            seconds=0.0 if one is None else one["seconds"],
            beside_s=max(0.0, whole_s - inference_s),
        )
        for member, one in zip(members, rated, strict=True)
    ]


def _by_teacher(ready: Sequence[Json], teachers: int) -> list[list[Json]]:
    """Caches of each teacher: of several, those of each split come in their order before the combined one, or not."""
    if teachers == 1:
        return [list(ready)]
    of_split: dict[str, list[Json]] = {}
    for data in ready:
        of_split.setdefault(data["split"], []).append(data)
    whole = [each for each in of_split.values() if len(each) == teachers + 1]
    return [[each[number] for each in whole] for number in range(teachers)]
