"""What the engine reads and writes: claims, states, attempts, events, artifacts, its lease.

Each method is one short transaction. Every move of a state is a compare-and-swap through ``jobs.move``, and every
write on behalf of a run or job is fenced by its ``attempt``: it lands only while that attempt is the newest one and
still works on it. A method that can be overtaken says so by returning False, None or 0; it never raises for that.
A change of state adds its own event (type ``state``) in the same transaction.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeGuard, TypeVar, cast

from sqlalchemy import CursorResult, Select, insert, select, update
from sqlalchemy.orm import Session

from service.db import Database
from service.errors import IllegalMove, NotFound
from service.jobs import LIVE, TERMINAL, WORKING, State, move
from service.tables import (
    ArtifactRecord,
    EngineRecord,
    EventRecord,
    JobRecord,
    Json,
    RunRecord,
    utc_now,
)

ENGINE_ROW = 1
JOB_FIELDS = frozenset({"stage", "inference", "caches", "teacher_forwards", "teacher_accuracy"})
RUN_FIELDS = frozenset({"epoch", "epochs", "progress", "metrics"})


class Records:
    """The rows that the engine works on.

    Args:
        database: migrated to head.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # -------------------------------------------------------------------------------------------------------- jobs

    def job(self, job_id: str) -> JobRecord:
        """One job. Raises NotFound."""
        with self.database.read() as session:
            return _existing(session, JobRecord, "job", job_id)

    def claim_job(self, holder: str) -> JobRecord | None:
        """Moves the oldest queued job to running, for ``holder`` and as a new attempt; None if there is none."""
        query = select(JobRecord).where(JobRecord.state == State.QUEUED)
        query = query.order_by(JobRecord.id).limit(1)
        with self.database.read() as session:
            # An engine asks several times a second: only an answer is worth the lock.
            if session.scalars(query).one_or_none() is None:
                return None
        with self.database.write() as session:
            job = session.scalars(query).one_or_none()
            if job is None:
                return None
            _swap(session, job, State.RUNNING, {"attempt": job.attempt + 1, "holder": holder})
            return job

    def unfinished_jobs(self) -> list[JobRecord]:
        """Jobs that somebody was working on, oldest first: what an engine has to pick up when it starts."""
        with self.database.read() as session:
            query = select(JobRecord).where(JobRecord.state.in_(WORKING | {State.LOST}))
            return list(session.scalars(query.order_by(JobRecord.id)))

    def adopt_job(self, job_id: str, holder: str) -> JobRecord | None:
        """Makes ``holder`` the one who works on an unfinished job: a new attempt, so its former engine is fenced off.

        A lost job runs again. None if the job is queued or has ended.
        """
        with self.database.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.state not in WORKING | {State.LOST}:
                return None
            begun: Json = {"attempt": job.attempt + 1, "holder": holder}
            if job.state is State.LOST:
                _swap(session, job, State.RUNNING, begun)
            else:
                _assign(job, begun)
            return job

    def move_job(
        self,
        job_id: str,
        wanted: State,
        *,
        error: Json | None = None,
        attempt: int | None = None,
        **fields: object,
    ) -> bool:
        """Moves a job's state and sets ``fields`` with it (see ``update_job``).

        Args:
            error: ``{"type", "message"}`` of what went wrong.
            attempt: refuse if the job has a newer one; None does not ask.

        Returns:
            Whether it landed: False if the table has no such move from the present state.
        """
        _check_fields(fields, JOB_FIELDS)
        with self.database.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or attempt not in (None, job.attempt):
                return False
            return _swap(session, job, wanted, fields, error)

    def update_job(self, job_id: str, *, attempt: int | None = None, **fields: object) -> bool:
        """Sets ``stage``, ``inference``, ``caches``, ``teacher_forwards`` or ``teacher_accuracy`` of a running job.

        Returns:
            Whether it landed: False if nobody works on the job or ``attempt`` is an old one.

        Raises:
            TypeError: another field.
        """
        _check_fields(fields, JOB_FIELDS)
        with self.database.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.state not in WORKING or attempt not in (None, job.attempt):
                return False
            _assign(job, fields)
            return True

    def request_cancel(self, job_id: str) -> JobRecord:
        """Asks for a job to end: what has not begun is cancelled now, what runs is told to stop. Idempotent.

        A job that has ended stays as it is. Raises NotFound.
        """
        with self.database.write() as session:
            job = _existing(session, JobRecord, "job", job_id)
            if job.state in TERMINAL or job.state is State.CANCELLING:
                return job
            # Of a job that is queued or lost nobody would ever end a run that is merely told to stop.
            attended = job.state is State.RUNNING
            for run in session.scalars(_runs_of(job_id).where(RunRecord.state.in_(LIVE))):
                _swap(session, run, _cancelled(run.state) if attended else State.CANCELLED)
            _swap(session, job, _cancelled(job.state))
            return job

    def is_cancelling(self, job_id: str) -> bool:
        """Whether work on this job should stop: it is being cancelled, or it is gone."""
        with self.database.read() as session:
            state = session.scalar(select(JobRecord.state).where(JobRecord.id == job_id))
            return state is None or state in {State.CANCELLING, State.CANCELLED}

    # -------------------------------------------------------------------------------------------------------- runs

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises NotFound."""
        with self.database.read() as session:
            return _existing(session, RunRecord, "run", run_id)

    def runs(self, job_id: str) -> list[RunRecord]:
        """The runs of a job in the order of its plan; empty if there is no such job."""
        with self.database.read() as session:
            return list(session.scalars(_runs_of(job_id)))

    def start_attempt(self, run_id: str) -> int | None:
        """Moves a queued or lost run to running.

        Returns:
            The number of the new attempt, from 1; None if the run is in another state or its job is not running.
        """
        with self.database.write() as session:
            run = session.get(RunRecord, run_id)
            if run is None or session.get_one(JobRecord, run.job_id).state is not State.RUNNING:
                return None
            began = _swap(session, run, State.RUNNING, {"attempt": run.attempt + 1})
            return run.attempt if began else None

    def move_run(
        self,
        run_id: str,
        attempt: int,
        wanted: State,
        *,
        error: Json | None = None,
        result: Json | None = None,
    ) -> bool:
        """Moves a run's state on behalf of one attempt (0 for a run that never started).

        Returns:
            Whether it landed: False if a newer attempt has begun or the table has no such move.
        """
        with self.database.write() as session:
            run = session.get(RunRecord, run_id)
            if run is None or run.attempt != attempt:
                return False
            values = {} if result is None else {"result": result}
            return _swap(session, run, wanted, values, error)

    def record_artifacts(self, run_id: str, attempt: int, artifacts: Sequence[Json]) -> bool:
        """Lists files that this attempt has left; one of the same name replaces the earlier entry.

        Args:
            artifacts: each ``{"name", "path", "size_bytes", "sha256", "media_type"}``, path relative to the data
                directory.

        Returns:
            Whether they landed: False if this attempt does not work on the run any more.
        """
        with self.database.write() as session:
            if not _works_on(session.get(RunRecord, run_id), attempt):
                return False
            for artifact in artifacts:
                session.merge(ArtifactRecord(run_id=run_id, attempt=attempt, **artifact))
            return True

    # ------------------------------------------------------------------------------------------------------ events

    def record_events(
        self,
        job_id: str,
        run_id: str | None,
        attempt: int,
        events: Sequence[tuple[int, Json]],
        *,
        progress: Mapping[str, Any] | None = None,
    ) -> int:
        """Stores what a worker told, and the progress that follows from it, in one transaction.

        Args:
            run_id: None for events of the job itself; ``attempt`` is then the job's.
            events: pairs of the number within the attempt and the event as JSON (with its ``type``). A number that
                is there already is left out: sending again is safe.
            progress: columns of the run (``epoch``, ``epochs``, ``progress``, ``metrics``) or of the job (see
                ``update_job``).

        Returns:
            How many events were new; 0 if this attempt does not work on it any more.
        """
        fields = dict(progress or {})
        _check_fields(fields, RUN_FIELDS if run_id else JOB_FIELDS)
        with self.database.write() as session:
            owner = session.get(RunRecord, run_id) if run_id else session.get(JobRecord, job_id)
            if owner is None or not _works_on(owner, attempt):
                return 0
            _assign(owner, fields)
            # What the service adds of its own has no n.
            known = select(EventRecord.n).where(
                EventRecord.job_id == job_id,
                EventRecord.run_id == (run_id or ""),
                EventRecord.attempt == attempt,
                EventRecord.n.in_([n for n, _ in events]),
            )
            stored = set(session.scalars(known))
            new = {n: event for n, event in events if n not in stored}
            rows = [_event_row(job_id, run_id, attempt, n, new[n]) for n in sorted(new)]
            if rows:
                session.execute(insert(EventRecord), rows)
            return len(rows)

    # ------------------------------------------------------------------------------------------------------- lease

    def acquire_lease(self, holder: str, ttl_s: float = 30.0, gone: str | None = None) -> bool:
        """Takes the lease, or renews it: call it as the heartbeat, several times per ``ttl_s``.

        Args:
            gone: a holder that is known to have died; nobody waits for its lease to run out.

        Returns:
            Whether ``holder`` leads: False while another one's heartbeat is younger than ``ttl_s``.
        """
        with self.database.write() as session:
            now = self.database.now(session)
            lease = session.get_one(EngineRecord, ENGINE_ROW)
            beat = lease.heartbeat_at
            alive = beat is not None and now - beat < timedelta(seconds=ttl_s)
            if alive and lease.holder not in (None, holder, gone):
                return False
            lease.holder, lease.heartbeat_at = holder, now
            return True

    def release_lease(self, holder: str) -> bool:
        """Gives the lease back, so that the next engine need not wait; False if ``holder`` did not have it."""
        mine = (EngineRecord.id == ENGINE_ROW) & (EngineRecord.holder == holder)
        with self.database.write() as session:
            released = session.execute(update(EngineRecord).where(mine).values(holder=None))
            return cast("CursorResult[Any]", released).rowcount == 1

    def lease_holder(self) -> str | None:
        """Who has the lease, heard of lately or not; None if nobody has."""
        with self.database.read() as session:
            return session.get_one(EngineRecord, ENGINE_ROW).holder

    def heartbeat_age_s(self) -> float | None:
        """Seconds since the leading engine was last heard of; None if none leads."""
        with self.database.read() as session:
            lease = session.get_one(EngineRecord, ENGINE_ROW)
            if lease.holder is None or lease.heartbeat_at is None:
                return None
            return (self.database.now(session) - lease.heartbeat_at).total_seconds()


Row = TypeVar("Row", JobRecord, RunRecord)


def _existing(session: Session, table: type[Row], kind: str, id: str) -> Row:
    row = session.get(table, id)
    if row is None:
        raise NotFound(kind, id)
    return row


def _runs_of(job_id: str) -> Select[RunRecord]:
    return select(RunRecord).where(RunRecord.job_id == job_id).order_by(RunRecord.index)


def _works_on(row: JobRecord | RunRecord | None, attempt: int) -> TypeGuard[JobRecord | RunRecord]:
    return row is not None and row.attempt == attempt and row.state in WORKING


def _cancelled(state: State) -> State:
    """What a request to cancel makes of a live state."""
    return State.CANCELLING if state in WORKING else State.CANCELLED


def _swap(
    session: Session,
    row: JobRecord | RunRecord,
    wanted: State,
    fields: Mapping[str, object] = MappingProxyType({}),
    error: Json | None = None,
) -> bool:
    """Compare and swap: state and fields are set if the row is still as it was read; with the event of it."""
    try:
        values: dict[str, object] = {**fields, "state": move(row.state, wanted)}
    except IllegalMove:
        return False
    now = utc_now()
    if error is not None:
        values["error"] = error
    if wanted is State.RUNNING:
        values["started_at"] = row.started_at or now
    if wanted in TERMINAL:
        values["finished_at"] = now
    table = type(row)
    unchanged = (table.id == row.id) & (table.state == row.state) & (table.attempt == row.attempt)
    result = session.execute(update(table).where(unchanged).values(values))
    if cast("CursorResult[Any]", result).rowcount != 1:
        return False
    job_id, run_id = (row.id, None) if isinstance(row, JobRecord) else (row.job_id, row.id)
    told = {"type": "state", "state": wanted, "error": error}
    session.execute(insert(EventRecord), [_event_row(job_id, run_id, row.attempt, None, told)])
    return True


def _event_row(job_id: str, run_id: str | None, attempt: int, n: int | None, told: Json) -> Json:
    return {
        "job_id": job_id,
        "run_id": run_id or "",
        "attempt": attempt,
        "n": n,
        "type": told["type"],
        "data": {key: value for key, value in told.items() if key != "type"},
    }


def _check_fields(fields: Mapping[str, Any], allowed: frozenset[str]) -> None:
    if unknown := sorted(set(fields) - allowed):
        raise TypeError(f"{', '.join(unknown)} cannot be set here, only {', '.join(sorted(allowed))}")


def _assign(row: JobRecord | RunRecord, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        setattr(row, name, value)
