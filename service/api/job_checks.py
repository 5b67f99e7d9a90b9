"""Checks of a job before it is accepted, without torch, while the client waits for the answer.

The preflight finds the rest when the job starts: a truncated picture, the teacher's accuracy.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.api.dependencies import Context
from service.api.schemas.jobs import JobRequest
from service.db.job_teachers import ChosenTeacher, imported_record
from service.db.models import TeacherRecord
from service.db.queries.api_queries import DATASET, ApiQueries
from service.errors import InvalidRequest
from service.estimates.caches import known_class_names, known_splits
from service.settings import Settings
from service.webhooks.allowed import WebhookRefused
from store import CacheSpec
from workers.config.cache import check_encoding
from workers.config.combination import check_count
from workers.config.dataset import DatasetSpec
from workers.config.full_batch import check_full_batch
from workers.config.job import Plan
from workers.config.labels import check_labels
from workers.config.run_block import RunBlock
from workers.config.teacher import TeacherReading
from workers.config.views import ResizedCrop
from workers.data.dataset_kind import Source
from workers.data.preparation.discovery import examine
from workers.errors import ContractViolation, InvalidTeacher, UnknownName
from workers.events import Split
from workers.onnx.checks.inputs import Scalar
from workers.onnx.checks.teacher_graph import class_count
from workers.onnx.uploads.inspection import inspect_in_subprocess
from workers.spec import Size
from workers.students.catalog import check_batch_size, check_image_side
from workers.teacher.class_columns import ClassColumns, match_classes
from workers.teacher.imports.imported_specs import (
    IMPORTED,
    check_classes,
    check_content,
    check_member,
    check_options,
    check_views,
    find_imported,
)

# Of a job's teacher.
NAME_MAX = 200


@dataclass(frozen=True)
class CheckedTeacher:
    """A teacher of a request that was checked.

    Attributes:
        classes: how the dataset's classes lie in the teacher's output; None where the names are not known yet.
        caches: of imported logits, by split; empty for a classifier.
    """

    record: TeacherRecord
    weight: float
    classes: ClassColumns | None
    caches: Mapping[Split, CacheSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedJob:
    """A request that was checked.

    Attributes:
        plan: with the dataset in place.
        teachers: one or more.
        source: the dataset as it was found.
        class_names: of the dataset, in label order; None where only decoding tells.
    """

    plan: Plan
    teachers: tuple[CheckedTeacher, ...]
    source: Source
    class_names: tuple[str, ...] | None

    @property
    def teacher(self) -> TeacherRecord:
        """The first teacher."""
        return self.teachers[0].record

    @property
    def chosen(self) -> list[ChosenTeacher]:
        """The teachers as a new job's row has them."""
        return [ChosenTeacher(each.record, each.weight, each.caches) for each in self.teachers]


def check_request(request: JobRequest, context: Context) -> None:
    """Check what needs neither teacher nor dataset.

    Raises:
        InvalidRequest: no teacher, the same one twice, more runs than the settings allow, or a webhook to a host that
            they do not.
        InvalidJob: a list of one teacher, or a combination of one.
    """
    _check_teachers(request)
    check_run_count(request.blocks, context.settings)
    if request.extends is not None:
        raise InvalidRequest("extends is said by the service: ask POST /v1/runs/{id}/extend for it", "#/extends")
    if request.webhook is None:
        return
    try:
        context.webhook_hosts.check_url(str(request.webhook.url))
    except WebhookRefused as error:
        raise InvalidRequest(str(error), "#/webhook/url") from error


def check_run_count(blocks: Sequence[RunBlock], settings: Settings) -> None:
    """Refuse a job of more runs than the settings allow. Raises InvalidRequest."""
    runs = sum(block.count for block in blocks)
    if runs > settings.job_runs_max:
        raise InvalidRequest(f"the job has {runs} runs, at most {settings.job_runs_max} are allowed: split it", "#")


def _check_teachers(request: JobRequest) -> None:
    if not request.choices:
        raise InvalidRequest(
            "Field required: the id of a teacher, `teachers` for a combination of several, or `caches` of imported "
            "logits",
            "#/teacher",
        )
    given = [name for name in ("teacher", "teachers", "caches") if getattr(request, name)]
    if len(given) > 1:
        raise InvalidRequest(f"the job has `{given[0]}` and `{given[1]}`: leave one of them out", f"#/{given[0]}")
    ids = [choice.id or tuple(sorted(choice.caches.items())) for choice in request.choices]
    if twice := next((id for id in ids if ids.count(id) > 1), None):
        raise InvalidRequest(f"teachers names {twice} twice: give it one larger `weight`", "#/teachers")
    check_count(len(request.teachers), combines=request.combine is not None)


def find_teachers(request: JobRequest, context: Context) -> tuple[ChosenTeacher, ...]:
    """The teachers of a request, each as ``find_teacher`` finds it; imported logits as ``find_imported`` does."""
    return tuple(
        ChosenTeacher(
            find_teacher(choice.id, context, f"#/teachers/{number}/id" if request.teachers else "#/teacher"),
            choice.weight,
        )
        if choice.id is not None
        else find_logits(choice.caches, choice.weight, context)
        for number, choice in enumerate(request.choices)
    )


