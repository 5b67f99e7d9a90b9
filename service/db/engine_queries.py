"""Engine's queries: what there is to do is read, jobs are ended. One transaction each.

Three things keep a late writer out. Every write asks that the lease still names this ``holder``, else it raises
``LeaseLost``: an engine that was stopped or cut off cannot write beside its successor. Every move of a state is a
compare-and-swap through ``states.TABLE``. Every write on behalf of a run or job is fenced by its ``attempt``: it lands
only while that attempt is the newest one and still works on it. A method that can be overtaken in the last two ways
says so by returning False or None; it never raises for that.

The lease is in ``lease``, the claim of a job and the start of a run in ``transitions``, what happens to a run
afterwards in ``run_queries``, what workers emit in ``event_queries``, and what clients ask for (cancel, pause, resume)
in ``job_control``.
"""

from collections.abc import Collection

from sqlalchemy import select

from service.db.event_queries import JOB_FIELDS, EventQueries, check_fields
from service.db.models import JobRecord, Json, RunRecord
from service.db.queries.cache_use import caches_of_live_jobs
from service.db.scheduling import set_aside
from service.db.scheduling.backoff import Backoff
from service.db.scheduling.run_queries import RunQueries
from service.db.states import LIVE, TABLE, TERMINAL, WORKING, State
from service.db.transitions import (
    Attempts,
    add_event,
    all_paused,
    assign,
    end_of,
    existing,
    runs_of,
    transition,
    works_on,
)


class EngineQueries(RunQueries, EventQueries, Attempts):
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

    def unfinished_jobs(self) -> list[JobRecord]:
        """Jobs that somebody was working on, oldest first: what an engine has to pick up when it starts."""
        with self.database.read() as session:
            query = select(JobRecord).where(JobRecord.state.in_(WORKING))
            return list(session.scalars(query.order_by(JobRecord.id)))

    def live_states(self) -> dict[str, State]:
        """States of all jobs that have not ended, by id: from an index alone, so no column beside these two."""
        query = select(JobRecord.id, JobRecord.state).where(JobRecord.state.in_(LIVE))
        with self.database.read() as session:
            return dict(session.execute(query).all())

    def caches_in_use(self, job_ids: Collection[str] | None = None) -> dict[str, list[str]]:
        """Keys of the caches of each job that has not ended and uses some: it may wait or be paused.

        Args:
            job_ids: ask for these jobs alone, 32,766 at most.
        """
        with self.database.read() as session:
            return {id: keys for id, keys in caches_of_live_jobs(session, job_ids).items() if keys}

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
