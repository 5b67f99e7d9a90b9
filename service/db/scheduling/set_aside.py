"""Setting jobs and runs aside: paused for a reason of the machine's, and resumed when that is gone.

What is set aside has the state ``paused`` and a reason, ``{"code", "message", "since"}``, in ``set_aside``. A client
that pauses it makes that an ordinary pause, which lasts until a client resumes it; a client that resumes it has it
tried at once. The functions here work in a transaction of their caller's; ``backoff.TryBackoff`` says when to try
again.
"""

from collections.abc import Collection, Iterable

from sqlalchemy import null, select
from sqlalchemy.orm import Session

from service.db.models import JobRecord, Json, RunRecord, utc_now
from service.db.states import State
from service.db.transitions import add_event, all_paused, runs_of, transition

_WAITING = frozenset({State.QUEUED, State.LOST})


def reason_of(code: str, message: str) -> Json:
    """Reason of setting something aside now, as it is stored.

    Args:
        code: the name of the disk's error, ``ENOSPC`` say.
    """
    return {"code": code, "message": message, "since": utc_now().isoformat()}


def reason_among(runs: Iterable[RunRecord]) -> Json | None:
    """The reason of the first run that is set aside, which is its job's where nothing else is left of that."""
    return next((run.set_aside for run in runs if run.state is State.PAUSED and run.set_aside is not None), None)


def put_run(session: Session, run_id: str, attempt: int, reason: Json) -> State | None:
    """Set a run aside whose process has ended; what a client wants of it meanwhile goes first.

    Returns:
        The new state; None if it did not land: a newer attempt has begun, or nobody works on it.
    """
    run = session.get(RunRecord, run_id)
    if run is None or run.attempt != attempt:
        return None
    match run.state:
        case State.CANCELLING:
            return State.CANCELLED if transition(session, run, State.CANCELLED) else None
        case State.PAUSING:
            return State.PAUSED if transition(session, run, State.PAUSED) else None
        case State.RUNNING if transition(session, run, State.PAUSING):
            return State.PAUSED if transition(session, run, State.PAUSED, {"set_aside": reason}) else None
    return None


def put_job(session: Session, job_id: str, attempt: int, reason: Json) -> bool:
    """Set the waiting runs of a job aside, and the job itself if no other run of it is at work.

    Returns:
        Whether the job is paused now: False if a run is at work, a client wants something else of the job, or a newer
        attempt has begun.
    """
    job = session.get(JobRecord, job_id)
    if job is None or job.attempt != attempt or job.state is not State.RUNNING:
        return False
    runs = list(session.scalars(runs_of(job_id)))
    for run in runs:
        if run.state in _WAITING:
            transition(session, run, State.PAUSED, {"set_aside": reason})
    if not all_paused(runs):
        return False
    # Where clients have paused every run, nothing goes on by itself.
    fields = {"set_aside": reason if reason_among(runs) is not None else None}
    return transition(session, job, State.PAUSING) and transition(session, job, State.PAUSED, fields)


def waiting(session: Session) -> list[tuple[str, str]]:
    """The ids of every run that is set aside, and of its job, in the order of posting."""
    is_aside = (RunRecord.state == State.PAUSED) & RunRecord.set_aside.is_not(null())
    query = select(RunRecord.id, RunRecord.job_id).where(is_aside).order_by(RunRecord.job_id, RunRecord.index)
    return [(run_id, job_id) for run_id, job_id in session.execute(query)]


def resume(session: Session, run_ids: Collection[str]) -> list[str]:
    """Queue these runs again, and their jobs where those are paused; returns those that were still set aside."""
    resumed = []
    for run_id in run_ids:
        run = session.get(RunRecord, run_id)
        if run is None or run.state is not State.PAUSED or run.set_aside is None:
            continue
        job = session.get_one(JobRecord, run.job_id)
        if job.state in {State.PAUSING, State.CANCELLING} or not transition(session, run, State.QUEUED):
            continue
        if job.state is State.PAUSED:
            transition(session, job, State.QUEUED)
        resumed.append(run_id)
    return resumed


def make_ordinary(session: Session, row: JobRecord | RunRecord) -> None:
    """Make an ordinary pause of one that is set aside: a client wants it, and nothing but a client ends it."""
    if row.state is not State.PAUSED or row.set_aside is None:
        return
    row.set_aside = None
    add_event(session, row, {"type": "state", "state": State.PAUSED, "error": None})


def follow(session: Session, job: JobRecord) -> None:
    """Make an ordinary pause of a job that is set aside, once none of its runs is: clients paused or ended those."""
    if job.state is State.PAUSED and reason_among(session.scalars(runs_of(job.id))) is None:
        make_ordinary(session, job)
