"""Control of jobs and runs by clients: cancel, pause, resume. The engine sees the state and acts; it moves the rest.

What somebody works on is asked to stop (cancelling, pausing) and moved on by its engine. What nobody works on, because
it is queued, paused or lost, is moved at once: no engine need come by. What the engine has set aside is paused for good
by a client that pauses it, and tried at once by one that resumes it. Each request is one transaction, and a repeated
one changes nothing: the table of states has no such move.
"""

from sqlalchemy import Select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import JobRecord, RunRecord
from service.db.scheduling import set_aside
from service.db.states import LIVE, TABLE, TERMINAL, WORKING, State
from service.db.transitions import all_paused, end_of, existing, runs_of, transition
from service.errors import Conflict

_OVER = {
    State.SUCCEEDED: "has succeeded",
    State.FAILED: "has failed, but it can be retried",
    State.CANCELLED: "was cancelled, but it can be retried",
    State.CANCELLING: "is being cancelled; once it has ended it can be retried",
}


class JobControl:
    """The changes of state that clients may ask for.

    Args:
        database: migrated to head.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # -------------------------------------------------------------------------------------------------------- jobs

    def cancel_job(self, job_id: str) -> JobRecord:
        """End what nobody works on now, and ask what runs to stop; of a job that has ended nothing changes.

        Raises:
            NotFound.
        """
        with self.database.write() as session:
            job = existing(session, JobRecord, job_id)
            for row in (*session.scalars(_live_runs(job_id)), job):
                _cancel(session, row)
            return job

    def pause_job(self, job_id: str) -> JobRecord:
        """Set aside what nobody works on now, and ask what runs to save its state and stop.

        Raises:
            NotFound.
            Conflict: it is being cancelled, or has ended.
        """
        with self.database.write() as session:
            job = existing(session, JobRecord, job_id)
            _refuse(job, "paused")
            for row in (*session.scalars(_live_runs(job_id)), job):
                _pause(session, row)
            return job

    def resume_job(self, job_id: str) -> JobRecord:
        """Queue a paused job and its paused runs again; what is still pausing goes on.

        Raises:
            NotFound.
            Conflict: it is being cancelled, or has ended.
        """
        with self.database.write() as session:
            job = existing(session, JobRecord, job_id)
            _refuse(job, "resumed")
            for row in (*session.scalars(_live_runs(job_id)), job):
                _resume(session, row)
            return job

    # -------------------------------------------------------------------------------------------------------- runs

    def cancel_run(self, run_id: str) -> RunRecord:
        """End one run, or ask it to stop; of a run that has ended nothing changes.

        A job that nobody works on ends with the last of its runs.

        Raises:
            NotFound.
        """
        with self.database.write() as session:
            run, job = _with_job(session, run_id)
            if run.state not in TERMINAL and run.state is not State.CANCELLING:
                _cancel(session, run)
                _follow(session, job)
            return run

    def pause_run(self, run_id: str) -> RunRecord:
        """Set one run aside, or ask it to save its state and stop.

        A job that nobody works on is paused with the last of its runs.

        Raises:
            NotFound.
            Conflict: it is being cancelled, or has ended.
        """
        with self.database.write() as session:
            run, job = _with_job(session, run_id)
            _refuse(run, "paused")
            if run.state not in {State.PAUSING, State.PAUSED} or run.set_aside is not None:
                _pause(session, run)
                _follow(session, job)
            return run

    def resume_run(self, run_id: str) -> RunRecord:
        """Queue one paused run again, and with it its job if that is paused; the job's other runs stay as they are.

        Raises:
            NotFound.
            Conflict: it is being cancelled, or has ended.
        """
        with self.database.write() as session:
            run, job = _with_job(session, run_id)
            _refuse(run, "resumed")
            if run.state in {State.PAUSING, State.PAUSED}:
                _resume(session, run)
                _resume(session, job)
            return run


def _with_job(session: Session, run_id: str) -> tuple[RunRecord, JobRecord]:
    run = existing(session, RunRecord, run_id)
    return run, session.get_one(JobRecord, run.job_id)


def _live_runs(job_id: str) -> Select[RunRecord]:
    return runs_of(job_id).where(RunRecord.state.in_(LIVE))


def _refuse(row: JobRecord | RunRecord, wanted: str) -> None:
    if row.state in _OVER:
        raise Conflict(f"{row.id} cannot be {wanted}: it {_OVER[row.state]}")


def _cancel(session: Session, row: JobRecord | RunRecord) -> None:
    transition(session, row, State.CANCELLING if row.state in WORKING else State.CANCELLED)


def _pause(session: Session, row: JobRecord | RunRecord) -> None:
    set_aside.make_ordinary(session, row)
    # What is being cancelled stays so: the table has no way from there.
    transition(session, row, State.PAUSING if row.state in WORKING else State.PAUSED)


def _resume(session: Session, row: JobRecord | RunRecord) -> None:
    if row.state is State.PAUSING:
        transition(session, row, State.RUNNING)
    elif row.state is State.PAUSED:
        transition(session, row, State.QUEUED)


def _follow(session: Session, job: JobRecord) -> None:
    """Move a job that nobody works on after the last of its runs."""
    if job.state in WORKING:
        return
    runs = list(session.scalars(runs_of(job.id)))
    if all(run.state in TERMINAL for run in runs):
        state, error = end_of(runs)
        # Only what is worked on succeeds, says the table; the way there is taken in this one transaction.
        for step in (State.QUEUED, State.RUNNING):
            if state not in TABLE[job.state]:
                transition(session, job, step)
        transition(session, job, state, error=error)
    elif all_paused(runs):
        transition(session, job, State.PAUSED, {"set_aside": set_aside.reason_among(runs)})
        set_aside.follow(session, job)
