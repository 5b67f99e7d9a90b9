"""Engine's queries: jobs are claimed and adopted, attempts of runs started, jobs ended. One transaction each.

Three things keep a late writer out. Every write asks that the lease still names this ``holder``, else it raises
``LeaseLost``: an engine that was stopped or cut off cannot write beside its successor. Every move of a state is a
compare-and-swap through ``states.TABLE``. Every write on behalf of a run or job is fenced by its ``attempt``: it lands
only while that attempt is the newest one and still works on it. A method that can be overtaken in the last two ways
says so by returning False or None; it never raises for that.

The lease is in ``lease``, what happens to a run after its start in ``run_queries``, what workers emit in
``event_queries``, and what clients ask for (cancel, pause, resume) in ``job_control``.
"""

from collections.abc import Callable, Collection, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from service.db.event_queries import JOB_FIELDS, EventQueries, check_fields
from service.db.models import JobRecord, Json, RunRecord
from service.db.queries.cache_use import caches_of_live_jobs
from service.db.scheduling import set_aside
from service.db.scheduling.backoff import Backoff
from service.db.scheduling.run_queries import RunQueries
from service.db.states import LIVE, TABLE, TERMINAL, WORKING, State
from service.db.transitions import add_event, all_paused, assign, end_of, existing, runs_of, transition, works_on


def actor_name(run_id: str, attempt: int) -> str:
    """The name of the process that trains this attempt, and perhaps other runs beside it."""
    return f"run-{run_id}-a{attempt}"


# Keys whose first queued job is looked at, of those that have enough already.
_KEYS_ASKED_MAX = 16


class EngineQueries(RunQueries, EventQueries):
    """The rows that the engine works on.

    Args:
        database: migrated to head.
        holder: this engine's name in the lease; None writes without asking for the lease, as the API and tests do.
    """

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
        """Move the queued job whose turn it is to running, as a new attempt; None if there is none.

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

    def unfinished_jobs(self) -> list[JobRecord]:
        """Jobs that somebody was working on, oldest first: what an engine has to pick up when it starts."""
        with self.database.read() as session:
            query = select(JobRecord).where(JobRecord.state.in_(WORKING))
            return list(session.scalars(query.order_by(JobRecord.id)))

    def caches_in_use(self, job_ids: Collection[str] | None = None) -> dict[str, list[str]]:
        """Keys of the caches of each job that has not ended and uses some: it may wait or be paused.

        Args:
            job_ids: ask for these jobs alone.
        """
        with self.database.read() as session:
            return {id: keys for id, keys in caches_of_live_jobs(session, job_ids).items() if keys}

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

    def move_job(self, job_id: str, wanted: State, *, error: Json | None = None, attempt: int | None = None) -> bool:
        """Move a job to one of its ends.

        A job that fails or is cancelled takes its runs along: those that have not ended are cancelled, saying why.

        Args:
            error: ``{"type", "message"}`` of what went wrong.
            attempt: refuse if the job has a newer one; None does not ask.

        Returns:
            Whether it landed: False if ``wanted`` is no end, if the table has no such move from the present state, or
            if the job shall have succeeded while a run of it has not ended.
        """
        with self.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or attempt not in (None, job.attempt) or wanted not in TABLE[job.state] & TERMINAL:
                return False
            left = list(session.scalars(runs_of(job_id).where(RunRecord.state.in_(LIVE))))
            if left and wanted is State.SUCCEEDED:
                return False
            for run in left:
                transition(session, run, State.CANCELLED, error=_because_of(error))
            return transition(session, job, wanted, error=error)

    def end_job(self, job_id: str, attempt: int) -> State | None:
        """End a job all of whose runs have ended, as ``end_of`` says.

        Returns:
            Its state; None if it did not land: a run has been added meanwhile, nobody works on the job, or it has a
            newer attempt.
        """
        with self.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or not works_on(job, attempt):
                return None
            runs = list(session.scalars(runs_of(job_id)))
            if any(run.state in LIVE for run in runs):
                return None
            state, error = end_of(runs)
            return state if transition(session, job, state, error=error) else None

    def settle_job(self, job_id: str, attempt: int) -> bool:
        """Move a job to paused of which nothing is left but what is paused; its worker has put it down.

        Of a pausing job, what waits (it vanished, say, before it could save its state) is set aside first.

        Returns:
            Whether it landed: False if a run is neither paused nor final, if none is paused, if the job is neither
            running nor pausing, or if it has a newer attempt.
        """
        with self.write() as session:
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
        """Set aside the waiting runs of a job, and the job, see ``set_aside.put_job``."""
        with self.write() as session:
            return set_aside.put_job(session, job_id, attempt, reason)

    def update_job(self, job_id: str, *, attempt: int | None = None, **fields: object) -> bool:
        """Set columns of a job that somebody works on: those of ``JOB_FIELDS``.

        Returns:
            Whether it landed: False if nobody works on the job or ``attempt`` is an old one.

        Raises:
            TypeError: another field.
        """
        check_fields(fields, JOB_FIELDS)
        with self.write() as session:
            job = session.get(JobRecord, job_id)
            if job is None or job.state not in WORKING or attempt not in (None, job.attempt):
                return False
            assign(job, fields)
            return True

    def record_backoff(self, job_id: str, attempt: int, backoff: Backoff) -> None:
        """Store that a job's caches start again later, with an event (``log``); not of a job that is over."""
        with self.write() as session:
            job = session.get(JobRecord, job_id)
            if not works_on(job, attempt):
                return
            assign(job, {"backoff": backoff.model_dump(mode="json")})
            event = {"type": "log", "level": "warning", "message": f"inference was {backoff.waits_for}"}
            add_event(session, job, event)


def _because_of(error: Json | None) -> Json | None:
    """Error of a run that was cancelled because its job has failed with ``error``."""
    if error is None:
        return None
    return {"type": "JobFailed", "message": f"the job failed before this run could end: {error['message']}"}
