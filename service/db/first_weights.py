"""Runs and uploaded files whose weights live jobs begin with: ``init`` of a student of their plans."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import JobRecord
from service.db.states import LIVE


def first_weights_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs with a student that begins with the weights of a run, by the run's id."""
    return _in_use(session, "run")


def uploads_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs with a student that begins with uploaded weights, by the id of their file."""
    return _in_use(session, "upload")


def _in_use(session: Session, field: str) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    live = select(JobRecord.id, JobRecord.plan["students"]).where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id)
    for job_id, students in session.execute(live):
        for student in students:
            init = student.get("init")
            if isinstance(init, dict) and field in init:
                found.setdefault(init[field], []).append(job_id)
    return found
