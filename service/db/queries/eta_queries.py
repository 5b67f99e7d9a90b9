"""Rows that expected ends are made of, and the columns that keep them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Select, case, func, select, update

from service.db.lease import LeaseQueries
from service.db.models import EventRecord, JobRecord, Json, RunRecord
from service.db.states import LIVE, State
from service.db.transitions import event_rows

_EXPECTED = (State.QUEUED, State.RUNNING, State.LOST)


class LiveJob(NamedTuple):
    """Columns of a job that is queued or worked on."""

    id: str
    state: State
    priority: int
    key_id: str | None
    parallel_runs: int | None
    stage: str | None
    inference: Json | None
    caches: Json | None
    samples: Json | None
    eta: Json | None


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Columns of a run of a live job."""

    id: str
    job_id: str
    index: int
    state: State
    attempt: int
    actor: str | None
    epoch: int
    metrics: Json | None
    eta: Json | None


class EtaQueries(LeaseQueries):
    """Rows of live jobs, and their expected ends."""

    def live_jobs(self, limit: int) -> list[LiveJob]:
        """Jobs that are queued or worked on, those that began first, then in the order in which they are begun."""
        query = select(*(getattr(JobRecord, name) for name in LiveJob._fields))
        query = query.where(JobRecord.state.in_((State.QUEUED, State.RUNNING)))
        order = (JobRecord.state == State.QUEUED, JobRecord.priority.desc(), JobRecord.id)
        with self.database.read() as session:
            return [LiveJob._make(row) for row in session.execute(query.order_by(*order).limit(limit))]

    def live_runs(self, job_ids: Collection[str], limit: int) -> list[LiveRun]:
        """Runs of these jobs that are queued, lost or worked on, in the order of the jobs and their plans."""
        if not job_ids:
            return []
        place = case({id: number for number, id in enumerate(job_ids)}, value=RunRecord.job_id)
        query = select(*(getattr(RunRecord, column.name) for column in fields(LiveRun)))
        query = query.where(RunRecord.job_id.in_(job_ids), RunRecord.state.in_(_EXPECTED))
        with self.database.read() as session:
            rows = session.execute(query.order_by(place, RunRecord.index).limit(limit))
            return [LiveRun(*row) for row in rows]

    def plan_and_teacher(self, job_id: str) -> tuple[Json, Json] | None:
        """Plan and teacher of a job, as they were stored; None if it is gone."""
        query = select(JobRecord.plan, JobRecord.teacher).where(JobRecord.id == job_id)
        with self.database.read() as session:
            row = session.execute(query).one_or_none()
        return None if row is None else (row.plan, row.teacher)

    def began_at(self, job_ids: Collection[str]) -> dict[str, datetime]:
        """When the present attempt of each of these jobs began: after a pause, say, that is not when it was started."""
        if not job_ids:
            return {}
        query = select(EventRecord.job_id, func.max(EventRecord.at).label("at"))
        query = query.where(EventRecord.job_id.in_(job_ids), EventRecord.run_id == "", EventRecord.type == "state")
        query = query.join(JobRecord, JobRecord.id == EventRecord.job_id).where(
            EventRecord.attempt == JobRecord.attempt
        )
        with self.database.read() as session:
            return {row.job_id: row.at for row in session.execute(query.group_by(EventRecord.job_id))}

    def ready_caches(self, job_id: str) -> dict[str, datetime]:
        """Caches that a job has found or made complete, of each of several teachers as well: when, by their keys."""
        query = select(EventRecord).where(EventRecord.job_id == job_id, EventRecord.run_id == "")
        with self.database.read() as session:
            rows = event_rows(session, query.where(EventRecord.type == "cache_ready").order_by(EventRecord.seq))
        return {row.data["cache"]: row.at for row in rows}

    def last_event(self) -> int:
        """Number of the newest event of all; 0 before the first."""
        with self.database.read() as session:
            return session.scalar(select(func.max(EventRecord.seq))) or 0

    def progress_events(self, after: int, run_ids: Sequence[str] | None = None) -> list[EventRecord]:
        """Events of epochs and states later than ``after``, oldest first.

        Args:
            run_ids: of these runs alone.
        """
        wanted = (EventRecord.seq > after) & EventRecord.type.in_(("epoch", "state")) & (EventRecord.run_id != "")
        if run_ids is not None:
            wanted &= EventRecord.run_id.in_(run_ids)
        with self.database.read() as session:
            return event_rows(session, select(EventRecord).where(wanted).order_by(EventRecord.seq))

    def ended_count(self) -> int:
        """Runs that have ended so far: another one is another measured time."""
        query = select(func.count()).select_from(RunRecord).where(RunRecord.state == State.SUCCEEDED)
        with self.database.read() as session:
            return session.scalar(query) or 0

    def with_eta_beside(self, job_ids: Collection[str], run_ids: Collection[str]) -> tuple[list[str], list[str]]:
        """Ids of live jobs and runs beside these that have an expected end."""
        with self.database.read() as session:
            jobs = session.scalars(_with_eta(JobRecord)).all()
            runs = session.scalars(_with_eta(RunRecord)).all()
        return [id for id in jobs if id not in job_ids], [id for id in runs if id not in run_ids]

    def record_etas(self, jobs: Mapping[str, Json | None], runs: Mapping[str, Json | None]) -> None:
        """Store expected ends by id, None for what nothing is known of any more. Raises LeaseLost."""
        if not jobs and not runs:
            return
        with self.write() as session:
            for id, eta in jobs.items():
                session.execute(update(JobRecord).where(JobRecord.id == id, JobRecord.state.in_(LIVE)).values(eta=eta))
            for id, eta in runs.items():
                session.execute(update(RunRecord).where(RunRecord.id == id, RunRecord.state.in_(LIVE)).values(eta=eta))


def _with_eta(table: type[JobRecord] | type[RunRecord]) -> Select[str]:
    return select(table.id).where(table.state.in_(LIVE), table.eta.is_not(None))
