"""Teachers of a job's row: one, or several whose rows are combined.

``JobRecord.teacher`` is a copy of the first one's row; with several its ``members`` are copies of all, each with its
``weight``. ``JobRecord.teacher_id`` is the first one's. Imported logits are a teacher without a row and an id: their
copy has the keys of their ``caches``, and an empty id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import JobRecord, Json, TeacherRecord
from service.db.states import LIVE
from service.errors import Conflict
from store import CacheSpec
from workers.config.teacher import Preprocessing
from workers.events import Split


@dataclass(frozen=True)
class ChosenTeacher:
    """A teacher of a job, and its weight among several.

    Attributes:
        record: its row; of imported logits one that no table has, see ``imported_record``.
        caches: of imported logits, by split; empty for a classifier.
    """

    record: TeacherRecord
    weight: float = 1.0
    caches: Mapping[Split, CacheSpec] = field(default_factory=dict)

    @property
    def keys(self) -> dict[str, str]:
        """Keys of the caches of imported logits, by split."""
        return {str(split): spec.key for split, spec in self.caches.items()}


def imported_record(name: str, train: CacheSpec) -> TeacherRecord:
    """Row of imported logits in the place of a teacher's; no table has it.

    Args:
        name: where they come from.
        train: of the training split's cache.
    """
    return TeacherRecord(
        id="",
        name=name,
        sha256=train.teacher_sha256,
        size_bytes=0,
        inputs=[],
        outputs=[{"name": train.teacher_output, "dtype": train.dtype, "shape": [None, train.classes]}],
        output=train.teacher_output,
        preprocessing=Preprocessing().model_dump(mode="json"),
        file_class_names=[],
    )


def document_of(teachers: Sequence[ChosenTeacher]) -> Json:
    """``JobRecord.teacher`` of a new job."""
    first = _copy(teachers[0])
    if len(teachers) == 1:
        return first
    return {**first, "members": [{**_copy(each), "weight": each.weight} for each in teachers]}


def _copy(chosen: ChosenTeacher) -> Json:
    teacher = chosen.record
    return {
        "id": teacher.id,
        "name": teacher.name,
        "sha256": teacher.sha256,
        "output": teacher.output,
        "preprocessing": teacher.preprocessing,
        **({"reading": teacher.reading} if teacher.reading else {}),
        **({"caches": chosen.keys} if chosen.caches else {}),
    }


def members_of(teacher: Mapping[str, Any] | None) -> Sequence[Json]:
    """Copies of all teachers by ``JobRecord.teacher``, with their weights; of an only one, itself."""
    if not teacher:
        return []
    members: Sequence[Json] = teacher.get("members") or [{**teacher, "weight": 1.0}]
    return members


def imported_keys(teacher: Mapping[str, Any] | None) -> dict[str, str] | None:
    """``JobRecord.caches`` of a job that waits, by ``JobRecord.teacher``: of imported logits alone they are known."""
    if not teacher or teacher.get("members"):
        return None
    return teacher.get("caches") or None


def cache_keys(caches: Mapping[str, str] | None, members: Sequence[Json]) -> list[str]:
    """Keys of the caches that a job uses: those that it has told of, and imported ones of its teachers.

    Args:
        caches: ``JobRecord.caches``; of several teachers only those of the combination.
        members: as ``members_of``.
    """
    named = [caches or {}, *(member.get("caches") or {} for member in members)]
    return list(dict.fromkeys(key for each in named for key in each.values()))


def name_of(names: Sequence[str]) -> str:
    """Name of a combination, or of an only teacher."""
    return " + ".join(names)


def check_teachers(session: Session, job: JobRecord) -> None:
    """Raise Conflict if a teacher of the job was deleted."""
    ids = [job.teacher_id, *(member["id"] for member in members_of(job.teacher) if "id" in member)]
    gone = [id for id in dict.fromkeys(ids) if id and session.get(TeacherRecord, id) is None]
    if gone:
        raise deleted_teacher(gone[0], job)


def deleted_teacher(id: str, job: JobRecord) -> Conflict:
    """Refusal of what needs a teacher of a job that was deleted."""
    return Conflict(f"the teacher {id} of {job.id} was deleted: upload it again and post a new job")


def live_users(session: Session, teacher_id: str) -> list[str]:
    """Ids of the live jobs that use a teacher."""
    query = select(JobRecord.id, JobRecord.teacher_id, JobRecord.teacher["members"].label("members"))
    rows = session.execute(query.where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id))
    return [
        row.id
        for row in rows
        if row.teacher_id == teacher_id or any(member["id"] == teacher_id for member in row.members or ())
    ]
