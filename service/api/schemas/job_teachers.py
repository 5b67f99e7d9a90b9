"""Documents of the teachers of a job: of several in a request, and of all in a job. Imported logits are one, too."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from service.api.schemas.base import Document
from service.api.schemas.teachers import EXAMPLE_TEACHER
from workers.config.combination import TeacherWeight
from workers.events import Split
from workers.spec import Sha256, Spec


class TeacherChoice(Spec):
    """One of several teachers: its id, or the caches of imported logits; and its weight in the combination."""

    id: Annotated[str, Field(min_length=1, max_length=64, examples=[EXAMPLE_TEACHER])] | None = Field(
        None, exclude_if=lambda given: given is None
    )
    caches: dict[Split, Sha256] = Field(
        {}, description="keys of imported caches, by split, in place of an id", exclude_if=lambda given: not given
    )
    weight: TeacherWeight = 1.0

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.id is None) == (not self.caches):
            raise ValueError("a teacher has either an `id` or `caches`, the keys of imported logits by split")
        return self


class JobTeacher(Document):
    """A teacher of a job, as it was when the job was posted."""

    id: str | None = Field(description="null of imported logits")
    name: str | None = Field(description="of imported logits: where they come from")
    sha256: str
    weight: float
    caches: dict[str, str] | None = Field(
        description="keys of the caches of imported logits, by split; null of a teacher that is run"
    )
