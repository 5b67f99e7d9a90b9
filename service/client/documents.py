# Generated from service/api/schemas by python -m tests.repository.documents: change it there.
"""Documents of the API as the client returns them, a class each.

``/openapi.json`` says what a field means.
"""

from typing import Any, Literal

from service.client.typed_document import TypedDocument

State = Literal["queued", "running", "pausing", "paused", "cancelling", "lost", "succeeded", "failed", "cancelled"]


class Artifact(TypedDocument):
    """A file that a run has left."""

    object: Literal["artifact"]
    name: str
    size_bytes: int
    sha256: str
    media_type: str


class BadPicture(TypedDocument):
    """A picture of a dataset that cannot be decoded, or does not fit the others."""

    object: Literal["bad_picture"]
    number: int
    split: Literal["train", "validation", "test"]
    sample_id: str
    reason: str
    left_out: bool


class Cache(TypedDocument):
    """The logits of one teacher on one dataset's views."""

    object: Literal["cache"]
    key: str
    state: Literal["complete", "partial", "corrupt"]
    problem: str | None
    spec: dict[str, Any] | None
    rows_committed: int
    size_bytes: int
    created_at: str | None
    last_used_at: str | None
    pinned: bool
    provenance: dict[str, Any]


class CacheUser(TypedDocument):
    """A job that names a cache."""

    id: str
    name: str
    state: State
    split: str
    runs: int
    forwards: int


class CacheUse(TypedDocument):
    """Use of a cache, and what it has saved."""

    jobs: list[CacheUser]
    jobs_total: int
    forwards_needed: int
    forwards_run: int
    forwards_saved: int
    rows_per_s: float | None
    measured: str | None
    seconds_saved: float | None
    break_even_epochs: float | None


class CacheDetail(Cache):
    """A cache, with who uses it and what it has saved."""

    use: CacheUse | None


class CacheReport(TypedDocument):
    """Report of the problems that reading every byte of a cache again has found."""

    object: Literal["cache_report"]
    key: str
    ok: bool
    problems: list[str]
    blocks_checked: int
    rows_checked: int


class StatisticSummary(TypedDocument):
    """Distribution of a statistic over the rows of a view."""

    mean: float
    std: float
    least: float
    greatest: float
    histogram: dict[str, Any]


class CacheStatistics(TypedDocument):
    """Statistics of the teacher's logits on one view, as they were measured before rounding."""

    object: Literal["cache_statistics"]
    key: str
    view: int
    views: int
    rows: int
    statistics: dict[str, StatisticSummary]


class Estimate(TypedDocument):
    """Mean over the seeds of a group, and the standard deviation of a sample (n - 1), null for one seed."""

    mean: float
    std: float | None
    n: int


class ClassAccuracy(TypedDocument):
    """Accuracy on one class, the mean over seeds, with the teacher's beside it."""

    index: int
    accuracy: float
    teacher: float | None


class Difference(TypedDocument):
    """Top-1 less the baseline's, paired by seed, with a t interval of the mean difference."""

    baseline: str
    baseline_job_id: str
    seeds: list[int]
    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    p_value: float | None


class SampleTest(TypedDocument):
    """McNemar's exact test of a run and the baseline's of the same seed, by their kept predictions."""

    seed: int
    run_id: str
    baseline_run_id: str
    rows: int
    only_baseline: int
    only_method: int
    p_value: float


class GroupSplit(TypedDocument):
    """One split of a group: estimates over the seeds that succeeded, each of the weights that leave."""

    top1: Estimate | None
    top5: Estimate | None
    nll: Estimate | None
    ece: Estimate | None
    nll_calibrated: Estimate | None
    ece_calibrated: Estimate | None
    agreement: Estimate | None
    kl: Estimate | None
    best_class: ClassAccuracy | None
    worst_class: ClassAccuracy | None
    difference: Difference | None
    samples: list[SampleTest] | None


class ReportGroup(TypedDocument):
    """The runs of one student and method, over seeds."""

    job_id: str
    student: str
    method: str
    runs: dict[State, int]
    seeds: list[int]
    test: GroupSplit | None
    validation: GroupSplit | None


