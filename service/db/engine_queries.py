"""What the engine reads and writes: claims, states, attempts, events, artifacts, its lease.

Each method is one short transaction, and three things keep a late writer out of it. Every write asks that the lease
still names this ``holder``, else it raises ``LeaseLost``: an engine that was stopped or cut off cannot write beside its
successor. Every move of a state is a compare-and-swap through ``states.TABLE``. Every write on behalf of a run or job
is fenced by its ``attempt``: it lands only while that attempt is the newest one and still works on it. A method that
can be overtaken in the last two ways says so by returning False or None; it never raises for that. What clients ask for
(cancel, pause, resume) is ``job_control``'.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeGuard, cast

from sqlalchemy import CursorResult, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from service.db import set_aside
from service.db.backoff import Backoff
from service.db.database import Database
from service.db.lease import Lease
from service.db.models import ArtifactRecord, EngineRecord, EventRecord, JobRecord, Json, RunRecord
from service.db.states import LIVE, TABLE, TERMINAL, WORKING, State
from service.db.transitions import all_paused, event_row, existing, runs_of, transition
from service.errors import LeaseLost

ENGINE_ROW = 1
JOB_FIELDS = frozenset(
    {"stage", "inference", "caches", "teacher_forwards", "teacher_accuracy", "teacher_views_accuracy", "backoff"}
)
RUN_FIELDS = frozenset({"epoch", "epochs", "progress", "metrics", "backoff"})


def actor_name(run_id: str, attempt: int) -> str:
    """The name of the process that trains this attempt, and perhaps other runs beside it."""
    return f"run-{run_id}-a{attempt}"


# Keys whose first queued job is looked at, of those that have enough already.
_KEYS_ASKED_MAX = 16


class EngineQueries:
    """The rows that the engine works on.

    Args:
        database: migrated to head.
        holder: this engine's name in the lease; None writes without asking for the lease, as the API and tests do.
    """

    def __init__(self, database: Database, holder: str | None = None) -> None:
        self.database = database
        self.holder = holder
        # The heartbeat of another engine that was read last, and when it was new here (monotonic seconds).
        self._heard: tuple[str | None, datetime | None] = (None, None)
        self._heard_s = 0.0

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """A transaction of the engine. Raises LeaseLost."""
        with self.database.write() as session:
            if self.holder is not None:
                leader = session.get_one(EngineRecord, ENGINE_ROW).holder
                if leader != self.holder:
                    raise LeaseLost(f"{self.holder} writes, but {leader or 'no engine'} has the lease: end this engine")
            yield session

    # -------------------------------------------------------------------------------------------------------- jobs

    def job(self, job_id: str) -> JobRecord:
        """One job. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, JobRecord, job_id)

    def states(self, job_id: str) -> tuple[State | None, dict[str, State]]:
        """The states of a job and of its runs by id, of the same moment; None if the job is gone."""
        query = select(JobRecord.state, RunRecord.id, RunRecord.state)
        query = query.outerjoin(RunRecord, RunRecord.job_id == JobRecord.id).where(JobRecord.id == job_id)
        with self.database.read() as session:
            rows = session.execute(query.order_by(RunRecord.index)).all()
        return rows[0][0] if rows else None, {id: state for _, id, state in rows if id is not None}

    def claim_job(self, accepts: Callable[[JobRecord], bool] = lambda job: True) -> JobRecord | None:
        """Moves the queued job whose turn it is to running, as a new attempt; None if there is none.

        First comes the highest priority; among equals the API key of which the fewest jobs are being worked on, all
        jobs without a key counting as one key's; among these the oldest job.

        Args:
            accepts: asked of that job, and then of the first one of each other key.
        """
        with self.database.read() as session:
            # An engine asks several times a second: only an answer is worth the lock.
            waiting = select(JobRecord.id).where(JobRecord.state == State.QUEUED).limit(1)
            if session.scalar(waiting) is None:
                return None
        other = aliased(JobRecord)
        busy = select(other.key_id, func.count().label("jobs")).where(other.state.in_(WORKING))
        share = busy.group_by(other.key_id).subquery()
        query = select(JobRecord.id).where(JobRecord.state == State.QUEUED)
        query = query.outerjoin(share, share.c.key_id.is_not_distinct_from(JobRecord.key_id))
        query = query.order_by(JobRecord.priority.desc(), func.coalesce(share.c.jobs, 0), JobRecord.id)
        with self._write() as session:
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

    def unfinished_jobs(self) -> list[JobRecord]:
        """Jobs that somebody was working on, oldest first: what an engine has to pick up when it starts."""
        with self.database.read() as session:
            query = select(JobRecord).where(JobRecord.state.in_(WORKING))
            return list(session.scalars(query.order_by(JobRecord.id)))

    def caches_in_use(self, job_ids: Collection[str] | None = None) -> dict[str, Json]:
        """Keys of the caches, by split, of each job that has not ended: it may wait or be paused.

        Args:
            job_ids: ask for these jobs alone.
        """
        query = select(JobRecord.id, JobRecord.caches).where(JobRecord.state.in_(LIVE))
        if job_ids is not None:
            query = query.where(JobRecord.id.in_(job_ids))
        with self.database.read() as session:
            return {id: caches for id, caches in session.execute(query) if caches}

    def adopt_job(self, job_id: str) -> JobRecord | None:
        """Makes this engine the one who works on an unfinished job: a new attempt, so its former one is fenced off.

        Its state stays what it is. None if the job is queued or paused, or has ended.
        """
        with self._write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.state not in WORKING:
                return None
            _assign(job, {"attempt": job.attempt + 1, "holder": self.holder})
            return job

    def move_job(self, job_id: str, wanted: State, *, error: Json | None = None, attempt: int | None = None) -> bool:
        """Moves a job to one of its ends.

        A job that fails or is cancelled takes its runs along: those that have not ended are cancelled, saying why.

        Args:
            error: ``{"type", "message"}`` of what went wrong.
            attempt: refuse if the job has a newer one; None does not ask.

        Returns:
            Whether it landed: False if ``wanted`` is no end, if the table has no such move from the present state, or
            if the job shall have succeeded while a run of it has not ended.
        """
        with self._write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or attempt not in (None, job.attempt) or wanted not in TABLE[job.state] & TERMINAL:
                return False
            left = list(session.scalars(runs_of(job_id).where(RunRecord.state.in_(LIVE))))
            if left and wanted is State.SUCCEEDED:
                return False
            for run in left:
                transition(session, run, State.CANCELLED, error=_because_of(error))
            return transition(session, job, wanted, error=error)

    def settle_job(self, job_id: str, attempt: int) -> bool:
        """Moves a job to paused of which nothing is left but what is paused; its worker has put it down.

        Of a pausing job, what waits (it vanished, say, before it could save its state) is set aside first.

        Returns:
            Whether it landed: False if a run is neither paused nor final, if none is paused, if the job is neither
            running nor pausing, or if it has a newer attempt.
        """
        with self._write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.attempt != attempt or job.state not in {State.RUNNING, State.PAUSING}:
                return False
            runs = list(session.scalars(runs_of(job_id)))
            if job.state is State.PAUSING:
                for run in runs:
                    if run.state in {State.QUEUED, State.LOST}:
                        transition(session, run, State.PAUSED)
            if not all_paused(runs):
                return False
            reason = None
            if job.state is State.RUNNING:
                reason = set_aside.reason_among(runs)
                transition(session, job, State.PAUSING)
            return transition(session, job, State.PAUSED, {"set_aside": reason})

    def set_job_aside(self, job_id: str, attempt: int, reason: Json) -> bool:
        """See ``set_aside.put_job``."""
        with self._write() as session:
            return set_aside.put_job(session, job_id, attempt, reason)

    def update_job(self, job_id: str, *, attempt: int | None = None, **fields: object) -> bool:
        """Sets columns of a job that somebody works on: those of ``JOB_FIELDS``.

        Returns:
            Whether it landed: False if nobody works on the job or ``attempt`` is an old one.

        Raises:
            TypeError: another field.
        """
        _check_fields(fields, JOB_FIELDS)
        with self._write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.state not in WORKING or attempt not in (None, job.attempt):
                return False
            _assign(job, fields)
            return True

    def record_backoff(self, job_id: str, attempt: int, backoff: Backoff) -> None:
        """Stores that a job's caches start again later, and tells of it (``log``); not of a job that is over."""
        with self._write() as session:
            job = session.get(JobRecord, job_id)
            if not _works_on(job, attempt):
                return
            _assign(job, {"backoff": backoff.model_dump(mode="json")})
            event = {"type": "log", "level": "warning", "message": f"inference was {backoff.waits_for}"}
            session.execute(insert(EventRecord), [event_row(job_id, None, attempt, None, event)])

    # -------------------------------------------------------------------------------------------------------- runs

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, RunRecord, run_id)

    def runs(self, job_id: str) -> list[RunRecord]:
        """The runs of a job in the order of its plan; empty if there is no such job."""
        with self.database.read() as session:
            return list(session.scalars(runs_of(job_id)))

    def start_attempts(self, run_ids: Sequence[str], share: Json | None = None) -> list[RunRecord]:
        """Moves those of these runs that are queued or lost to running, to be trained together in one process.

        Args:
            share: what each process is given, for whoever finds it later, see ``RunRecord``.

        Returns:
            Those that have started, in the given order: with ``attempt`` counted up (from 1), ``actor`` the
            ``actor_name`` of the first of them, and ``slot`` 0, 1, ... Left out is a run in another state, or whose
            job is not running.
        """
        started: list[RunRecord] = []
        with self._write() as session:
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
            Whether it landed: False if a newer attempt has begun, if the table has no such move, or if the run shall
            be running, which begins an attempt and is ``start_attempts``'.
        """
        with self._write() as session:
            run = session.get(RunRecord, run_id)
            if run is None or run.attempt != attempt or wanted is State.RUNNING:
                return False
            return transition(session, run, wanted, {} if result is None else {"result": result}, error)

    def move_on(
        self,
        run_id: str,
        attempt: int,
        after: Mapping[State, State],
        *,
        needs_whole_gpu: bool = False,
        backoff: Backoff | None = None,
    ) -> State | None:
        """Moves a run that nobody works on any more to the state that follows from what was wanted of it just now.

        Args:
            after: by the present state.
            needs_whole_gpu: from now on it is given nothing less.
            backoff: its new one, if it was lost, which is told (``log``).

        Returns:
            The new state; None if it did not land: a newer attempt has begun, or ``after`` has nothing for its state.
        """
        with self._write() as session:
            run = session.get(RunRecord, run_id)
            if run is None or run.attempt != attempt or run.state not in after:
                return None
            # The transition changes the row's state.
            wanted = after[run.state]
            fields: dict[str, object] = {"whole_gpu": True} if needs_whole_gpu else {}
            if backoff is not None:
                fields["backoff"] = backoff.model_dump(mode="json")
            if not transition(session, run, wanted, fields):
                return None
            if backoff is not None and wanted is State.LOST:
                event = {"type": "log", "level": "warning", "message": backoff.waits_for}
                session.execute(insert(EventRecord), [event_row(run.job_id, run_id, attempt, None, event)])
                reason = None if backoff.is_over else backoff.waits_for
                session.execute(update(RunRecord).where(RunRecord.id == run_id).values(waits_for=reason))
            return wanted

    def waits_for(self, job_id: str) -> dict[str, str]:
        """Why runs of a job wait, by id, as it is stored: a client who pauses and resumes a run takes it away."""
        query = select(RunRecord.id, RunRecord.waits_for).where(RunRecord.job_id == job_id)
        with self.database.read() as session:
            return {id: reason for id, reason in session.execute(query) if reason is not None}

    def set_run_aside(self, run_id: str, attempt: int, reason: Json) -> State | None:
        """See ``set_aside.put_run``."""
        with self._write() as session:
            return set_aside.put_run(session, run_id, attempt, reason)

    def runs_aside(self) -> list[tuple[str, str]]:
        """See ``set_aside.waiting``."""
        with self.database.read() as session:
            return set_aside.waiting(session)

    def resume_set_aside(self, run_ids: Collection[str]) -> list[str]:
        """See ``set_aside.resume``."""
        with self._write() as session:
            return set_aside.resume(session, run_ids)

    def record_waiting(self, job_id: str, reasons: Mapping[str, str]) -> None:
        """Stores why runs of a job wait although it is their turn; those without a reason have none any more.

        A run that had none gets an event (``log``) with it, beside the column that follows every change.

        Args:
            reasons: by run id; of runs that do not wait (any more) they are left out.
        """
        with self._write() as session:
            for run in session.scalars(runs_of(job_id)):
                reason = reasons.get(run.id) if run.state in {State.QUEUED, State.LOST} else None
                if reason == run.waits_for:
                    continue
                if run.waits_for is None:
                    event = {"type": "log", "level": "info", "message": reason}
                    session.execute(insert(EventRecord), [event_row(job_id, run.id, run.attempt, None, event)])
                _assign(run, {"waits_for": reason})

    def record_result(self, run_id: str, attempt: int, artifacts: Sequence[Json], result: Json) -> bool:
        """Ends a run that has succeeded, and lists the files that this attempt has left, both or neither.

        It has succeeded even if it was told to pause or to cancel meanwhile.

        Args:
            artifacts: each ``{"name", "path", "size_bytes", "sha256", "media_type"}``, path relative to the data
                directory.

        Returns:
            Whether it landed: False if this attempt does not work on the run any more.
        """
        with self._write() as session:
            run = session.get(RunRecord, run_id)
            if not _works_on(run, attempt):
                return False
            session.add_all(ArtifactRecord(run_id=run_id, attempt=attempt, **artifact) for artifact in artifacts)
            return transition(session, run, State.SUCCEEDED, {"result": result})

    # ------------------------------------------------------------------------------------------------------ events

    def next_event(self, job_id: str, run_id: str | None, attempt: int) -> int:
        """The number from which a worker that was found again goes on: one more than the largest that is stored."""
        query = select(func.max(EventRecord.n)).where(
            EventRecord.job_id == job_id, EventRecord.run_id == (run_id or ""), EventRecord.attempt == attempt
        )
        with self.database.read() as session:
            largest = session.scalar(query)
        return 0 if largest is None else largest + 1

    def record_events(
        self,
        job_id: str,
        run_id: str | None,
        attempt: int,
        events: Sequence[tuple[int, Json]],
        *,
        progress: Mapping[str, Any] | None = None,
    ) -> int | None:
        """Stores what a worker told, and the progress that follows from it, in one transaction.

        Args:
            run_id: None for events of the job itself; ``attempt`` is then the job's.
            events: pairs of the number within the attempt and the event as JSON (with its ``type``). A number that
                is there already is left out: sending again is safe.
            progress: columns of the run (``epoch``, ``epochs``, ``progress``, ``metrics``) or of the job (see
                ``update_job``).

        Returns:
            How many events were new; None if this attempt does not work on it any more.
        """
        fields = dict(progress or {})
        _check_fields(fields, RUN_FIELDS if run_id else JOB_FIELDS)
        with self._write() as session:
            owner = session.get(RunRecord, run_id) if run_id else session.get(JobRecord, job_id)
            if not _works_on(owner, attempt):
                return None
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
            rows = [event_row(job_id, run_id, attempt, n, new[n]) for n in sorted(new)]
            if rows:
                session.execute(insert(EventRecord), rows)
            return len(rows)

    # ------------------------------------------------------------------------------------------------------- lease

    def acquire_lease(
        self,
        ttl_s: float = 30.0,
        gone: str | None = None,
        begin: Callable[[Json | None], Json | None] = lambda parts: None,
        *,
        renews: bool = False,
    ) -> bool:
        """Takes the lease, or renews it: call it as the heartbeat, several times per ``ttl_s``.

        Clocks may be wrong, or be set while an engine leads. So another engine counts as alive only while both its
        heartbeat is younger than ``ttl_s`` and it was not the same for so long by this process's monotonic clock: one
        from the future delays a takeover by ``ttl_s``, and no longer. An engine that is alive after all cannot write
        any more, see ``LeaseLost``.

        Args:
            gone: a holder that is known to have died; nobody waits for its lease to run out.
            begin: what this holder says of its parts when it takes the lease, from what the last one said.
            renews: only keep what this holder has: another engine may have led meanwhile, and what this one knows of
                the jobs is of before.

        Returns:
            Whether this holder leads: False while another one is alive.
        """
        assert self.holder is not None, "a lease has a holder"
        with self.database.write() as session:
            now = self.database.now(session)
            lease = session.get_one(EngineRecord, ENGINE_ROW)
            if renews and lease.holder != self.holder:
                return False
            if lease.holder not in (None, self.holder, gone) and self._is_alive(lease, now, ttl_s):
                return False
            if lease.holder != self.holder:
                lease.gpus, lease.parts = None, begin(lease.parts)
            lease.holder, lease.heartbeat_at = self.holder, now
            return True

    def _is_alive(self, lease: EngineRecord, now: datetime, ttl_s: float) -> bool:
        if lease.heartbeat_at is None or (now - lease.heartbeat_at).total_seconds() >= ttl_s:
            return False
        heard = (lease.holder, lease.heartbeat_at)
        if heard != self._heard:
            self._heard, self._heard_s = heard, time.monotonic()
        return time.monotonic() - self._heard_s < ttl_s

    def release_lease(self) -> bool:
        """Gives the lease back, so that the next engine need not wait; False if this holder did not have it."""
        mine = (EngineRecord.id == ENGINE_ROW) & (EngineRecord.holder == self.holder)
        with self.database.write() as session:
            released = session.execute(update(EngineRecord).where(mine).values(holder=None))
            return cast("CursorResult[Any]", released).rowcount == 1

    def lease(self) -> Lease:
        """The lease, of an engine that was heard of lately or not."""
        with self.database.read() as session:
            row = session.get_one(EngineRecord, ENGINE_ROW)
            beat = None if row.holder is None else row.heartbeat_at
            age_s = None if beat is None else (self.database.now(session) - beat).total_seconds()
        return Lease(row.holder, beat, age_s, self.database.clock)

    def record_gpus(self, report: Json) -> None:
        """Sets what the leading engine has found out about its GPUs. Raises LeaseLost."""
        with self._write() as session:
            session.get_one(EngineRecord, ENGINE_ROW).gpus = report

    def record_parts(self, parts: Json) -> None:
        """Sets what the leading engine says of the parts of its readiness. Raises LeaseLost."""
        with self._write() as session:
            session.get_one(EngineRecord, ENGINE_ROW).parts = parts

    def gpus(self) -> Json | None:
        """What the leading engine has found out about its GPUs; None where it has none, or not yet."""
        with self.database.read() as session:
            return session.get_one(EngineRecord, ENGINE_ROW).gpus


def _works_on(row: JobRecord | RunRecord | None, attempt: int) -> TypeGuard[JobRecord | RunRecord]:
    return row is not None and row.attempt == attempt and row.state in WORKING


def _because_of(error: Json | None) -> Json | None:
    """Why a run was cancelled whose job has failed with ``error``."""
    if error is None:
        return None
    return {"type": "JobFailed", "message": f"the job failed before this run could end: {error['message']}"}


def _check_fields(fields: Mapping[str, Any], allowed: frozenset[str]) -> None:
    if unknown := sorted(set(fields) - allowed):
        raise TypeError(f"{', '.join(unknown)} cannot be set here, only {', '.join(sorted(allowed))}")


def _assign(row: JobRecord | RunRecord, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        setattr(row, name, value)
