"""Cache plan of a job: its data, the preflight of its teacher, and the specifications of its caches.

1. ``prepare_splits``: the splits are decoded once and mapped; a holdout is cut from the training split.
2. ``examine_teacher``, each: it is tried on noise, in a confined process (``smoke_run``), unless it was before, and by
   the preflight on a labelled slice of the data and on views of it, once for every pairing of teacher, data and views:
   its reports are recorded. Each job decides for itself whether it insists on a teacher that is doubted.
3. That settles the specifications, and so the keys.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from store import CacheSpec
from workers.config.cache import check_encoding
from workers.config.combination import WeightedTeacher
from workers.config.dataset import thumbnail_warnings
from workers.config.job import JobSpec, Plan
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import NoAugmentation
from workers.data.preparation.decoded import KnownSplit
from workers.data.preparation.discovery import examine
from workers.data.preparation.prepare import prepare_splits
from workers.data.preparation.prepared import Dataset
from workers.data.preparation.row_digests import overlap_warnings
from workers.events import Emit, ShouldStop, Split, warn, with_prefix
from workers.teacher.cache_plan import (
    CachePlan,
    EncodingCheck,
    KnownTeacher,
    MemberPlan,
    cache_specs,
    views_of_teacher,
)
from workers.teacher.combined_cache import combined_specs, member_job
from workers.teacher.counted_session import open_session
from workers.teacher.imports import imported_specs
from workers.teacher.plan_checks import check_levels, check_networks, identify, smoke_run
from workers.teacher.preflight.records import recorded
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.views import check_views
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher


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
    source = examine(job.dataset, folders.data_root, folders.datasets)
    splits = job.splits(source.splits)
    warn(source.notes, emit)
    check_labels(job, source.samples, source.labelled_samples)
    warn(label_warnings(job, source.samples, source.labelled_samples), emit)
    holdout, root, work_dir = job.validation, folders.data_root, folders.datasets
    data = prepare_splits(job.dataset, splits, root, work_dir, holdout=holdout, emit=emit, should_stop=should_stop)
    warn(overlap_warnings(data), emit)
    if "test" not in data:
        warn(['nothing is measured on a test split: the job says `"test": null`'], emit)
    train = data["train"]
    if train.class_names:
        check_networks(job, train, folders, emit)
    examined = [
        examine_teacher(
            job,
            teacher,
            train,
            folders,
            emit=with_prefix(f"teacher {teacher.name!r}: ", emit) if job.teachers else emit,
            should_stop=should_stop,
            threads=threads,
            device=device,
            forwards_in=forwards_in,
        )
        for teacher in job.all_teachers
    ]
    check_levels(job, emit, is_normalised=any(each.is_normalised for each in examined))
    classes = examined[0].classes
    if not train.class_names:  # the teachers have told their number
        check_networks(job, train.numbered(classes), folders, emit)
    check_encoding(job.cache.encoding, classes)
    warn(class_warnings(source.classes or len(train.class_names), classes), emit)
    facts = {split: found.known for split, found in data.items()}
    for each in examined:
        imported_specs.check_content(each.imported, facts)
    members = _members(job, examined, facts) if job.teachers else ()
    if members:
        own = [member.caches for member in members]
        caches = combined_specs(job, own, [member.weight for member in members], facts)
    else:
        caches = examined[0].caches(job, facts)
        warn(imported_specs.unmeasured_warnings(caches, facts), emit)
    return CachePlan(
        teacher=examined[0].teacher,
        train_cache=caches["train"],
        test_cache=caches.get("test"),
        validation_cache=caches.get("validation"),
        evaluates=job.evaluate,
        contract_forwards=sum(each.forwards for each in examined),
        guard=EncodingCheck.of(job) if caches["train"].is_lossy and not job.evaluate else None,
        members=members,
        combine=job.combine,
        fingerprints={}
        if caches.keys() == facts.keys()
        else {split: known.fingerprint for split, known in facts.items()},
    )


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
    open_it = partial(open_session, teacher, train, threads=threads, device=device)
    session = cache(partial(open_it, should_stop=should_stop, forwards_in=forwards_in))
    report, forwards = _run_preflight(job, teacher, train, folders, emit=emit, session=session)
    teacher = teacher.model_copy(update={"output": report.output})
    return Examined(
        teacher=teacher,
        known=_known(teacher, report),
        imported={},
        classes=report.classes,
        is_normalised=report.normalised,
        forwards=forwards,
    )


def _run_preflight(
    job: Plan, teacher: TeacherSpec, dataset: Dataset, folders: Folders, *, emit: Emit, session: Callable[[], Teacher]
) -> tuple[PreflightReport, int]:
    """Run the preflight on a labelled slice and on views of it, or read what was recorded of it.

    Args:
        job: whose training views are tried, as the teacher sees them; without augmentation plain pictures alone.
        session: of the teacher; not asked for where both reports are there.

    Returns:
        The report on plain pictures, and the number of forward passes that both took now.
    """
    accept, views = job.accept_teacher, views_of_teacher(job, teacher.preprocessing, dataset.height, dataset.width)
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
        emit(report.event(on_views, forwards, session()))
    return report, forwards


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


def _members(job: JobSpec, examined: Sequence[Examined], facts: Mapping[Split, KnownSplit]) -> tuple[MemberPlan, ...]:
    """Several teachers with their own caches, those of a job of each alone."""
    alone = member_job(job)
    for each in examined:
        imported_specs.check_member(each.imported, facts)
    return tuple(
        MemberPlan(teacher=each.teacher, weight=given.weight, name=given.name, caches=each.caches(alone, facts))
        for each, given in zip(examined, job.teachers, strict=True)
    )
