"""Teachers of a job's row: one, or several whose rows are combined.

``JobRecord.teacher`` is a copy of the first one's row; with several its ``members`` are copies of all, each with its
``weight``. ``JobRecord.teacher_id`` is the first one's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import JobRecord, Json, TeacherRecord
from service.db.states import LIVE


@dataclass(frozen=True)
class ChosenTeacher:
    """A teacher of a job, and its weight among several."""

    record: TeacherRecord
    weight: float = 1.0


def document_of(teachers: Sequence[ChosenTeacher]) -> Json:
    """``JobRecord.teacher`` of a new job."""
    first = _copy(teachers[0].record)
    if len(teachers) == 1:
        return first
    return {**first, "members": [{**_copy(each.record), "weight": each.weight} for each in teachers]}


def _copy(teacher: TeacherRecord) -> Json:
    return {
        "id": teacher.id,
        "name": teacher.name,
        "sha256": teacher.sha256,
        "output": teacher.output,
        "preprocessing": teacher.preprocessing,
        **({"reading": teacher.reading} if teacher.reading else {}),
    }


def members_of(teacher: Mapping[str, Any] | None) -> Sequence[Json]:
    """Copies of all teachers by ``JobRecord.teacher``, with their weights; of an only one, itself."""
    if not teacher:
        return []
    members: Sequence[Json] = teacher.get("members") or [{**teacher, "weight": 1.0}]
    return members


def name_of(names: Sequence[str]) -> str:
    """Name of a combination, or of an only teacher."""
    return " + ".join(names)


def deleted_teachers(session: Session, job: JobRecord) -> list[str]:
    """Ids of the job's teachers that are there no more."""
    ids = [job.teacher_id, *(member["id"] for member in members_of(job.teacher) if "id" in member)]
    return [id for id in dict.fromkeys(ids) if session.get(TeacherRecord, id) is None]


def live_users(session: Session, teacher_id: str) -> list[str]:
    """Ids of the live jobs that use a teacher."""
    query = select(JobRecord.id, JobRecord.teacher_id, JobRecord.teacher["members"].label("members"))
    rows = session.execute(query.where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id))
    return [
        row.id
        for row in rows
        if row.teacher_id == teacher_id or any(member["id"] == teacher_id for member in row.members or ())
    ]
