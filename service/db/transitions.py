"""Transitions of states, and other work on rows inside a transaction of the caller.

Every change of a state, by client or engine, goes through ``transition``: it obeys ``states.TABLE`` and adds its own
event (type ``state``) in the same transaction. ``Attempts`` are the engine's first ones: it claims and adopts jobs, and
starts runs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeGuard, TypeVar, cast

from sqlalchemy import CursorResult, Select, func, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, aliased

from service.db import webhook_outbox
from service.db.ids import is_id
from service.db.lease import LeaseQueries
from service.db.models import (
    Base,
    DatasetRecord,
    EventRecord,
    JobRecord,
    Json,
    KeyRecord,
    RunRecord,
    TeacherRecord,
    utc_now,
)
from service.db.states import JOB_TABLE, TABLE, TERMINAL, WORKING, State, move
from service.db.student_file_record import StudentFileRecord
from service.errors import IllegalMove, NotFound

# Keys whose first queued job is looked at, of those that have enough already.
_KEYS_ASKED_MAX = 16
# What reading a row raises: JSON or a time that is damaged, or nested too deep; text that is no UTF-8. It may be that
# the database itself cannot be read; the next query then says so.
DAMAGED = (ValueError, RecursionError, OperationalError)

Row = TypeVar("Row", TeacherRecord, StudentFileRecord, DatasetRecord, JobRecord, RunRecord, KeyRecord)
_KINDS: Mapping[type[Base], str] = {
    TeacherRecord: "teacher",
    StudentFileRecord: "student file",
    DatasetRecord: "dataset",
    JobRecord: "job",
    RunRecord: "run",
    KeyRecord: "API key",
}


def existing(session: Session, table: type[Row], id: str) -> Row:
    """One row. Raises NotFound, also for what cannot be an id at all."""
    row = session.get(table, id) if is_id(id) else None
    if row is None:
        raise NotFound(_KINDS[table], id)
    return row


def runs_of(job_id: str) -> Select[RunRecord]:
    """The runs of a job in the order of its plan."""
    return select(RunRecord).where(RunRecord.job_id == job_id).order_by(RunRecord.index)


def transition(
    session: Session,
    row: JobRecord | RunRecord,
    wanted: State,
    fields: Mapping[str, object] = MappingProxyType({}),
    error: Json | None = None,
) -> bool:
    """Compare and swap: state and fields are set if the row is still as it was read; with the event of it.

    Args:
        error: ``{"type", "message"}`` of what went wrong.

    Returns:
        Whether it landed: False if the table has no such move from the present state.
    """
    try:
        allowed = JOB_TABLE if isinstance(row, JobRecord) else TABLE
        values: dict[str, object] = {**fields, "state": move(row.state, wanted, allowed)}
    except IllegalMove:
        return False
    now = utc_now()
    # Whatever it waited for, it is in another state now.
    values.setdefault("set_aside", None)
    if isinstance(row, RunRecord):
        values["waits_for"] = None
    if error is not None:
        values["error"] = error
    if wanted is State.RUNNING:
        values["started_at"] = row.started_at or now
    if wanted in TERMINAL:
        values["finished_at"] = now
    if wanted is State.LOST and isinstance(row, RunRecord):
        values["lost_attempts"] = row.lost_attempts + 1
    table = type(row)
    unchanged = (table.id == row.id) & (table.state == row.state) & (table.attempt == row.attempt)
    result = session.execute(update(table).where(unchanged).values(values))
    if cast("CursorResult[Any]", result).rowcount != 1:
        return False
    event: Json = {"type": "state", "state": wanted, "error": error}
    if (reason := values["set_aside"]) is not None:
        event["set_aside"] = reason
    add_event(session, row, event)
    if isinstance(row, JobRecord):
        webhook_outbox.make_due(session, row)
    return True


def works_on(row: JobRecord | RunRecord | None, attempt: int) -> TypeGuard[JobRecord | RunRecord]:
    """Whether a write of this attempt lands: it is the newest one, and somebody works on the row."""
    return row is not None and row.attempt == attempt and row.state in WORKING


def assign(row: JobRecord | RunRecord, fields: Mapping[str, object]) -> None:
    """Set columns of a row. Raises TypeError for its state, which only ``transition`` changes."""
    if "state" in fields:
        raise TypeError("a state is changed by transition alone, which obeys the table and adds its event")
    for name, value in fields.items():
        setattr(row, name, value)


def add_event(session: Session, row: JobRecord | RunRecord, event: Json) -> None:
    """Add an event of the service's own to a job or run, for its present attempt."""
    job_id, run_id = (row.id, None) if isinstance(row, JobRecord) else (row.job_id, row.id)
    session.execute(insert(EventRecord), [event_row(job_id, run_id, row.attempt, event)])


def event_row(job_id: str, run_id: str | None, attempt: int, event: Json, n: int | None = None) -> Json:
    """Columns of an event; ``run_id`` None is the job itself, ``n`` None what the service adds of its own."""
    return {
        "job_id": job_id,
        "run_id": run_id or "",
        "attempt": attempt,
        "n": n,
        "type": event["type"],
        "data": {key: value for key, value in event.items() if key != "type"},
    }


def event_rows(session: Session, query: Select[EventRecord]) -> list[EventRecord]:
    """The rows of a query for events; in the place of one whose columns cannot be read stands an ``unreadable`` one."""
    try:
        return list(session.scalars(query))
    except DAMAGED:
        found = [
            _event_or_unreadable(session, seq) for seq in session.scalars(query.with_only_columns(EventRecord.seq))
        ]
    return [row for row in found if row is not None]