class Statistics(TypedDocument):
    """The part of a report that is over seeds."""

    baseline: str | None
    confidence: float
    groups: list[ReportGroup]
    notes: list[str]


class TeacherSplit(TypedDocument):
    """Metrics of the teacher on one split."""

    top1: float | None
    top5: float | None
    nll: float | None
    ece: float | None
    per_class: list[float | None] | None


class TeacherResult(TypedDocument):
    """Accuracy of the teacher: on each split, and on the training views, whose logits students learn from."""

    accuracy: float | None
    views_accuracy: float | None
    test: TeacherSplit | None
    validation: TeacherSplit | None


class ComparedJob(TypedDocument):
    """A job of a comparison."""

    job_id: str
    name: str
    state: State
    teacher: TeacherResult


class Comparison(Statistics):
    """One table over several jobs on the same dataset and splits."""

    object: Literal["comparison"]
    jobs: list[ComparedJob]


class Dataset(TypedDocument):
    """A dataset with a name; `samples` per split and `classes` are null where only decoding would tell.

    `samples` count bad pictures, which only decoding finds. `classes` is null as well where nothing names them: then a
    teacher's outputs tell.
    """

    object: Literal["dataset"]
    id: str
    name: str
    spec: dict[str, Any]
    classes: int | None
    samples: dict[str, int] | None
    notes: list[str] | None
    bad_pictures: dict[str, int] | None
    created_at: str


class Deletion(TypedDocument):
    """Deletion that was not made: bytes that it would free at this moment."""

    object: Literal["deletion"]
    id: str
    frees_bytes: int
    refused: str | None


class Event(TypedDocument):
    """Something that happened, in the order of `seq`."""

    seq: int
    job_id: str
    run_id: str | None
    attempt: int
    at: str
    type: str
    data: dict[str, Any]


class NetworkRow(TypedDocument):
    """Answer of a network to a picture."""

    predicted: int
    confidence: float
    logits: list[float]


class RowTemperature(TypedDocument):
    """Temperature of a network on one picture."""

    paper: float
    divisor: float


class RowTemperatures(TypedDocument):
    """Temperatures of both networks on one picture."""

    teacher: RowTemperature
    student: RowTemperature


class GalleryRow(TypedDocument):
    """A row with both networks' logits, of which softmax at any temperature can be drawn."""

    row: int
    value: float
    label: int | None
    sample_id: str | None
    picture: str | None
    teacher: NetworkRow
    student: NetworkRow | None
    temperature: RowTemperatures | None


class Gallery(TypedDocument):
    """Rows of a split, the most remarkable first."""

    object: Literal["gallery"]
    run_id: str
    by: Literal["highest_temperature", "lowest_temperature", "disagreement", "teacher_mistakes"]
    split: Literal["train", "validation", "test"]
    cache: str
    fingerprint: str
    view: int
    rows: int
    classes: int
    class_names: list[str]
    measure: str
    terms: list[str]
    term: int
    ordered_by: Literal["paper", "divisor"] | None
    notes: list[str]
    data: list[GalleryRow]


class GcJob(TypedDocument):
    """A job that goes."""

    id: str
    name: str
    state: State
    ended_at: str
    size_bytes: int
    reason: str


class GcDecoded(TypedDocument):
    """A decoded copy of a dataset that goes; it is made again when a job needs it."""

    fingerprint: str
    split: str
    samples: int
    size_bytes: int
    used_at: str


class GcUsage(TypedDocument):
    """Jobs and bytes that the service keeps, before a dry run or after a collection."""

    jobs: int
    ended_jobs: int
    pinned_jobs: int
    jobs_bytes: int
    decoded_bytes: int
    caches_bytes: int
    teachers_bytes: int
    student_files_bytes: int
    database_bytes: int
    database_free_bytes: int


class GcReport(TypedDocument):
    """Report of what has gone, or would go."""

    object: Literal["gc_report"]
    dry_run: bool
    jobs: list[GcJob]
    decoded: list[GcDecoded]
    compacted_jobs: int
    compacted_events: int
    rests_bytes: int
    files_bytes: int
    usage: GcUsage


