"""Student of a job: its architecture and its first weights. Light: no torch."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from workers.config.initial_weights import InitialWeights
from workers.spec import Sha256, Spec
from workers.students.catalog import check_student
from workers.students.program import is_uploaded


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class StudentSpec(Spec):
    """A student architecture; a bare name in JSON is accepted for it.

    Attributes:
        init: its first weights: drawn from the run's seed (``random``), an earlier run's, a file's, or an upload's; an
            uploaded program has weights of its own, which ``random`` leaves.
        program: SHA-256 of the file of an uploaded program; the service fills it in.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    init: InitialWeights = Field("random", exclude_if=lambda given: given == "random")
    program: Sha256 | None = Field(None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _exists(self) -> Self:
        check_student(self.name)
        if self.program is not None and not is_uploaded(self.name):
            raise ValueError(f"program is of uploaded students, and {self.name!r} is none: leave it out")
        return self


Student = Annotated[StudentSpec, BeforeValidator(_named, json_schema_input_type=StudentSpec | str)]
