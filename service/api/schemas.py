"""What goes over the wire: the bodies of requests and responses. ``workers.config.job`` is embedded, never redefined.

Times are UTC, ISO 8601. Optional facts are null, never left out. ``object`` says what a document is.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    model_validator,
)

from service.db.scopes import Scope
from service.db.states import State
from workers.config.dataset import DatasetSpec
from workers.config.job import Plan
from workers.config.teacher import Preprocessing
from workers.errors import InvalidJob
from workers.spec import Seed, Size, Spec
from workers.texts import composed

# No control characters: a name goes into logs, headers and tables, and PostgreSQL refuses NUL.
# In one normal form: what is looked up by name is found, whichever machine has spelt it.
_Composed = BeforeValidator(lambda given: composed(given) if isinstance(given, str) else given)
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$"), _Composed]
OptionalName = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Of a job's temperature expressions in all: parsing so many takes 0.1 s.
EXPRESSIONS_CHARACTERS_MAX = 1 << 16
# Of the terms that its methods spell out: reading so many takes 0.05 s.
TERMS_MAX = 4096
Item = TypeVar("Item")
# What was stored as JSON, as it was stored. With JsonValue pydantic would ask for the type of each value in it again,
# which takes a third of the time of making a document.
Stored = dict[str, Any]

EXAMPLE_TEACHER = "tch_01m7yt5knp2b4d7r46qbv3d8r3"
EXAMPLE_JOB: dict[str, JsonValue] = {
    "teacher": EXAMPLE_TEACHER,
    "dataset": {"kind": "digits"},
    "students": ["cnn_s"],
    "methods": ["ce", {"preset": "kd", "temperature": 4}],
    "seeds": [0],
    "training": {"epochs": 20, "batch_size": 64},
}


class Document(BaseModel):
    """Base of every response."""

    model_config = ConfigDict(extra="forbid")


class Page(Document, Generic[Item]):
    """Part of a list. Ask for the next part with ``after=last_id`` while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


# --------------------------------------------------------------------------------------------------------- problems


class FieldProblem(Document):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="JSON pointer into the body, or `query/...`, `header/...`")
    detail: str


class Problem(Document):
    """RFC 9457: what went wrong, for a program (`type`) and for a person (`detail`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:retort:problem:unknown-name",
                    "title": "Unknown name",
                    "status": 422,
                    "detail": "unknown method 'kdd'. Did you mean 'kd'? Allowed: atkd, ce, ...",
                    "instance": "/v1/jobs",
                    "request_id": "01m7yt5knp2b4d7r46qbv3d8r3",
                    "errors": [],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    request_id: str = Field(description="the same as in the header X-Request-Id and in the log")
    errors: list[FieldProblem] = []


# --------------------------------------------------------------------------------------------- teachers and data sets


class Value(Document):
    """An input or output of the graph; a size is a number, a name, or null where the graph leaves it open."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class Teacher(Document):
    """An ONNX classifier that was uploaded and inspected."""

    object: Literal["teacher"] = "teacher"
    id: str = Field(examples=[EXAMPLE_TEACHER])
    name: str
    sha256: str
    size_bytes: int
    inputs: list[Value]
    outputs: list[Value]
    output: str = Field(description="the output that holds the logits")
    classes: int | None = Field(description="null where the graph leaves it open")
    smoke_run: Literal["passed", "pending"] = Field(
        description="whether it was run on noise; pending where the API could not, the first job does it then"
    )
    preprocessing: Preprocessing
    created_at: datetime


class TeacherUpload(BaseModel):
    """The parts of the multipart body of an upload; `preprocessing` is JSON text."""

    file: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]
    name: Name | None = None
    preprocessing: str | None = Field(
        None,
        description="JSON of Preprocessing; ImageNet's mean and std by default",
        examples=['{"size": [32, 32], "mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262]}'],
    )
    output: str | None = Field(None, description="which output holds the logits, if several could")


