"""Documents of the teachers of a job: of several in a request, and of all in a job."""

from typing import Annotated

from pydantic import Field

from service.api.schemas.base import Document
from service.api.schemas.teachers import EXAMPLE_TEACHER
from workers.config.combination import TeacherWeight
from workers.spec import Spec


class TeacherChoice(Spec):
    """One of several teachers: its id, and its weight in the combination."""

    id: Annotated[str, Field(min_length=1, max_length=64, examples=[EXAMPLE_TEACHER])]
    weight: TeacherWeight = 1.0


class JobTeacher(Document):
    """A teacher of a job, as it was when the job was posted."""

    id: str | None
    name: str | None
    sha256: str
    weight: float