def _event_or_unreadable(session: Session, seq: int) -> EventRecord | None:
    """One event; None if it was deleted meanwhile."""
    is_this = EventRecord.seq == seq
    try:
        return session.scalars(select(EventRecord).where(is_this)).one_or_none()
    except DAMAGED:
        owners = session.execute(select(EventRecord.job_id, EventRecord.run_id).where(is_this)).one_or_none()
    return None if owners is None else unreadable(seq, *owners)


def unreadable(seq: int, job_id: str, run_id: str) -> EventRecord:
    """Substitute for an event that is damaged in the database: a warning that says so. It is not stored."""
    message = f"event {seq} cannot be read: what the database holds of it is damaged"
    event = {"type": "log", "level": "warning", "message": message}
    return EventRecord(seq=seq, at=utc_now(), **event_row(job_id, run_id, 0, event))


def all_paused(runs: Iterable[RunRecord]) -> bool:
    """Whether nothing is left of a job but what is paused: every run is paused or final, and one at least is paused."""
    states = {run.state for run in runs}
    return State.PAUSED in states and states <= TERMINAL | {State.PAUSED}


def end_of(runs: Iterable[RunRecord]) -> tuple[State, Json | None]:
    """End of a job whose runs have all ended, and which no client has cancelled as a whole.

    It has failed if one run has. Else it is what most of them are, succeeded or cancelled: somebody who cancels one run
    of nine is left with a job of eight results. Of as many of each it has succeeded.

    Returns:
        The state, and the error that says how many runs failed, and why the first one did.
    """
    ended = list(runs)
    failed = [run for run in ended if run.state is State.FAILED]
    if failed:
        why = (failed[0].error or {}).get("message")
        message = f"{len(failed)} of {len(ended)} runs failed; the first, {failed[0].name!r}: {why}"
        return State.FAILED, {"type": "RunsFailed", "message": message}
    cancelled = sum(run.state is State.CANCELLED for run in ended)
    return State.CANCELLED if 2 * cancelled > len(ended) else State.SUCCEEDED, None


def actor_name(run_id: str, attempt: int) -> str:
    """The name of the process that trains this attempt, and perhaps other runs beside it."""
    return f"run-{run_id}-a{attempt}"


def _queued_in_turn() -> Select[str]:
    """Ids of queued jobs, the one whose turn it is first, see ``Attempts.claim_job``."""
    other = aliased(JobRecord)
    busy = select(other.key_id, func.count().label("jobs")).where(other.state.in_(WORKING))
    share = busy.group_by(other.key_id).subquery()
    query = select(JobRecord.id).where(JobRecord.state == State.QUEUED)
    query = query.outerjoin(share, share.c.key_id.is_not_distinct_from(JobRecord.key_id))
    return query.order_by(JobRecord.priority.desc(), func.coalesce(share.c.jobs, 0), JobRecord.id)


class Attempts(LeaseQueries):
    """Attempts that an engine begins: it claims and adopts jobs, and starts runs; each fences off the one before."""

    def claim_job(self, accepts: Callable[[JobRecord], bool] = lambda job: True) -> JobRecord | None:
        """Move the queued job whose turn it is to running, as a new attempt; None if there is none.

        First comes the highest priority; among equals the API key of which the fewest jobs are being worked on, all
        jobs without a key counting as one key's; among these the oldest job.

        Args:
            accepts: asked of that job, and then of the first one of each other key.
        """
        with self.database.read() as session:
            # An engine asks several times a second: only an answer is worth the lock.
            if session.scalar(select(JobRecord.id).where(JobRecord.state == State.QUEUED).limit(1)) is None:
                return None
        query = _queued_in_turn()
        with self.write() as session:
            for _ in range(_KEYS_ASKED_MAX):
                next_id = session.scalar(query.limit(1))
                if next_id is None:
                    break
                job = session.get_one(JobRecord, next_id)
                if accepts(job):
                    transition(session, job, State.RUNNING, {"attempt": job.attempt + 1, "holder": self.holder})
                    return job
                # Whatever its priority, a key that has enough keeps no other waiting.
                query = query.where(JobRecord.key_id.is_distinct_from(job.key_id))
            return None

    def adopt_job(self, job_id: str) -> JobRecord | None:
        """Make this engine the one who works on an unfinished job: a new attempt, so its former one is fenced off.

        Its state stays what it is. None if the job is queued or paused, or has ended.
        """
        with self.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.state not in WORKING:
                return None
            assign(job, {"attempt": job.attempt + 1, "holder": self.holder})
            return job

    def start_attempts(self, run_ids: Sequence[str], share: Json | None = None) -> list[RunRecord]:
        """Move those of these runs that are queued or lost to running, to be trained together in one process.

        Args:
            share: what each process is given, for whoever finds it later, see ``RunRecord``.

        Returns:
            Those that have started, in the given order: with ``attempt`` counted up (from 1), ``actor`` the
            ``actor_name`` of the first of them, and ``slot`` 0, 1, ... Left out is a run in another state, or whose
            job is not running.
        """
        started: list[RunRecord] = []
        with self.write() as session:
            for run_id in run_ids:
                run = session.get(RunRecord, run_id)
                if run is None or session.get_one(JobRecord, run.job_id).state is not State.RUNNING:
                    continue
                attempt = run.attempt + 1
                actor = started[0].actor if started else actor_name(run.id, attempt)
                if run.state in {State.QUEUED, State.LOST} and transition(
                    session,
                    run,
                    State.RUNNING,
                    {"attempt": attempt, "actor": actor, "slot": len(started), "share": share},
                ):
                    started.append(run)
        return started