class DatasetRequest(Spec):
    """A data set below the data root, and a name to use in jobs."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "flowers", "spec": {"kind": "folder", "path": "flowers"}}]}
    )

    name: Name
    spec: DatasetSpec


class Dataset(Document):
    """A data set with a name; `samples` per split and `classes` are null where only decoding would tell."""

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    spec: DatasetSpec
    classes: int | None
    samples: dict[str, int] | None
    created_at: datetime


# ---------------------------------------------------------------------------------------------- methods and students


class Needs(Document):
    """What a method has to be given."""

    teacher: bool
    labels: bool
    statistics: list[str] = Field(description="the cached statistics that its policies read")
    views: int = Field(description="views of each sample that a step compares: 1 or 2")
    whole_batch: bool = Field(description="whether a sample's loss depends on the others of its batch")
    learned: bool = Field(description="whether a temperature is a parameter that is trained beside the student")


class Method(Document):
    """A preset: what it computes, where it comes from, and the JSON Schema of its parameters."""

    object: Literal["method"] = "method"
    id: str
    title: str
    paper: str
    formula: str
    verified: str = Field(description="against what its numbers were checked")
    defaults: dict[str, dict[str, JsonValue]] = Field(description="per data set family")
    needs: Needs
    json_schema: dict[str, Any]


class Part(Document):
    """A temperature policy or a distillation loss that a `custom` method can combine."""

    model_config = ConfigDict(extra="allow")

    kind: str
    title: str
    formula: str
    paper: str
    defaults: dict[str, JsonValue]
    json_schema: dict[str, Any]


class MethodPage(Page[Method]):
    """Every preset, and the parts of which `custom` is made."""

    policies: list[Part]
    losses: list[Part]


class Student(Document):
    """A network that can be trained."""

    model_config = ConfigDict(extra="allow")

    object: Literal["student"] = "student"
    id: str
    name: str
    family: str
    summary: str
    paper: str
    parameters_100: int = Field(description="trainable parameters with 100 classes")
    min_side: int = Field(description="the smallest height and width in pixels")
    torchvision: bool
    json_schema: dict[str, Any]


# ------------------------------------------------------------------------------------------------------------ caches


class Cache(Document):
    """The logits of one teacher on one data set's views."""

    object: Literal["cache"] = "cache"
    key: str
    state: Literal["complete", "partial", "corrupt"]
    problem: str | None = Field(description="what is wrong with a corrupt one")
    spec: Stored | None
    rows_committed: int
    size_bytes: int
    created_at: datetime | None
    last_used_at: datetime | None
    pinned: bool = Field(description="whether it is kept from eviction and deletion")
    provenance: Stored = Field(
        description="what made it, no part of its key; `computed_on` lists where its blocks were, or were to be, "
        "inferred, unless an older version did it"
    )


class CachePage(Page[Cache]):
    """Part of the list of caches, and what all of them take together."""

    total_bytes: int
    quota_bytes: int | None = Field(description="the most they may take; null where there is no quota")


class CacheReport(Document):
    """What reading every byte of a cache again has found."""

    object: Literal["cache_report"] = "cache_report"
    key: str
    ok: bool
    problems: list[str] = Field(description="one line each, beginning with the file it is about")
    blocks_checked: int
    rows_checked: int


# -------------------------------------------------------------------------------------------------------------- jobs

DatasetChoice = Annotated[
    Annotated[DatasetSpec, Tag("spec")] | Annotated[Name, Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "spec"),
]


def _terms(methods: object) -> int:
    """How many terms methods spell out, as they were posted."""
    spelt = (
        [method.get("terms") for method in methods if isinstance(method, Mapping)] if isinstance(methods, list) else []
    )
    return sum(len(terms) for terms in spelt if isinstance(terms, list))


def _expression_characters(value: object) -> int:
    """Characters of all texts in the expression policies of a method as it was posted, or of several."""
    if isinstance(value, Mapping):
        if value.get("kind") == "expression":
            return sum(len(text) for name, text in value.items() if name != "kind" and isinstance(text, str))
        return sum(map(_expression_characters, value.values()))
    return sum(map(_expression_characters, value)) if isinstance(value, list | tuple) else 0


class JobRequest(Plan):
    """A job: a teacher, a data set, and students x methods x seeds, each of which becomes a run.

    `dataset` is a description, or the id or name of a registered data set.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_JOB]})

    name: OptionalName = ""
    teacher: Annotated[str, Field(max_length=64, examples=[EXAMPLE_TEACHER])]
    # A client may name a data set where the plan needs its description; the route puts it in place.
    dataset: DatasetChoice  # type: ignore[assignment]
    # Both joined later, and are left out of a dump at their default: an Idempotency-Key is known by the dump's digest,
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

    @model_validator(mode="before")
    @classmethod
    def _check_amount(cls, data: object) -> object:
        """Counts before anything is parsed; not of ``Plan``, for a stored one is read however long it is."""
        methods = data.get("methods") if isinstance(data, Mapping) else None
        terms = _terms(methods)
        if terms > TERMS_MAX:
            raise InvalidJob(
                f"the job's methods have {terms} terms in all, at most {TERMS_MAX} are allowed: split the job"
            )
        count = _expression_characters(methods)
        if count > EXPRESSIONS_CHARACTERS_MAX:
            raise InvalidJob(
                f"the expressions of the job's methods have {count} characters in all, at most "
                f"{EXPRESSIONS_CHARACTERS_MAX} are allowed: split the job"
            )
        return data

    def plan(self, dataset: DatasetSpec) -> Plan:
        """The plan with its data set in place."""
        kept = {name: getattr(self, name) for name in Plan.model_fields if name != "dataset"}
        return Plan.model_construct(dataset=dataset, **kept)


class PlannedRun(Document):
    """A run that the job would have."""

    name: str
    student: str
    method: str
    seed: Seed


class ViewSizes(Document):
    """Of each training view's box: what the student and the teacher get of it, (height, width) in pixels.

    Both are resampled from the data set's picture. Null where only the pictures tell.
    """

    student: Size | None
    teacher: Size | None


class JobPreview(Document):
    """What a job would be, had it been posted without `dry_run`."""

    object: Literal["job_preview"] = "job_preview"
    teacher: str
    plan: Plan
    runs: list[PlannedRun]
    views: ViewSizes
    warnings: list[str] = Field(description="what is probably not meant; the job's log says it, too")


class ErrorInfo(Document):
    """Why something failed."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str


