"""Documents of jobs: the request, its preview, state and progress."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from service.api.schemas.amounts import all_methods, check_amount
from service.api.schemas.base import Document, Name, OptionalName, Stored
from service.api.schemas.costs import Cost, Eta
from service.api.schemas.job_labels import NOTE_HELP, TAGS_HELP, Note, Tags
from service.api.schemas.job_teachers import JobTeacher, TeacherChoice
from service.api.schemas.labels import LabelsPreview
from service.api.schemas.runs import ErrorInfo, SetAside
from service.api.schemas.teachers import EXAMPLE_TEACHER
from service.api.schemas.webhooks import WebhookDelivery, WebhookRequest
from service.db.states import State
from workers.config.combination import TEACHERS_MAX
from workers.config.dataset import DatasetSpec
from workers.config.draft import PlanDraft
from workers.config.job import Plan
from workers.events import Split
from workers.spec import AtMost, Seed, Sha256, Size

CLASSES_SHOWN = 1000
EXAMPLE_JOB: dict[str, JsonValue] = {
    "teacher": EXAMPLE_TEACHER,
    "dataset": {"kind": "digits"},
    "students": ["cnn_s"],
    "methods": ["ce", {"preset": "kd", "temperature": 4}],
    "seeds": [0],
    "training": {"epochs": 20, "batch_size": 64},
}
DatasetChoice = Annotated[
    Annotated[DatasetSpec, Tag("spec")] | Annotated[Name, Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "spec"),
]


class JobRequest(PlanDraft):
    """A job: a teacher, a dataset, and students x methods x seeds, each of which becomes a run.

    In place of `teacher` it may have `teachers`, whose rows are combined as `combine` says, or `caches` of imported
    logits. `dataset` is a description, or the id or name of a registered dataset.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_JOB]})

    name: OptionalName = ""
    teacher: str = Field(
        "",
        max_length=64,
        examples=[EXAMPLE_TEACHER],
        description="id of the teacher; left out where there are several",
        exclude_if=lambda given: not given,
    )
    teachers: Annotated[tuple[TeacherChoice, ...], AtMost(TEACHERS_MAX)] = Field(
        (), description="several teachers in place of one, see `combine`", exclude_if=lambda given: not given
    )
    caches: dict[Split, Sha256] = Field(
        {},
        description="keys of imported caches in place of a teacher, by split: train, and what is measured",
        exclude_if=lambda given: not given,
    )
    # A client may name a dataset where the plan needs its description; the route puts it in place.
    dataset: DatasetChoice  # type: ignore[assignment]
    # These joined later, and are left out of a dump at their default: an Idempotency-Key is known by its digest,
    # and one that was used before them is to be known after.
    priority: int = Field(
        0,
        strict=True,
        ge=-100,
        le=100,
        description="jobs with a higher one are begun first",
        exclude_if=lambda given: given == 0,
    )
    parallel_runs: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=10_000,
        description="how many of its runs may be at work at once; null for as many as fit",
        exclude_if=lambda given: given is None,
    )
    tags: Tags = Field([], description=TAGS_HELP, exclude_if=lambda given: not given)
    note: Note = Field("", description=NOTE_HELP, exclude_if=lambda given: not given)

    webhook: WebhookRequest | None = Field(
        None,
        description="where the end of the job is told; null for nowhere",
        exclude_if=lambda given: given is None,
    )

    @property
    def choices(self) -> tuple[TeacherChoice, ...]:
        """Every teacher, the first one first; none where the request names none."""
        if self.teachers:
            return self.teachers
        if self.teacher:
            return (TeacherChoice(id=self.teacher),)
        return (TeacherChoice(caches=self.caches),) if self.caches else ()

    @model_validator(mode="before")
    @classmethod
    def _check_amount(cls, data: object) -> object:
        """Limit the counts before anything is parsed; not of ``Plan``, for a stored one is read however long it is."""
        if isinstance(data, Mapping):
            check_amount(all_methods(data))
        return data

    def identity(self) -> dict[str, JsonValue]:
        """Return what an Idempotency-Key is known by: all fields, and which were left out where that makes another job.

        It is the client's side of the job alone, so a recipe that changes in a later version makes no other request of
        it.
        """
        whole = self.model_dump(mode="json")
        if self.recipe is not None:
            parts = {"training", "views", "methods"}
            return {**whole, "stated": self.model_dump(mode="json", include=parts, exclude_unset=True)}
        return {**whole, "left_out": list(self.left_out)} if self.left_out else whole


