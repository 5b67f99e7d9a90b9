"""Documents of reports: the table of results of a job."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document
from service.api.schemas.jobs import TeacherForwards
from service.db.states import State
from workers.spec import Seed


class ReportRow(Document):
    """A run in the table of results; nulls until it has them."""

    run_id: str
    student: str
    method: str
    seed: Seed
    state: State
    accuracy_last: float | None
    accuracy_best: float | None
    best_epoch: int | None
    agreement: float | None
    kl_to_teacher: float | None
    ece: float | None
    nll: float | None
    student_temperature: float | None
    teacher_temperature: float | None
    images_per_s: float | None
    seconds: float | None
    device: str | None = Field(description="what it was trained on: the name of a GPU, or `cpu`; null in older results")
    views_seen: int | None = Field(description="different views of each picture; null in older results")


class TeacherResult(Document):
    """How good the teacher is: on the test split, and on the training views, whose logits students learn from."""

    accuracy: float | None
    views_accuracy: float | None


class Report(Document):
    """The table of results. `accuracy_last` is a run's top-1 on the test split after its last epoch; `accuracy_best` is
    the best epoch's on the validation split, and null without one."""

    object: Literal["report"] = "report"
    job_id: str
    rows: list[ReportRow]
    teacher: TeacherResult
    teacher_forwards: TeacherForwards | None
    caches: dict[str, str] | None