class ImportedCache(Cache):
    """A cache of logits that were imported, and what was found about them."""

    accuracy: float | None
    warnings: list[str]


class ErrorInfo(TypedDocument):
    """Error with which something failed."""

    type: str
    message: str


class SetAside(TypedDocument):
    """Reason why something is paused that no client has paused; it goes on by itself."""

    code: str
    message: str
    since: str


class Inference(TypedDocument):
    """Rows that have gone through the teacher, of those that have to."""

    rows_done: int
    rows_total: int
    rows_per_s: float | None
    eta_s: float | None


class JobProgress(TypedDocument):
    """Progress of a job: the teacher's rows, and its runs by state."""

    inference: Inference | None
    runs: dict[State, int]


class JobTeacher(TypedDocument):
    """A teacher of a job, as it was when the job was posted."""

    id: str | None
    name: str | None
    sha256: str
    weight: float
    caches: dict[str, str] | None


class TeacherForwards(TypedDocument):
    """Teacher forward passes that were run for a job, and those that the cache spares its runs."""

    run: int
    avoided: int


class Eta(TypedDocument):
    """Expected end of a job or run that is queued, lost or at work: a moment, so that it stays true between changes."""

    expected_at: str
    as_of: str
    based_on: str


class JobSummary(TypedDocument):
    """A job and how far it is, as lists show it: without what was posted."""

    object: Literal["job"]
    id: str
    name: str
    tags: list[str]
    note: str
    state: State
    stage: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    error: ErrorInfo | None
    set_aside: SetAside | None
    progress: JobProgress
    teacher: str
    teacher_sha256: str
    teachers: list[JobTeacher]
    caches: dict[str, str] | None
    teacher_forwards: TeacherForwards | None
    teacher_accuracy: float | None
    teacher_metrics: dict[str, dict[str, Any]] | None
    teacher_views_accuracy: float | None
    waits_for: str | None
    priority: int
    parallel_runs: int | None
    retry_of: str | None
    pinned: bool
    eta: Eta | None


class WebhookDelivery(TypedDocument):
    """Delivery of the message at the end of a job."""

    url: str
    id: str
    status: Any
    attempts: int
    last_attempt_at: str | None
    last_status_code: int | None
    last_error: str | None
    next_attempt_at: str | None


class Job(JobSummary):
    """A job, what was posted, and how far it is."""

    plan: dict[str, Any]
    run_ids: list[str]
    webhook: WebhookDelivery | None


class RunCurves(TypedDocument):
    """Metrics of a run's epochs, a column each."""

    run_id: str
    name: str
    student: str
    method: str
    seed: int
    state: State
    epochs: int
    epoch: list[int]
    metrics: dict[str, list[float | None]]


class JobCurves(TypedDocument):
    """Metrics of all runs of a job. Ask for the next part with `after=last_id`."""

    object: Literal["curves"]
    job_id: str
    last_id: int
    every: int
    runs: list[RunCurves]


class PlannedClass(TypedDocument):
    """A class of the dataset, and the column of the teacher's output that is taken for it."""

    dataset: str
    column: int
    teacher: str | None


class PlannedClasses(TypedDocument):
    """Classes of the dataset in the order of their labels, as the cache and all students have them."""

    matched_by: Literal["position", "name"]
    count: int
    order: list[PlannedClass]
    note: str


class PlannedTeacher(TypedDocument):
    """A teacher of the job, and how the dataset's classes lie in its output."""

    id: str
    name: str
    weight: float
    classes: PlannedClasses | None


class PlannedRun(TypedDocument):
    """A run that the job would have."""

    name: str
    student: str
    method: str
    seed: int


class ViewSizes(TypedDocument):
    """Of each training view's box: what the student and the teacher get of it, (height, width) in pixels.

    Both are resampled from the dataset's picture. Null where only the pictures tell.
    """

    student: list[int] | None
    teacher: list[int] | None


class LabelsPreview(TypedDocument):
    """Labels and classes of a job's dataset, as its files show them."""

    labelled: dict[str, int]
    classes: int
    class_names: list[str] | None
    named_by: Literal["dataset", "teacher"]


