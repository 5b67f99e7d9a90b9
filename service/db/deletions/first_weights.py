"""Runs and uploaded files that live jobs need: ``init`` of a student of their plans, programs, and ``extends``."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import JobRecord
from service.db.states import LIVE
from workers.students.catalog import plain_name
from workers.students.program import is_uploaded


def first_weights_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs that begin with the weights or the checkpoint of a run, by the run's id."""
    return _in_use(session, "run")


def uploads_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs with a student that is an upload or begins with one, by the id of the file."""
    return _in_use(session, "upload")


def _in_use(session: Session, field: str) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    parts = JobRecord.plan["students"], JobRecord.plan["added"], JobRecord.plan["extends"]
    live = select(JobRecord.id, *parts).where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id)
    for job_id, students, added, extends in session.execute(live):
        if extends and field == "run":
            found.setdefault(extends["run"], []).append(job_id)
        for student in (*students, *(each for block in added or () for each in block["students"])):
            init = student.get("init")
            if isinstance(init, dict) and field in init:
                found.setdefault(init[field], []).append(job_id)
            if field == "upload" and is_uploaded(student["name"]):
                found.setdefault(plain_name(student["name"]), []).append(job_id)
    return found
