"""Cache plan of a job: its data, the preflight of its teacher, and the specifications of its caches.

1. ``prepare_splits``: the splits are decoded once and mapped; a holdout is cut from the training split.
2. Each teacher is examined on them (``examine_teacher``).
3. That settles the specifications, and so the keys.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from workers.config.cache import check_encoding
from workers.config.job import JobSpec
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.config.task import Folders
from workers.data.preparation.decoded import KnownSplit
from workers.data.preparation.discovery import examine
from workers.data.preparation.prepare import prepare_splits
from workers.data.preparation.row_digests import overlap_warnings
from workers.events import Emit, ShouldStop, Split, with_prefix
from workers.teacher.cache_plan import CachePlan, EncodingCheck, MemberPlan
from workers.teacher.combined_cache import combined_specs, member_job
from workers.teacher.examine_teacher import Examined, examine_teacher, warn
from workers.teacher.imports.imported_specs import check_content, check_member
from workers.teacher.plan_checks import check_levels, check_networks
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
    source = examine(job.dataset, folders.data_root, folders.datasets)
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
    methods = tuple(method for method in job.all_methods if method.expand().needs_teacher)
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


def _unmeasured(caches: Collection[Split], facts: Collection[Split]) -> list[str]:
    without = [split for split in facts if split not in caches]
    if not without:
        return []
    return [
        f"no logits of the {' and '.join(without)} split were imported: students are measured there, and their "
        "agreement with a teacher is not"
    ]


def _members(job: JobSpec, examined: Sequence[Examined], facts: Mapping[Split, KnownSplit]) -> tuple[MemberPlan, ...]:
    """Several teachers with their own caches, those of a job of each alone."""
    alone = member_job(job)
    for each in examined:
        check_member(each.imported, facts)
    return tuple(
        MemberPlan(teacher=each.teacher, weight=given.weight, name=given.name, caches=each.caches(alone, facts))
        for each, given in zip(examined, job.teachers, strict=True)
    )
