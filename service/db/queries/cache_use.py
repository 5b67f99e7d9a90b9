"""Queries of the use of caches: by live jobs, jobs that name one, epochs trained, and how fast rows were inferred."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.job_teachers import cache_keys, members_of
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord
from service.db.queries.packed_events import unpack
from service.db.states import LIVE, State
from service.db.transitions import event_rows


class UsingJob(NamedTuple):
    """Job that names a cache: columns of ``JobRecord``."""

    id: str
    name: str
    state: State
    caches: Json
    plan: Json


class TrainedRun(NamedTuple):
    """Run with the epochs that it has until now, those of a run that it extends included: columns of ``RunRecord``."""

    job_id: str
    method_spec: Json
    epoch: int
    id: str


def caches_of_live_jobs(session: Session, job_ids: Collection[str] | None = None) -> dict[str, list[str]]:
    """Keys of the caches that each job uses that has not ended; imported ones from its first moment on.

    Args:
        job_ids: ask for these jobs alone.
    """
    query = select(JobRecord.id, JobRecord.caches, JobRecord.teacher).where(JobRecord.state.in_(LIVE))
    if job_ids is not None:
        query = query.where(JobRecord.id.in_(job_ids))
    return {id: cache_keys(caches, members_of(teacher)) for id, caches, teacher in session.execute(query)}


def jobs_of_cache(database: Database, key: str, limit: int) -> tuple[list[UsingJob], int]:
    """The newest jobs that name a cache, and how many there are in all."""
    # A key is 64 hex digits: as text it is nowhere else in the column.
    names_it = cast(JobRecord.caches, Text).contains(key)
    columns = [getattr(JobRecord, name) for name in UsingJob._fields]
    with database.read() as session:
        rows = session.execute(select(*columns).where(names_it).order_by(JobRecord.id.desc()).limit(limit))
        found = [UsingJob._make(row) for row in rows]
        return found, session.scalar(select(func.count()).select_from(JobRecord).where(names_it)) or 0


def trained_runs(database: Database, job_ids: Sequence[str]) -> list[TrainedRun]:
    """Runs of these jobs, with the epochs that they have trained."""
    columns = [getattr(RunRecord, name) for name in TrainedRun._fields]
    with database.read() as session:
        return [TrainedRun._make(row) for row in session.execute(select(*columns).where(RunRecord.job_id.in_(job_ids)))]


def cache_events(database: Database, job_ids: Sequence[str]) -> list[tuple[str, Json]]:
    """Job and data of each event ``cache_ready`` of these jobs, packed ones included, oldest first."""
    plain = EventRecord.job_id.in_(job_ids) & (EventRecord.run_id == "") & (EventRecord.type == "cache_ready")
    packed = PackedEventsRecord.job_id.in_(job_ids) & (PackedEventsRecord.run_id == "")
    with database.read() as session:
        # In this order, as ``packed_events.events_of``: what is packed between the two queries is found.
        rows = {row.seq: row for row in event_rows(session, select(EventRecord).where(plain))}
        for some in session.scalars(select(PackedEventsRecord).where(packed)):
            rows |= {row.seq: row for row in unpack(some) if row.type == "cache_ready"}
    return [(rows[seq].job_id, rows[seq].data) for seq in sorted(rows) if "cache" in rows[seq].data]
