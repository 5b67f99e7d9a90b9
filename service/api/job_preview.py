"""Preview of a job: its runs, the sizes of pictures and the order of classes, for a dry run."""

from collections.abc import Sequence

from service.api.job_checks import CheckedJob, labels_of, picture_size, student_size
from service.api.schemas.costs import Cost
from service.api.schemas.jobs import CLASSES_SHOWN, JobPreview, PlannedClass, PlannedClasses, PlannedRun, ViewSizes
from service.db.job_posting import evaluation_run
from workers.config.dataset import thumbnail_warnings
from workers.config.teacher import Preprocessing


def preview_of(checked: CheckedJob, warnings: Sequence[str], cost: Cost) -> JobPreview:
    """Document of what a job would be."""
    plan, teacher = checked.plan, checked.teacher
    planned = [
        PlannedRun(name=run.name, student=run.student.name, method=run.method.label, seed=run.seed)
        for run in plan.runs()
    ]
    if plan.evaluate:
        planned = [PlannedRun(**evaluation_run(teacher))]
    preprocessing = Preprocessing.model_validate(teacher.preprocessing)
    labels, of_labels = labels_of(plan, teacher, checked.source)
    return JobPreview(
        teacher=teacher.id,
        plan=plan,
        runs=planned,
        views=ViewSizes(student=student_size(plan), teacher=preprocessing.size or picture_size(plan)),
        classes=_planned_classes(checked),
        labels=labels,
        warnings=[*plan.warnings, *thumbnail_warnings(plan.dataset, preprocessing.size), *of_labels, *warnings],
        cost=cost,
    )


def _planned_classes(checked: CheckedJob) -> PlannedClasses | None:
    matched, names = checked.classes, checked.class_names
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