class SetAside(Document):
    """Why something is paused that no client has paused; it goes on by itself."""

    code: str = Field(description="name of the system's error: `ENOSPC`, `EDQUOT`, `EROFS`, `EIO`")
    message: str
    since: datetime


class Inference(Document):
    """Rows that have gone through the teacher, of those that have to."""

    model_config = ConfigDict(extra="allow")

    rows_done: int
    rows_total: int
    rows_per_s: float | None = None
    eta_s: float | None = None


class JobProgress(Document):
    """How far a job is: the teacher's rows, and its runs by state."""

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
    teacher: str
    teacher_sha256: str
    caches: dict[str, str] | None = Field(description="cache key per split")
    teacher_forwards: TeacherForwards | None
    teacher_accuracy: float | None = Field(description="top-1 on the test split")
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


class Job(JobSummary):
    """A job, what was posted, and how far it is."""

    # As it was stored: a version that names things differently still shows its predecessor's jobs.
    plan: Stored = Field(description="what was posted, every default filled in")
    run_ids: list[str]


class Run(Document):
    """One student in training, or trained."""

    object: Literal["run"] = "run"
    id: str
    job_id: str
    index: int
    name: str
    student: str
    method: str
    method_spec: Stored
    seed: Seed
    state: State
    attempt: int
    epoch: int
    epochs: int
    progress: Stored | None = Field(description="inside the present epoch")
    metrics: Stored | None = Field(description="of the last finished epoch")
    result: Stored | None
    error: ErrorInfo | None
    set_aside: SetAside | None = Field(
        description="why it is paused although no client has paused it; it goes on by itself"
    )
    waits_for: str | None = Field(
        description="why it waits although it is its turn: for a whole GPU, say, and who has them, or for the time at "
        "which it starts again after its process was lost"
    )
    retry_of: str | None = Field(description="the run that it tries again")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Event(Document):
    """Something that happened, in the order of `seq`."""

    seq: int
    job_id: str
    run_id: str | None
    attempt: int
    at: datetime
    type: str
    data: Stored


class Artifact(Document):
    """A file that a run has left."""

    object: Literal["artifact"] = "artifact"
    name: str
    size_bytes: int
    sha256: str
    media_type: str


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


class TeacherResult(Document):
    """How good the teacher is: on the test split, and on the training views, whose logits students learn from."""

    accuracy: float | None
    views_accuracy: float | None


class Report(Document):
    """The table of results. `accuracy_last` is what a run ends with; `accuracy_best` was chosen on the test split."""

    object: Literal["report"] = "report"
    job_id: str
    rows: list[ReportRow]
    teacher: TeacherResult
    teacher_forwards: TeacherForwards | None
    caches: dict[str, str] | None


# -------------------------------------------------------------------------------------------------------- API keys


class KeyRequest(Spec):
    """A key to be made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ci", "scope": "write"}]})

    name: Name
    scope: Scope = Field(description="each includes those before it: read, write, admin")


class Key(Document):
    """An API key, without its secret."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scope: Scope
    created_at: datetime
    last_used_at: datetime | None = Field(description="to within a minute or two")
    revoked_at: datetime | None = Field(description="null while it is good")


class NewKey(Key):
    """An API key that was just made, with its secret."""

    secret: str = Field(description="sent as `Authorization: Bearer SECRET`; it is nowhere kept")


# ---------------------------------------------------------------------------------------------------------- health


class Health(Document):
    """The process answers."""

    status: Literal["ok"] = "ok"
