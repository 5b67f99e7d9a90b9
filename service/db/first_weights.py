"""Runs and uploaded files that live jobs need: ``init`` of a student of their plans, and programs among these."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import JobRecord
from service.db.states import LIVE
from workers.students.catalog import plain_name
from workers.students.program import is_uploaded


def first_weights_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs with a student that begins with the weights of a run, by the run's id."""
    return _in_use(session, "run")


def uploads_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs with a student that is an upload or begins with one, by the id of the file."""
    return _in_use(session, "upload")


def _in_use(session: Session, field: str) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    live = select(JobRecord.id, JobRecord.plan["students"]).where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id)
    for job_id, students in session.execute(live):
        for student in students:
            init = student.get("init")
            if isinstance(init, dict) and field in init:
                found.setdefault(init[field], []).append(job_id)
            if field == "upload" and is_uploaded(student["name"]):
                found.setdefault(plain_name(student["name"]), []).append(job_id)
    return found