class PlannedRun(Document):
    """A run that the job would have."""

    name: str
    student: str
    method: str
    seed: Seed


class ViewSizes(Document):
    """Of each training view's box: what the student and the teacher get of it, (height, width) in pixels.

    Both are resampled from the dataset's picture. Null where only the pictures tell.
    """

    student: Size | None
    teacher: Size | None


class PlannedClass(Document):
    """A class of the dataset, and the column of the teacher's output that is taken for it."""

    dataset: str
    column: int
    teacher: str | None = Field(description="the teacher's name of it; null where it is not known")


class PlannedClasses(Document):
    """Classes of the dataset in the order of their labels, as the cache and all students have them."""

    matched_by: Literal["position", "name"]
    count: int
    order: list[PlannedClass] = Field(description=f"the first {CLASSES_SHOWN}")
    note: str = Field(description="what the match has changed, or left aside; may be empty")


class PlannedTeacher(Document):
    """A teacher of the job, and how the dataset's classes lie in its output."""

    id: str = Field(description="empty of imported logits")
    name: str
    weight: float
    classes: PlannedClasses | None = Field(description="null where only decoding tells the dataset's class names")


class JobPreview(Document):
    """Preview of a job: what it would be, had it been posted without `dry_run`."""

    object: Literal["job_preview"] = "job_preview"
    teacher: str = Field(description="the first one, if there are several; empty of imported logits")
    teachers: list[PlannedTeacher] = Field(description="all of them, an only one as well")
    plan: Plan
    runs: list[PlannedRun]
    views: ViewSizes
    classes: PlannedClasses | None = Field(description="of the first teacher, see `teachers`")
    labels: LabelsPreview
    warnings: list[str] = Field(description="what is probably not meant; the job's log says it, too")
    cost: Cost


class Inference(Document):
    """Rows that have gone through the teacher, of those that have to."""

    model_config = ConfigDict(extra="allow")

    rows_done: int
    rows_total: int
    rows_per_s: float | None = None
    eta_s: float | None = None


class JobProgress(Document):
    """Progress of a job: the teacher's rows, and its runs by state."""

    inference: Inference | None
    runs: dict[State, int]


class TeacherForwards(Document):
    """Teacher forward passes that were run for a job, and those that the cache spares its runs."""

    run: int = Field(
        ge=0,
        description="pictures that went through the teacher, also in processes that were killed and in blocks that "
        "were lost; at least, as each kill may leave one batch uncounted",
    )
    avoided: int = Field(
        ge=0,
        description="what a live teacher would need for all epochs of all runs, less `run`; 0 until the caches are "
        "complete, and where they cost more than they spare",
    )


class JobSummary(Document):
    """A job and how far it is, as lists show it: without what was posted."""

    object: Literal["job"] = "job"
    id: str
    name: str
    tags: list[str]
    note: str
    state: State
    stage: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: ErrorInfo | None
    set_aside: SetAside | None = Field(
        description="why it is paused although no client has paused it; it goes on by itself"
    )
    progress: JobProgress
    teacher: str = Field(description="the first one, if there are several; empty of imported logits")
    teacher_sha256: str
    teachers: list[JobTeacher] = Field(description="all of them, an only one as well")
    caches: dict[str, str] | None = Field(description="cache key per split")
    teacher_forwards: TeacherForwards | None
    teacher_accuracy: float | None = Field(description="top-1 on the test split")
    teacher_metrics: dict[str, Stored] | None = Field(
        description="metrics of the teacher by split that is measured, `validation` and `test`; null until its caches "
        "are complete. Lists leave `per_class` out"
    )
    teacher_views_accuracy: float | None = Field(
        description="top-1 on the training views, of the cached logits that students learn from"
    )
    waits_for: str | None = Field(
        description="why the inference of its caches does not start yet: its process was lost, and starts again later"
    )
    priority: int
    parallel_runs: int | None
    retry_of: str | None = Field(description="the job whose failed or cancelled runs it tries again")
    pinned: bool = Field(description="whether it is kept from deletion")
    eta: Eta | None = Field(description="null once it has ended, while it is paused, and while nothing is known")


class Job(JobSummary):
    """A job, what was posted, and how far it is."""

    # As it was stored: a version that names things differently still shows its predecessor's jobs.
    plan: Stored = Field(description="what was posted, every default filled in")
    run_ids: list[str]
    webhook: WebhookDelivery | None = Field(description="where its end is told, and how far that is")
