"""Runs whose weights live jobs begin with: ``init`` of a student of their plans, or ``extends``."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import JobRecord
from service.db.states import LIVE


def first_weights_in_use(session: Session) -> dict[str, list[str]]:
    """Ids of the live jobs that begin with the weights or the checkpoint of a run, by the run's id."""
    found = dict[str, list[str]]()
    parts = JobRecord.plan["students"], JobRecord.plan["added"], JobRecord.plan["extends"]
    live = select(JobRecord.id, *parts).where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id)
    for job_id, students, added, extends in session.execute(live):
        if extends:
            found.setdefault(extends["run"], []).append(job_id)
        for student in (*students, *(each for block in added or () for each in block["students"])):
            init = student.get("init")
            if isinstance(init, dict) and "run" in init:
                found.setdefault(init["run"], []).append(job_id)
    return found
