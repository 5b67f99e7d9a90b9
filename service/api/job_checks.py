"""Checks of a job before it is accepted, without torch, while the client waits for the answer.

The preflight finds the rest when the job starts: a truncated picture, the teacher's accuracy.
"""

from dataclasses import dataclass

from service.api.dependencies import Context
from service.api.schemas.jobs import JobRequest
from service.api.schemas.labels import NAMES_MAX, LabelsPreview
from service.db.api_queries import DATASET, ApiQueries
from service.db.models import TeacherRecord
from service.errors import InvalidRequest
from service.estimates.caches import known_class_names
from service.settings import Settings
from service.webhooks.allowed import WebhookRefused
from workers.config.cache import check_encoding
from workers.config.dataset import DatasetSpec
from workers.config.full_batch import check_full_batch
from workers.config.job import Plan
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.config.teacher import TeacherReading
from workers.config.views import ResizedCrop
from workers.data.discovery import examine
from workers.data.kinds.base import Source
from workers.errors import ContractViolation, InvalidTeacher, UnknownName
from workers.onnx.teacher_graph import class_count
from workers.spec import Size
from workers.students.catalog import check_batch_size, check_image_side
from workers.teacher.class_columns import ClassColumns, match_classes
from workers.unlabelled import numbered


@dataclass(frozen=True)
class CheckedJob:
    """A request that was checked.

    Attributes:
        plan: with the dataset in place.
        source: the dataset as it was found.
        class_names: of the dataset, in label order; None where only decoding tells.
        classes: how the dataset's classes lie in the teacher's output; None where the names are not known yet.
    """

    plan: Plan
    teacher: TeacherRecord
    source: Source
    class_names: tuple[str, ...] | None
    classes: ClassColumns | None


def check_request(request: JobRequest, context: Context) -> None:
    """Check what needs neither teacher nor dataset.

    Raises:
        InvalidRequest: more runs than the settings allow, or a webhook to a host that they do not.
    """
    runs = len(request.students) * len(request.methods) * len(request.seeds)
    if runs > context.settings.job_runs_max:
        raise InvalidRequest(
            f"the job has {runs} runs, at most {context.settings.job_runs_max} are allowed: split it", "#"
        )
    if request.webhook is None:
        return
    try:
        context.webhook_hosts.check_url(str(request.webhook.url))
    except WebhookRefused as error:
        raise InvalidRequest(str(error), "#/webhook/url") from error


def find_teacher(id: str, context: Context) -> TeacherRecord:
    """The teacher of that id, whose file is there.

    Raises:
        InvalidRequest: there is no such teacher.
        InvalidTeacher: its file is gone.
    """
    try:
        teacher = context.queries.get(TeacherRecord, id)
    except LookupError as error:
        raise InvalidRequest(f"{error}: upload one with POST /v1/teachers", "#/teacher") from error
    if not context.settings.teacher_path(teacher.sha256).is_file():
        raise InvalidTeacher(f"the file of teacher {id} is gone: upload it again")
    return teacher


def find_dataset(request: JobRequest, queries: ApiQueries) -> DatasetSpec:
    """The dataset that a request states or names. Raises UnknownName."""
    if not isinstance(request.dataset, str):
        return request.dataset
    found = queries.find_dataset(request.dataset)
    if found is None:
        raise UnknownName("dataset", request.dataset, queries.dataset_names())
    return DATASET.validate_python(found.spec)


def check_plan(plan: Plan, teacher: TeacherRecord, settings: Settings) -> CheckedJob:
    """Check a filled plan against its dataset and teacher.

    Raises:
        InvalidRequest: more epochs than the settings allow.
        InvalidDataset: it is missing, outside the data root, malformed or empty.
        ContractViolation: teacher and dataset have different numbers of classes, or the teacher's names of classes are
            not the dataset's.
        InvalidJob: a student cannot be trained on pictures of that size or on batches of one, the cache's encoding
            saves nothing, ``drop_last`` leaves no batch, or the dataset lacks a split or labels that the job needs.
    """
    _check_epochs(plan, settings)
    source = examine(plan.dataset, settings.data_root)
    plan.splits(source.splits)
    check_labels(plan, source.samples, source.labelled_samples)
    if plan.training.drop_last and not plan.evaluate:
        # Rows of a holdout are left out when the data are decoded: only then it is known how many they are.
        check_full_batch(source.samples["train"], plan.training.batch_size)
    names = known_class_names(source, settings.datasets_dir)
    matched = _match_classes(teacher, source, names)
    check_encoding(plan.cache.encoding, source.classes or classes_of(teacher) or 0)
    for student in plan.students:
        check_batch_size(student.name, plan.training.batch_size // plan.training.accumulate)
    size = student_size(plan)
    if size is not None:
        for student in plan.students:
            check_image_side(student.name, min(size))
    return CheckedJob(plan, teacher, source, class_names=names, classes=matched)


def classes_of(teacher: TeacherRecord) -> int | None:
    """Number of classes that the teacher's graph declares; None where it leaves it open."""
    return class_count(next(value["shape"] for value in teacher.outputs if value["name"] == teacher.output))


def _check_epochs(plan: Plan, settings: Settings) -> None:
    if plan.evaluate:
        return
    epochs = plan.training.epochs
    if epochs > settings.job_epochs_max:
        raise InvalidRequest(
            f"a run would train for {epochs} epochs, at most {settings.job_epochs_max} are allowed here",
            "#/training/epochs",
        )


def _match_classes(teacher: TeacherRecord, source: Source, names: tuple[str, ...] | None) -> ClassColumns | None:
    classes, reading = classes_of(teacher), TeacherReading.model_validate(teacher.reading or {})
    if classes is None and not source.classes:
        raise ContractViolation(
            f"teacher {teacher.id} leaves its number of classes open (output {teacher.output!r}), and the dataset has "
            "neither labels nor class names: name its classes by `class_names`, in the order of the teacher's outputs"
        )
    is_named = reading.class_names is not None or reading.class_map or teacher.file_class_names is not None
    if source.classes and not is_named and classes not in (None, source.classes):
        raise ContractViolation(
            f"teacher {teacher.id} has {classes} classes (output {teacher.output!r}), the dataset has "
            f"{source.classes}: they must be the same classes in the same order, or the teacher must be uploaded with "
            "its `class_names`, which are matched with those of the dataset"
        )
    return None if names is None else match_classes(reading, teacher.file_class_names, names, classes)


def labels_of(plan: Plan, teacher: TeacherRecord, source: Source) -> tuple[LabelsPreview, list[str]]:
    """What a dry run shows of labels and classes, and what is to be said about labels that are missing."""
    classes, labelled = classes_of(teacher), source.labelled_samples
    names = source.class_names or (numbered(classes or 0) if not source.classes else None)
    shown = LabelsPreview(
        labelled={str(split): count for split, count in labelled.items()},
        classes=source.classes or classes or 0,
        class_names=None if names is None else list(names[:NAMES_MAX]),
        named_by="dataset" if source.classes else "teacher",
    )
    warnings = label_warnings(plan, source.samples, labelled)
    return shown, [*warnings, *class_warnings(source.classes, classes)]


def student_size(plan: Plan) -> Size | None:
    """Size (height, width) in pixels of the pictures that students see, test pictures included, if known."""
    recipe = plan.views.augmentation
    if isinstance(recipe, ResizedCrop) and recipe.size is not None:
        return recipe.size
    return picture_size(plan)


def picture_size(plan: Plan) -> Size | None:
    """(height, width) in pixels of the dataset's pictures, if the plan tells."""
    return plan.dataset.picture_size
