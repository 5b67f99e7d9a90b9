"""Cache plan of a job: its data, the preflight of its teacher, and the specifications of its caches.

1. ``prepare_data``: the splits are decoded once and mapped; a holdout is cut from the training split.
2. The teacher is tried on noise in a confined process (``smoke_run``), unless it was before, then on a labelled slice
   and on views of it (``run_recorded_preflight``), once for every pairing of teacher, data and views. Its records are
   reports as JSON, named by the digest of what they depend on. Each job decides for itself whether it insists on a
   teacher that is doubted, whatever was recorded.
3. That settles the specifications, and so the keys.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from store import CacheSpec
from workers.config.cache import check_encoding
from workers.config.combination import WeightedTeacher
from workers.config.dataset import DatasetSpec, thumbnail_warnings
from workers.config.job import JobSpec, Plan
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.data.bad_picture_reports import Refusals
from workers.data.decoded import KnownSplit
from workers.data.discovery import examine
from workers.data.holdout import hold_out
from workers.data.holdout_spec import Holdout
from workers.data.prepare import prepare
from workers.data.prepared import Dataset
from workers.data.row_digests import overlap_warnings
from workers.events import Emit, ShouldStop, Split, Stage, with_prefix
from workers.teacher.cache_plan import (
    CachePlan,
    EncodingCheck,
    KnownTeacher,
    MemberPlan,
    cache_specs,
    views_of_teacher,
)
from workers.teacher.combined_cache import combined_specs, member_job
from workers.teacher.imports.imported_specs import (
    check_classes,
    check_content,
    check_member,
    check_options,
    check_views,
    find_imported,
    is_normalised,
)
from workers.teacher.plan_checks import check_levels, check_networks, identify, smoke_run
from workers.teacher.preflight.report import PreflightReport
from workers.teacher.recorded_preflight import run_recorded_preflight, warn
from workers.teacher.sessions import Device


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
    data = prepare_data(job.dataset, folders, emit, should_stop, splits=splits, holdout=job.validation)
    warn(overlap_warnings(data), emit)
    if "test" not in data:
        warn(['nothing is measured on a test split: the job says `"test": null`'], emit)
    train = data["train"]
    if train.class_names:
        check_networks(job, train, folders, emit)
    examined = [
        _examine(
            job,
            teacher,
            train,
            folders,
            emit=with_prefix(f"teacher {teacher.name!r}: ", emit) if job.teachers else emit,
            run_preflight=functools.partial(
                run_recorded_preflight, threads=threads, device=device, should_stop=should_stop, forwards_in=forwards_in
            ),
        )
        for teacher in job.all_teachers
    ]
    check_levels(job, emit, is_normalised=any(each.is_normalised for each in examined))
    classes = examined[0].classes
    if not train.class_names:  # the teachers have told their number
        check_networks(job, train.numbered(classes), folders, emit)
    check_encoding(job.cache.encoding, classes)
    warn(class_warnings(source.classes or len(train.class_names), classes), emit)
    facts = {
        split: KnownSplit(found.fingerprint, len(found.labels_N), found.height, found.width)
        for split, found in data.items()
    }
    for each in examined:
        check_content(each.imported, facts)
    members = _members(job, examined, facts) if job.teachers else ()
    if members:
        own = [member.caches for member in members]
        caches = combined_specs(job, own, [member.weight for member in members], facts)
    else:
        caches = examined[0].caches(job, facts)
        warn(_unmeasured(caches, facts), emit)
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
        fingerprints={}
        if caches.keys() == facts.keys()
        else {split: known.fingerprint for split, known in facts.items()},
    )


class _Examined(NamedTuple):
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


def _imported(job: JobSpec, teacher: TeacherSpec, train: Dataset, folders: Folders) -> _Examined:
    """Imported logits as a teacher of the job."""
    if not job.teachers:
        check_options(job)
    found = find_imported(teacher.caches, folders.caches)
    check_views(found, job.views)
    check_classes(found, train.classes)
    train_spec = found["train"]
    return _Examined(
        teacher=teacher,
        known=None,
        imported=found,
        classes=train_spec.classes,
        is_normalised=is_normalised(train_spec),
    )


def _unmeasured(caches: Collection[Split], facts: Collection[Split]) -> list[str]:
    without = [split for split in facts if split not in caches]
    if not without:
        return []
    return [
        f"no logits of the {' and '.join(without)} split were imported: students are measured there, and their "
        "agreement with a teacher is not"
    ]


def _examine(
    job: JobSpec,
    member: WeightedTeacher,
    train: Dataset,
    folders: Folders,
    *,
    emit: Emit,
    run_preflight: Callable[..., tuple[PreflightReport, int]],
) -> _Examined:
    """Try a teacher on noise and on the data; the output's name is given from here on: a cache is known by it.

    Of imported logits nothing is run: they were judged when they came.
    """
    if member.caches:
        return _imported(job, member.alone, train, folders)
    teacher = identify(member.alone)
    smoke_run(teacher, train, folders, emit)
    warn(thumbnail_warnings(job.dataset, teacher.preprocessing.size), emit)
    seen = views_of_teacher(job, teacher.preprocessing, train.height, train.width)
    report, forwards = run_preflight(teacher, train, folders, emit, accept=job.accept_teacher, views=seen)
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
    return _Examined(
        teacher=teacher,
        known=known,
        imported={},
        classes=report.classes,
        is_normalised=report.normalised,
        forwards=forwards,
    )


def _members(job: JobSpec, examined: Sequence[_Examined], facts: Mapping[Split, KnownSplit]) -> tuple[MemberPlan, ...]:
    """Several teachers with their own caches, those of a job of each alone."""
    alone = member_job(job)
    for each in examined:
        check_member(each.imported, facts)
    return tuple(
        MemberPlan(teacher=each.teacher, weight=given.weight, name=given.name, caches=each.caches(alone, facts))
        for each, given in zip(examined, job.teachers, strict=True)
    )


def prepare_data(
    spec: DatasetSpec,
    folders: Folders,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    splits: Collection[Split] = ("train", "test"),
    holdout: Holdout | None = None,
) -> dict[Split, Dataset]:
    """Prepare these splits of a dataset: decoded on the first call, mapped on every later one.

    Args:
        splits: to prepare.
        holdout: the validation split is cut from the training split.

    Raises:
        InvalidDataset: a split cannot be used; the message is of all that cannot.
    """
    emit(Stage(stage="preparing"))
    found: dict[Split, Dataset] = {}
    refusals = Refusals()
    for split in splits:
        with refusals.collecting():
            if split != "validation" or holdout is None:
                data_root, work_dir = folders.data_root, folders.datasets
                found[split] = prepare(spec, split, data_root, work_dir, emit=emit, should_stop=should_stop)
            elif "train" in found:
                found[split] = hold_out(found["train"], holdout, folders.datasets, emit)
    refusals.check(folders.datasets, spec)
    return found