class CacheCost(TypedDocument):
    """One cache that the job would have."""

    split: str
    teacher: str | None
    key: str | None
    samples: int
    views: int
    rows: int
    is_exact: bool
    chunks_bytes: int
    full_bytes: int
    rows_cached: int


class ForwardsCost(TypedDocument):
    """Rows of the caches that go through the teacher, beside the preflight's some hundred pictures."""

    needed: int
    cached: int
    to_run: int
    cached_known_by: str


class SecondsCost(TypedDocument):
    """Seconds if the engine has nothing else to do, by measured times; null for what was never measured."""

    preparing: float | None
    inference: float | None
    training: float | None
    total: float | None
    measured_by: list[str]
    missing: list[str]


class BreakEven(TypedDocument):
    """When the caches have paid for themselves, compared with a teacher that runs in every step."""

    live_forwards: int
    runs: float | None
    epochs: float | None
    live_seconds: float | None
    saved_seconds: float | None


class OtherWork(TypedDocument):
    """Work that the engine has already."""

    jobs: int
    expected_at: str | None


class Cost(TypedDocument):
    """Cost of a job before it is posted."""

    samples: dict[str, int]
    caches: list[CacheCost]
    forwards: ForwardsCost
    seconds: SecondsCost
    break_even: BreakEven
    other_work: OtherWork


class JobPreview(TypedDocument):
    """Preview of a job: what it would be, had it been posted without `dry_run`."""

    object: Literal["job_preview"]
    teacher: str
    teachers: list[PlannedTeacher]
    plan: dict[str, Any]
    runs: list[PlannedRun]
    views: ViewSizes
    classes: PlannedClasses | None
    labels: LabelsPreview
    warnings: list[str]
    cost: Cost


class TemperatureHistogram(TypedDocument):
    """Distribution of a network's temperatures."""

    mean: float
    std: float
    quantiles: dict[str, float | None]
    shares: list[float]
    below: float
    above: float


class TermTemperatures(TypedDocument):
    """Temperatures that a term's policy gives to every row of a cache."""

    parts: list[str]
    policy: str
    teacher: TemperatureHistogram
    student: TemperatureHistogram
    notes: list[str]


class MethodTemperatures(TypedDocument):
    """Temperatures of one of the job's methods on its training cache, by its policies alone."""

    method: str
    terms: list[TermTemperatures]
    reason: str | None


class RunTemperatures(TypedDocument):
    """Temperatures that a run has trained with in one epoch, by what it has measured."""

    run_id: str
    name: str
    student_name: str
    method: str
    seed: int
    state: State
    epochs: int
    epoch: int | None
    teacher: TemperatureHistogram | None
    student: TemperatureHistogram | None
    reason: str | None


class JobTemperatures(TypedDocument):
    """Histograms of temperatures over common bins, of the methods on the training cache and of runs as measured.

    All jobs have the same grid of bins, 16 an octave from 2^-10 to 2^14, of which `edges` are those that are needed
    here: shares of equal edges are comparable across jobs, methods and runs.
    """

    object: Literal["job_temperatures"]
    job_id: str
    kind: Literal["paper", "divisor"]
    edges: list[float]
    cache: str | None
    rows: int | None
    view: int
    methods: list[MethodTemperatures]
    runs: list[RunTemperatures]


class JobWebhook(WebhookDelivery):
    """Delivery of a job's webhook in the list of all."""

    job_id: str


class Needs(TypedDocument):
    """Needs of a method: what it has to be given."""

    teacher: bool
    labels: bool
    statistics: list[str]
    views: int
    whole_batch: bool
    learned: bool


class Method(TypedDocument):
    """A preset: what it computes, where it comes from, and the JSON Schema of its parameters."""

    object: Literal["method"]
    id: str
    title: str
    paper: str
    formula: str
    verified: str
    defaults: dict[str, dict[str, Any]]
    needs: Needs
    json_schema: dict[str, Any]


