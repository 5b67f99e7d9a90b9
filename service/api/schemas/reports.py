"""Documents of reports: a row per run, a group per student and method over its seeds, and tables over several jobs."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.api.schemas.base import Document
from service.api.schemas.jobs import TeacherForwards
from service.db.states import State
from workers.spec import AtMost, Flag, Seed, Spec

JOBS_MAX = 20
JobId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
Label = Annotated[str, Field(min_length=1, max_length=20_000)]
Confidence = Annotated[float, Field(ge=0.5, le=0.9999, allow_inf_nan=False)]
Format = Literal["json", "csv", "markdown", "latex"]
Paired = Literal["seeds", "samples"]
CONFIDENCE = 0.95
BASELINE = "ce"


class ReportRow(Document):
    """A run in the table of results; nulls until it has them. What does not say `validation` is of the test split."""

    run_id: str
    student: str
    method: str
    seed: Seed
    state: State
    accuracy_last: float | None
    accuracy_best: float | None = Field(
        description="of the best epoch, on the validation split; null without one, for then nothing is best"
    )
    best_epoch: int | None = Field(description="the epoch of `accuracy_best`")
    agreement: float | None
    kl_to_teacher: float | None
    ece: float | None
    nll: float | None
    student_temperature: float | None
    teacher_temperature: float | None
    images_per_s: float | None
    seconds: float | None
    device: str | None = Field(description="what it was trained on: the name of a GPU, or `cpu`; null in older results")
    accuracy: float | None = Field(description="of the weights that leave: the last epoch's, or the best one's if kept")
    top5: float | None = Field(description="of the weights that leave")
    validation_accuracy: float | None = Field(description="of the weights that leave")
    validation_top5: float | None = Field(description="of the weights that leave")
    validation_nll: float | None = Field(description="of the weights that leave")
    validation_ece: float | None = Field(description="of the weights that leave")
    calibration_temperature: float | None = Field(
        description="what validation logits were divided by for the least NLL"
    )
    nll_calibrated: float | None = Field(description="NLL on the test split after that division")
    ece_calibrated: float | None = Field(description="ECE on the test split after that division")
    views_seen: int | None = Field(description="different views of each picture; null in older results")
    validation_agreement: float | None
    validation_kl_to_teacher: float | None


class TeacherSplit(Document):
    """Metrics of the teacher on one split."""

    model_config = ConfigDict(extra="ignore")

    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    per_class: list[float | None] | None = Field(None, description="accuracy by class; null without a row of it")


class TeacherResult(Document):
    """Accuracy of the teacher: on each split, and on the training views, whose logits students learn from."""

    accuracy: float | None
    views_accuracy: float | None
    test: TeacherSplit | None
    validation: TeacherSplit | None


class Estimate(Document):
    """Mean over the seeds of a group, and the standard deviation of a sample (n - 1), null for one seed."""

    mean: float
    std: float | None
    n: int


class ClassAccuracy(Document):
    """Accuracy on one class, the mean over seeds, with the teacher's beside it."""

    index: int
    accuracy: float
    teacher: float | None


class Difference(Document):
    """Top-1 less the baseline's, paired by seed, with a t interval of the mean difference."""

    baseline: str
    baseline_job_id: str
    seeds: list[Seed] = Field(description="those that both have")
    mean: float
    std: float | None
    n: int
    low: float | None = Field(description="null for one pair, and where all differences are equal")
    high: float | None
    p_value: float | None = Field(description="two-sided, of a paired t test")


class SampleTest(Document):
    """McNemar's exact test of a run and the baseline's of the same seed, by their kept predictions."""

    seed: Seed
    run_id: str
    baseline_run_id: str
    rows: int
    only_baseline: int = Field(description="rows on which the baseline alone is right")
    only_method: int = Field(description="rows on which the method alone is right")
    p_value: float


class GroupSplit(Document):
    """One split of a group: estimates over the seeds that succeeded, each of the weights that leave."""

    top1: Estimate | None
    top5: Estimate | None
    nll: Estimate | None
    ece: Estimate | None
    nll_calibrated: Estimate | None
    ece_calibrated: Estimate | None
    agreement: Estimate | None
    kl: Estimate | None = Field(description="KL(teacher || student), nats")
    best_class: ClassAccuracy | None
    worst_class: ClassAccuracy | None
    difference: Difference | None
    samples: list[SampleTest] | None = Field(description="null unless they were asked for, with `paired=samples`")


class ReportGroup(Document):
    """The runs of one student and method, over seeds."""

    job_id: str
    student: str
    method: str
    runs: dict[State, int] = Field(description="how many are in each state; only those that succeeded are estimated")
    seeds: list[Seed] = Field(description="of the runs that succeeded")
    test: GroupSplit | None
    validation: GroupSplit | None


class Statistics(Document):
    """The part of a report that is over seeds."""

    baseline: str | None = Field(description="the method of which differences are told; null where there is none")
    confidence: float = Field(description="of the intervals")
    groups: list[ReportGroup]
    notes: list[str] = Field(description="what a reader of the numbers has to know, in sentences")


class Report(Statistics):
    """The table of results. Nothing in it was chosen on the test split."""

    object: Literal["report"] = "report"
    job_id: str
    rows: list[ReportRow]
    teacher: TeacherResult
    teacher_forwards: TeacherForwards | None
    caches: dict[str, str] | None


class ComparedJob(Document):
    """A job of a comparison."""

    job_id: str
    name: str
    state: State
    teacher: TeacherResult


class Comparison(Statistics):
    """One table over several jobs on the same dataset and splits."""

    object: Literal["comparison"] = "comparison"
    jobs: list[ComparedJob]


class ComparisonRequest(Spec):
    """Jobs to put into one table.

    `baseline` is a method. Each group is compared with that of the same student in its own job, else in the first of
    `jobs` that has one; with `baseline_job`, in that job alone. `baseline_job` without `baseline` compares each method
    with itself there.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"jobs": ["job_0123456789abcdef0123456789abcdef"], "baseline": "ce"}]}
    )

    jobs: Annotated[tuple[JobId, ...], Field(min_length=1), AtMost(JOBS_MAX)]
    baseline: Label | None = None
    baseline_job: JobId | None = None
    confidence: Confidence = CONFIDENCE
    paired: Paired = "seeds"
    format: Format = "json"
    accept_different_data: Flag = Field(False, description="compare jobs on different datasets or splits all the same")
