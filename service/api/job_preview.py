"""Preview of a job: its runs, the sizes of pictures and the order of classes, for a dry run."""

from collections.abc import Sequence

from service.api.job_checks import CheckedJob, CheckedTeacher, labels_of, picture_size, student_size
from service.api.schemas.costs import Cost
from service.api.schemas.jobs import (
    CLASSES_SHOWN,
    JobPreview,
    PlannedClass,
    PlannedClasses,
    PlannedRun,
    PlannedTeacher,
    ViewSizes,
)
from service.db.job_posting import evaluation_run
from service.db.job_teachers import ChosenTeacher
from workers.config.dataset import thumbnail_warnings
from workers.config.teacher import Preprocessing


def preview_of(checked: CheckedJob, warnings: Sequence[str], cost: Cost) -> JobPreview:
    """Document of what a job would be."""
    plan, teacher = checked.plan, checked.teacher
    chosen = [ChosenTeacher(each.record, each.weight) for each in checked.teachers]
    planned = [
        PlannedRun(name=run.name, student=run.student.name, method=run.method.label, seed=run.seed)
        for run in plan.runs()
    ]
    if plan.evaluate:
        planned = [PlannedRun(**evaluation_run(chosen))]
    sizes = [Preprocessing.model_validate(each.record.preprocessing).size for each in chosen]
    thumbnails = [warning for size in dict.fromkeys(sizes) for warning in thumbnail_warnings(plan.dataset, size)]
    labels, of_labels = labels_of(plan, teacher, checked.source)
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
        warnings=[*plan.warnings, *thumbnails, *of_labels, *warnings],
        cost=cost,
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
