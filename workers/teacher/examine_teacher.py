"""Examination of a job's teacher on its data: tried on noise, then on a labelled slice and on views of it.

In a confined process (``smoke_run``), unless it was before, and by the preflight once for every pairing of teacher,
data and views: its reports are recorded. Each job decides for itself whether it insists on a teacher that is doubted,
whatever was recorded.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from store import CacheSpec
from workers.config.combination import WeightedTeacher
from workers.config.dataset import thumbnail_warnings
from workers.config.job import JobSpec, Plan
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import NoAugmentation, Views
from workers.data.preparation.decoded import KnownSplit
from workers.data.preparation.prepared import Dataset
from workers.errors import Stopped
from workers.events import Emit, Log, PreflightChecked, ShouldStop, Split
from workers.teacher.cache_plan import KnownTeacher, cache_specs, views_of_teacher
from workers.teacher.forwards import ForwardCounter
from workers.teacher.imports import imported_specs
from workers.teacher.plan_checks import identify, smoke_run
from workers.teacher.preflight.records import recorded
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.views import check_views
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher

# Preflights, of several jobs, that share the machine's memory.
_SESSIONS = 2


class Examined(NamedTuple):
    """A teacher that has passed its preflight, or imported logits.

    Attributes:
        known: what its caches are known by; None of imported ones.
        imported: caches by split; none of a teacher.
        classes: of the dataset.
        is_normalised: the level of its logits is lost to a softmax.
        forwards: passes that the preflight took now.
    """

    teacher: TeacherSpec
    known: KnownTeacher | None
    imported: Mapping[Split, CacheSpec]
    classes: int
    is_normalised: bool
    forwards: int = 0

    def caches(self, job: Plan, facts: Mapping[Split, KnownSplit]) -> dict[Split, CacheSpec]:
        """Specifications of its caches; imported ones are those that there are."""
        if self.known is not None:
            return cache_specs(job, self.known, facts)
        return {split: spec for split, spec in self.imported.items() if split in facts}


def examine_teacher(
    job: JobSpec,
    member: WeightedTeacher,
    train: Dataset,
    folders: Folders,
    *,
    emit: Emit,
    should_stop: ShouldStop,
    threads: int,
    device: Device,
    forwards_in: Path | None,
) -> Examined:
    """Try a teacher on noise and on the data; the output's name is given from here on: a cache is known by it.

    Of imported logits nothing is run: they were judged when they came.

    Args:
        train: the training split.
        should_stop: asked after every batch.
        forwards_in: see ``InferenceTask.forwards``.

    Raises:
        InvalidTeacher: its file is gone, or it cannot be run.
        ContractViolation: they do not belong together, see ``Teacher.run_preflight``; the job does not accept it.
        Stopped: ``should_stop`` said so; the next job tries anew.
    """
    if member.caches:
        return _imported(job, member.alone, train, folders)
    teacher = identify(member.alone)
    smoke_run(teacher, train, folders, emit)
    warn(thumbnail_warnings(job.dataset, teacher.preprocessing.size), emit)
    seen = views_of_teacher(job, teacher.preprocessing, train.height, train.width)
    session = functools.cache(
        functools.partial(
            _open_session,
            teacher,
            dataset=train,
            threads=threads,
            device=device,
            should_stop=should_stop,
            forwards_in=forwards_in,
        )
    )
    report, forwards = _run_preflight(
        teacher, train, folders, emit, accept=job.accept_teacher, views=seen, session=session
    )
    teacher = teacher.model_copy(update={"output": report.output})
    return Examined(
        teacher=teacher,
        known=_known(teacher, report),
        imported={},
        classes=report.classes,
        is_normalised=report.normalised,
        forwards=forwards,
    )


def _imported(job: JobSpec, teacher: TeacherSpec, train: Dataset, folders: Folders) -> Examined:
    """Imported logits as a teacher of the job."""
    if not job.teachers:
        imported_specs.check_options(job)
    found = imported_specs.find_imported(teacher.caches, folders.caches)
    imported_specs.check_views(found, job.views, job.validation)
    imported_specs.check_classes(found, train.classes)
    train_spec = found["train"]
    return Examined(
        teacher=teacher,
        known=None,
        imported=found,
        classes=train_spec.classes,
        is_normalised=imported_specs.is_normalised(train_spec),
    )


def _known(teacher: TeacherSpec, report: PreflightReport) -> KnownTeacher:
    """Identity of a teacher, as far as its caches are known by it."""
    return KnownTeacher(
        sha256=str(teacher.sha256),
        output=report.output,
        output_kind=report.output_kind,
        classes=report.classes,
        preprocessing=teacher.preprocessing,
        columns=report.columns,
        inputs=teacher.input_values,
    )


def _open_session(
    teacher: TeacherSpec,
    *,
    dataset: Dataset,
    threads: int,
    device: Device,
    should_stop: ShouldStop,
    forwards_in: Path | None,
) -> Teacher:
    """The session of a preflight, which counts what the teacher is run on and is stopped after any batch."""
    counter = None if forwards_in is None else ForwardCounter(forwards_in)

    def count(rows: int) -> None:
        if counter is not None:
            counter.add(rows)
        if should_stop():
            raise Stopped("stopped while the teacher was tried on the data")

    return Teacher(
        teacher.path,
        teacher.preprocessing,
        teacher.output,
        reading=teacher,
        threads=threads,
        device=device,
        dataset=dataset,
        on_forward=count,
        sessions=_SESSIONS,
    )


def _run_preflight(
    teacher: TeacherSpec,
    dataset: Dataset,
    folders: Folders,
    emit: Emit,
    *,
    accept: bool,
    views: Views,
    session: Callable[[], Teacher],
) -> tuple[PreflightReport, int]:
    """Run the preflight on a labelled slice and on views of it, or read what was recorded of it.

    Args:
        accept: whether the job insists on a teacher that is doubted; each job for itself, whatever was recorded.
        views: the training views as the teacher sees them; without augmentation plain pictures alone are tried.
        session: of the teacher; not asked for where both reports are there.

    Returns:
        The report on plain pictures, and the number of forward passes that both took now.
    """
    identity = {
        "teacher": teacher.model_dump(mode="json", exclude={"path"}),
        "dataset": dataset.fingerprint,
        "class_names": dataset.class_names,
    }
    report, forwards = recorded(
        PreflightReport, folders.contracts, identity, lambda: session().run_preflight(dataset, accept=accept)
    )
    report.enforce(accept)
    on_views = None
    if not isinstance(views.augmentation, NoAugmentation):
        identity["views"] = views.model_dump(mode="json")
        on_views, more = recorded(
            ViewsReport, folders.contracts, identity, lambda: check_views(session(), dataset, views, report)
        )
        forwards += more
    if forwards:
        warn(session().warnings, emit)
    warn((*report.accepted, *report.warnings, *(on_views.warnings if on_views else ())), emit)
    if forwards:
        emit(_checked(report, on_views, forwards, session()))
    return report, forwards


def _checked(
    report: PreflightReport, on_views: ViewsReport | None, forwards: int, session: Teacher
) -> PreflightChecked:
    return PreflightChecked(
        rows=report.rows,
        forwards=forwards,
        accuracy=report.accuracy,
        views_accuracy=on_views.accuracy if on_views else None,
        chance=report.chance,
        labelled=report.labelled,
        entropy=None if report.without_labels is None else report.without_labels.entropy,
        agreement=None if report.without_labels is None else report.without_labels.agreement,
        output_kind=report.output_kind,
        provider=session.provider,
        provider_reason=session.provider_reason,
    )


def warn(warnings: Iterable[str], emit: Emit) -> None:
    """Emit each sentence as a warning."""
    for warning in warnings:
        emit(Log(level="warning", message=warning))