def find_logits(keys: Mapping[Split, str], weight: float, context: Context) -> ChosenTeacher:
    """Imported logits in the place of a teacher. Raises InvalidJob; see ``find_imported``."""
    caches = find_imported(keys, context.settings.caches_dir)
    told = context.catalog.get(caches["train"].key).provenance.get(IMPORTED)
    source = str(told.get("source", "")) if isinstance(told, dict) else ""
    name = source[:NAME_MAX] or f"imported logits {caches['train'].key[:12]}"
    return ChosenTeacher(imported_record(name, caches["train"]), weight, caches)


def find_teacher(id: str, context: Context, place: str) -> TeacherRecord:
    """The teacher of that id, whose file is there; ``place`` is where the request names it.

    Raises:
        InvalidRequest: there is no such teacher.
        InvalidTeacher: its file is gone.
    """
    try:
        teacher = context.queries.get(TeacherRecord, id)
    except LookupError as error:
        raise InvalidRequest(f"{error}: upload one with POST /v1/teachers", place) from error
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


def check_plan(plan: Plan, teachers: Sequence[ChosenTeacher], settings: Settings) -> CheckedJob:
    """Check a filled plan against its dataset and teachers.

    Raises:
        InvalidRequest: more epochs than the settings allow.
        InvalidDataset: it is missing, outside the data root, malformed or empty.
        ContractViolation: teacher and dataset have different numbers of classes, or the teacher's names of classes are
            not the dataset's.
        InvalidJob: a student cannot be trained on pictures of that size or on batches of one, the cache's encoding
            saves nothing, ``drop_last`` leaves no batch, or the dataset lacks a split or labels that the job needs.
    """
    _check_epochs(plan, settings)
    source = examine(plan.dataset, settings.data_root, settings.datasets_dir)
    plan.splits(source.splits)
    check_labels(plan, source.samples, source.labelled_samples)
    if plan.training.drop_last and not plan.evaluate:
        # Rows of a holdout are left out when the data are decoded: only then it is known how many they are.
        check_full_batch(source.samples["train"], plan.training.batch_size)
    names = known_class_names(source, settings.datasets_dir)
    for each in teachers:
        _check_logits(plan, each, source, settings, is_alone=len(teachers) == 1)
    checked = tuple(
        CheckedTeacher(each.record, each.weight, _match_classes(each.record, source, names, settings), each.caches)
        for each in teachers
    )
    check_encoding(plan.cache.encoding, source.classes or classes_of(teachers[0].record) or 0)
    for student in plan.all_students:
        check_batch_size(student.name, plan.training.batch_size // plan.training.accumulate)
    size = student_size(plan)
    if size is not None:
        for student in plan.all_students:
            check_image_side(student.name, min(size))
    return CheckedJob(plan, checked, source, class_names=names)


def _check_logits(plan: Plan, chosen: ChosenTeacher, source: Source, settings: Settings, *, is_alone: bool) -> None:
    """Refuse imported logits that are not those of the plan's pictures; nothing of a classifier. Raises InvalidJob."""
    if not chosen.caches:
        return
    if is_alone:
        check_options(plan)
    else:
        check_member(chosen.caches, plan.splits(source.splits))
    check_views(chosen.caches, plan.views, plan.validation)
    check_classes(chosen.caches, source.classes)
    check_content(chosen.caches, known_splits(plan, source, settings.datasets_dir))


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


def _match_classes(
    teacher: TeacherRecord, source: Source, names: tuple[str, ...] | None, settings: Settings
) -> ClassColumns | None:
    classes, reading = classes_of(teacher), TeacherReading.model_validate(teacher.reading or {})
    if classes is None and not source.classes:
        raise ContractViolation(
            f"teacher {teacher.id} leaves its number of classes open (output {teacher.output!r}), and the dataset has "
            "neither labels nor class names: name its classes by `class_names`, in the order of the teacher's outputs"
        )
    file_names = None if reading.class_names is not None else _file_names(teacher, reading, settings)
    is_named = reading.class_names is not None or reading.class_map or file_names is not None
    if source.classes and not is_named and classes not in (None, source.classes):
        raise ContractViolation(
            f"teacher {teacher.id} has {classes} classes (output {teacher.output!r}), the dataset has "
            f"{source.classes}: they must be the same classes in the same order, or the teacher must be uploaded with "
            "its `class_names`, which are matched with those of the dataset"
        )
    return None if names is None else match_classes(reading, file_names, names, classes)


def _file_names(teacher: TeacherRecord, reading: TeacherReading, settings: Settings) -> tuple[str, ...] | None:
    """Class names in the file of a teacher, as its job will find them, whenever it was uploaded; None for none."""
    if teacher.file_class_names is not None:
        return tuple(teacher.file_class_names) or None
    path, values = settings.teacher_path(teacher.sha256), tuple(reading.input_values.items())
    return _inspected_names(path, teacher.output, values, timeout_s=settings.inspect_timeout_s)


@functools.lru_cache(maxsize=64)
def _inspected_names(
    path: Path, output: str, values: tuple[tuple[str, Scalar], ...], *, timeout_s: float
) -> tuple[str, ...] | None:
    return inspect_in_subprocess(path, output, timeout_s, dict(values)).class_names


def student_size(plan: Plan) -> Size | None:
    """Size (height, width) in pixels of the pictures that students see, test pictures included, if known."""
    recipe = plan.views.augmentation
    if isinstance(recipe, ResizedCrop) and recipe.size is not None:
        return recipe.size
    return picture_size(plan)


def picture_size(plan: Plan) -> Size | None:
    """(height, width) in pixels of the dataset's pictures, if the plan tells."""
    return plan.dataset.picture_size
