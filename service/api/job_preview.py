"""Preview of a job: its runs, the sizes of pictures and the order of classes, for a dry run."""

from collections.abc import Sequence

from service.api.cost import cost_of
from service.api.dependencies import Context
from service.api.job_checks import CheckedJob, CheckedTeacher, classes_of, picture_size, student_size
from service.api.job_warnings import gradient_warnings_of_plan
from service.api.schemas.jobs import (
    CLASSES_SHOWN,
    JobPreview,
    PlannedClass,
    PlannedClasses,
    PlannedRun,
    PlannedTeacher,
    ViewSizes,
)
from service.api.schemas.labels import NAMES_MAX, LabelsPreview
from service.db.job_posting import evaluation_run
from service.db.models import TeacherRecord
from workers.config.dataset import thumbnail_warnings
from workers.config.job import Plan
from workers.config.labels import class_warnings, label_warnings
from workers.config.teacher import Preprocessing
from workers.data.dataset_kind import Source
from workers.unlabelled import numbered


def preview_of(checked: CheckedJob, weights: Sequence[str], context: Context) -> JobPreview:
    """Document of what a job would be, with its cost.

    Args:
        weights: sentences on the students' first weights.
    """
    plan, teacher = checked.plan, checked.teacher
    gradients = []
    if len(checked.teachers) == 1:  # the rows of several are combined, and in no cache of one
        gradients = gradient_warnings_of_plan(plan, teacher.sha256, context.settings.caches_dir)
    chosen = checked.chosen
    planned = [
        PlannedRun(name=run.name, student=run.student.name, method=run.method.label, seed=run.seed)
        for run in plan.runs()
    ]
    if plan.evaluate:
        planned = [PlannedRun(**evaluation_run(chosen))]
    sizes = [Preprocessing.model_validate(each.record.preprocessing).size for each in chosen]
    thumbnails = [warning for size in dict.fromkeys(sizes) for warning in thumbnail_warnings(plan.dataset, size)]
    labels, of_labels = _labels(plan, teacher, checked.source)
    return JobPreview(
        teacher=teacher.id,
        teachers=[
            PlannedTeacher(
                id=each.record.id,
                name=each.record.name,
                weight=each.weight,
                classes=_planned_classes(each, checked.class_names),
            )
            for each in checked.teachers
        ],
        plan=plan,
        runs=planned,
        views=ViewSizes(student=student_size(plan), teacher=sizes[0] or picture_size(plan)),
        classes=_planned_classes(checked.teachers[0], checked.class_names),
        labels=labels,
        warnings=[*plan.warnings, *thumbnails, *of_labels, *checked.source.notes, *gradients, *weights],
        cost=cost_of(checked, context),
    )


def _planned_classes(teacher: CheckedTeacher, names: Sequence[str] | None) -> PlannedClasses | None:
    matched = teacher.classes
    if matched is None or names is None:
        return None
    columns = range(len(names)) if matched.columns is None else matched.columns
    known = matched.names or ()
    return PlannedClasses(
        matched_by=matched.matched_by,
        count=len(names),
        order=[
            PlannedClass(dataset=name, column=column, teacher=known[column] if column < len(known) else None)
            for name, column in zip(names, columns, strict=True)
        ][:CLASSES_SHOWN],
        note=matched.note,
    )


def _labels(plan: Plan, teacher: TeacherRecord, source: Source) -> tuple[LabelsPreview, list[str]]:
    """Labels and classes of a job as a dry run shows them, and sentences about labels that are missing."""
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