class MethodPreview(TypedDocument):
    """The temperatures that a method would give on a cache, term by term; cross-entropy has no term."""

    object: Literal["method_preview"]
    method: str
    cache: str
    student_cache: str | None
    views: int
    samples: int
    classes: int
    epoch: int
    epochs: int
    terms: list[dict[str, Any]]


class PictureRow(TypedDocument):
    """A picture by its place in its split."""

    object: Literal["picture"]
    row: int
    label: int | None
    class_name: str | None
    sample_id: str | None
    picture: str


class PairParameters(TypedDocument):
    """Parameters of a method that its authors give for some pairs of teacher and student."""

    method: str
    pairs: list[str]
    parameters: dict[str, Any]


class RecipeEntry(TypedDocument):
    """A recipe. A job names it in `recipe`; what the job states wins."""

    object: Literal["recipe"]
    id: str
    name: str
    title: str
    source: str
    default_of: list[str]
    training: dict[str, Any]
    views: dict[str, Any]
    reference_lr: bool
    methods: dict[str, Any]
    pairs: list[PairParameters]


class ReportRow(TypedDocument):
    """A run in the table of results; nulls until it has them. What does not say `validation` is of the test split."""

    run_id: str
    student: str
    method: str
    seed: int
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
    device: str | None
    accuracy: float | None
    top5: float | None
    validation_accuracy: float | None
    validation_top5: float | None
    validation_nll: float | None
    validation_ece: float | None
    calibration_temperature: float | None
    nll_calibrated: float | None
    ece_calibrated: float | None
    views_seen: int | None
    validation_agreement: float | None
    validation_kl_to_teacher: float | None


class Report(Statistics):
    """The table of results. Nothing in it was chosen on the test split."""

    object: Literal["report"]
    job_id: str
    rows: list[ReportRow]
    teacher: TeacherResult
    teacher_forwards: TeacherForwards | None
    caches: dict[str, str] | None


class Run(TypedDocument):
    """One student in training, or trained."""

    object: Literal["run"]
    id: str
    job_id: str
    index: int
    name: str
    student: str
    method: str
    method_spec: dict[str, Any]
    seed: int
    state: State
    attempt: int
    epoch: int
    epochs: int
    progress: dict[str, Any] | None
    metrics: dict[str, Any] | None
    result: dict[str, Any] | None
    error: ErrorInfo | None
    set_aside: SetAside | None
    waits_for: str | None
    retry_of: str | None
    eta: Eta | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class SplitClass(TypedDocument):
    """A class of a split."""

    label: int
    name: str
    samples: int


class Split(TypedDocument):
    """A split of a dataset, as it was decoded."""

    object: Literal["split"]
    split: Literal["train", "validation", "test"]
    fingerprint: str
    samples: int
    height: int
    width: int
    channels: int
    unlabelled: int
    classes: list[SplitClass]


class Student(TypedDocument):
    """A network that can be trained."""

    object: Literal["student"]
    id: str
    name: str
    family: str
    summary: str
    paper: str
    parameters_100: int | None
    min_side: int
    torchvision: bool
    json_schema: dict[str, Any]


class StudentFile(TypedDocument):
    """Weights of a student, or a program with its weights, that was uploaded and checked."""

    object: Literal["student_file"]
    id: str
    kind: Literal["weights", "program"]
    name: str
    sha256: str
    size_bytes: int
    tensors: int
    parameters: int
    dtypes: list[str]
    student: str | None
    shape: list[int | None] | None
    classes: int | None
    created_at: str


class Value(TypedDocument):
    """An input or output of the graph; a size is a number, a name, or null where the graph leaves it open."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class Teacher(TypedDocument):
    """An ONNX classifier that was uploaded and inspected."""

    object: Literal["teacher"]
    id: str
    name: str
    sha256: str
    size_bytes: int
    inputs: list[Value]
    outputs: list[Value]
    output: str
    output_kind: Literal["logits", "log_probabilities", "probabilities", "sigmoid", "percent"] | None
    classes: int | None
    class_names: list[str] | None
    file_class_names: list[str] | None
    class_map: dict[str, str | int]
    input_values: dict[str, bool | int | float]
    smoke_run: Literal["passed", "pending"]
    preprocessing: dict[str, Any]
    created_at: str
