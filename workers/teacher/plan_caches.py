"""Cache plan of a job: its data, the preflight of its teacher, and the specifications of its caches.

1. ``prepare_splits``: the splits are decoded once and mapped; a holdout is cut from the training split.
2. The teacher is tried on noise in a confined process (``smoke_run``), unless it was before, then on a labelled slice
   and on views of it (``preflight``), once for every pairing of teacher, data and views: the reports are recorded. Each
   job decides for itself whether it insists on a teacher that is doubted, whatever was recorded.
3. That settles the specifications, and so the keys.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from workers.config.cache import check_encoding
from workers.config.combination import WeightedTeacher
from workers.config.dataset import thumbnail_warnings
from workers.config.job import JobSpec
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import NoAugmentation, Views
from workers.data.decoded import KnownSplit
from workers.data.discovery import examine
from workers.data.prepare import prepare_splits
from workers.data.prepared import Dataset
from workers.data.row_digests import overlap_warnings
from workers.errors import Stopped
from workers.events import Emit, Log, PreflightChecked, ShouldStop, with_prefix
from workers.teacher.cache_plan import (
    CachePlan,
    EncodingCheck,
    KnownTeacher,
    cache_specs,
    views_of_teacher,
)
from workers.teacher.combined_cache import combined_specs, member_plans
from workers.teacher.forwards import ForwardCounter
from workers.teacher.plan_checks import check_levels, check_networks, identify, smoke_run
from workers.teacher.preflight.records import recorded
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.views import check_views
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher

# Preflights, of several jobs, that share the machine's memory.
_SESSIONS = 2


def plan_caches(
    job: JobSpec,
    folders: Folders,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    threads: int,
    device: Device = "auto",
    forwards_in: Path | None = None,
) -> CachePlan:
    """Prepare the data, run the teacher's preflight on it, and settle the specifications of the caches.

    The encoding is for the training split alone: the other caches are small, and results are measured on them.

    Args:
        forwards_in: see ``InferenceTask.forwards``.

    Raises:
        ContractViolation: the teacher and the data do not belong together, or a method needs logits and the teacher
            gives log-probabilities; none if the job accepts the teacher.
    """
    warn(job.warnings, emit)
    source = examine(job.dataset, folders.data_root)
    splits = job.splits(source.splits)
    warn(source.notes, emit)
    check_labels(job, source.samples, source.labelled_samples)
    warn(label_warnings(job, source.samples, source.labelled_samples), emit)
    root, work_dir = folders.data_root, folders.datasets
    data = prepare_splits(
        job.dataset, splits, root, work_dir, holdout=job.validation, emit=emit, should_stop=should_stop
    )
    warn(overlap_warnings(data), emit)
    if "test" not in data:
        warn(['nothing is measured on a test split: the job says `"test": null`'], emit)
    train = data["train"]
    if train.class_names:
        check_networks(job, train, folders, emit)
    open_session = functools.partial(
        _open_session, dataset=train, threads=threads, device=device, should_stop=should_stop, forwards_in=forwards_in
    )
    examined = [
        _examine(
            job,
            teacher,
            train,
            folders,
            emit=with_prefix(f"teacher {teacher.name!r}: ", emit) if job.teachers else emit,
            open_session=open_session,
        )
        for teacher in job.all_teachers
    ]
    check_levels(job, [each.report for each in examined], emit)
    classes = examined[0].known.classes
    if not train.class_names:  # the teachers have told their number
        check_networks(job, train.numbered(classes), folders, emit)
    check_encoding(job.cache.encoding, classes)
    warn(class_warnings(source.classes or len(train.class_names), classes), emit)
    facts = {
        split: KnownSplit(found.fingerprint, len(found.labels_N), found.height, found.width)
        for split, found in data.items()
    }
    members = member_plans(job, [(each.teacher, each.known) for each in examined], facts) if job.teachers else ()
    if members:
        own = [member.caches for member in members]
        caches = combined_specs(job, own, [member.weight for member in members], facts)
    else:
        caches = cache_specs(job, examined[0].known, facts)
    methods = tuple(method for method in job.methods if method.expand().needs_teacher)
    check = EncodingCheck(methods=methods, epochs=job.training.epochs, allow_lossy=job.cache.allow_lossy)
    return CachePlan(
        teacher=examined[0].teacher,
        train_cache=caches["train"],
        test_cache=caches.get("test"),
        validation_cache=caches.get("validation"),
        evaluates=job.evaluate,
        contract_forwards=sum(each.forwards for each in examined),
        guard=check if caches["train"].is_lossy and not job.evaluate else None,
        members=members,
        combine=job.combine,
    )


class _Examined(NamedTuple):
    """A teacher that has passed its preflight, and the forward passes that this took now."""

    teacher: TeacherSpec
    known: KnownTeacher
    report: PreflightReport
    forwards: int


def _examine(
    job: JobSpec,
    member: WeightedTeacher,
    train: Dataset,
    folders: Folders,
    *,
    emit: Emit,
    open_session: Callable[[TeacherSpec], Teacher],
) -> _Examined:
    """Try a teacher on noise and on the data; the output's name is given from here on: a cache is known by it."""
    teacher = identify(member.alone)
    smoke_run(teacher, train, folders, emit)
    warn(thumbnail_warnings(job.dataset, teacher.preprocessing.size), emit)
    seen = views_of_teacher(job, teacher.preprocessing, train.height, train.width)
    session = functools.cache(functools.partial(open_session, teacher))
    report, forwards = _run_preflight(
        teacher, train, folders, emit, accept=job.accept_teacher, views=seen, session=session
    )
    teacher = teacher.model_copy(update={"output": report.output})
    known = KnownTeacher(
        sha256=str(teacher.sha256),
        output=report.output,
        output_kind=report.output_kind,
        classes=report.classes,
        preprocessing=teacher.preprocessing,
        columns=report.columns,
        inputs=teacher.input_values,
    )
    return _Examined(teacher, known, report, forwards)


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

    Raises:
        ContractViolation: they do not belong together; see ``Teacher.run_preflight``.
        Stopped: the job is to stop; the next one tries anew.
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
