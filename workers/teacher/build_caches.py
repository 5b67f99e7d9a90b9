"""From a job to complete caches: the data, the contract check, the specifications, the blocks.

1. ``prepare_data``: both splits are decoded once and mapped.
2. ``plan_caches``: the teacher is tried on noise in a confined process (``smoke_test``), unless it was before, then on
a
   labelled slice and on views of it, unless this very pairing was tried before; that settles the two specifications,
   and so the keys.
3. ``reserve_caches``: both are created and kept from eviction; others are evicted for them where there is a quota.
4. ``build_caches``: blocks that are not committed yet are inferred, in this process or wherever ``infer`` has it done.
   Of a lossy cache the first one comes first, and ``encoding_check`` judges by it whether the rest is worth the
   teacher's time. A complete cache costs a verification, and no teacher is opened for it.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from store import (
    CacheCorrupt,
    CacheReader,
    CacheSpec,
    CacheWriter,
    Catalog,
    Encoding,
    Reservation,
    read_reference,
)
from workers.config.cache import check_encoding
from workers.config.dataset import DatasetSpec, thumbnail_warnings
from workers.config.job import JobSpec
from workers.config.task import Folders, InferenceTask, TeacherAccuracy
from workers.config.teacher import TeacherSpec
from workers.config.views import Augmentation, NoAugmentation, Views, output_size, teacher_augmentation
from workers.data import prepared
from workers.data.prepare import prepare
from workers.data.prepared import Dataset
from workers.errors import InvalidTeacher, Stopped
from workers.events import CacheReady, Emit, InferenceProgress, Log, PreflightChecked, ShouldStop, Stage, never
from workers.files import alone, file_sha256, replacing
from workers.onnx import smoke_test
from workers.onnx.check import check_onnx, check_picture
from workers.students import check_batch_size, check_image_side
from workers.teacher.cache_plan import CachePlan, EncodingCheck
from workers.teacher.encoding_check import check_lossy_encoding
from workers.teacher.forwards import ForwardCounter
from workers.teacher.inference import AUGMENTATION, infer_blocks
from workers.teacher.preflight import BATCH, ViewsReport, batch_rows, check_views
from workers.teacher.teacher import Device, PreflightReport, Teacher

Report = TypeVar("Report", bound=BaseModel)

# Logits that are looked at together when they are counted: 4 MiB of float32.
_ACCURACY_CELLS = 1 << 20
# Contract checks, of several jobs, that share the machine's memory.
_CONTRACT_SESSIONS = 2

Infer = Callable[[InferenceTask, Sequence[int], Emit, ShouldStop], None]
"""Infers blocks of one cache; ``infer_here`` does it in this process, ``cluster`` on many."""


# ------------------------------------------------------------------------------------------------------------- data


def prepare_data(spec: DatasetSpec, folders: Folders, emit: Emit, should_stop: ShouldStop) -> tuple[Dataset, Dataset]:
    """The (train, test) splits, decoded on the first call and mapped on every later one."""
    emit(Stage(stage="preparing"))
    train, test = (
        prepare(spec, split, folders.data_root, folders.datasets, emit, should_stop) for split in ("train", "test")
    )
    return train, test


# ----------------------------------------------------------------------------------------------------------- caches


def identify(teacher: TeacherSpec) -> TeacherSpec:
    """The same teacher with its digest filled in.

    Raises:
        InvalidTeacher: the file is not there, or not the one whose digest was given.
    """
    if not teacher.path.is_file():
        raise InvalidTeacher(f"teacher file {str(teacher.path)!r} does not exist: upload it again")
    digest = file_sha256(teacher.path)
    if teacher.sha256 not in (None, digest):
        raise InvalidTeacher(
            f"teacher file {str(teacher.path)!r} has SHA-256 {digest}, expected {teacher.sha256}: "
            "it was changed after it was uploaded; upload it again"
        )
    return teacher.model_copy(update={"sha256": digest})


def _smoke_run(teacher: TeacherSpec, dataset: Dataset, folders: Folders, emit: Emit) -> None:
    """Run a teacher that no one has run yet where it can harm nobody. Raises InvalidTeacher."""
    if smoke_test.has_passed(folders.smoke, teacher):
        return
    started = time.monotonic()
    wanted = teacher.preprocessing
    graph = check_onnx(teacher.path, teacher.output)
    check_picture(graph, channels=wanted.channel_count, size=wanted.size, layout=wanted.layout)
    smoke_test.smoke_run(teacher.path, graph, wanted, (dataset.height, dataset.width))
    smoke_test.remember(folders.smoke, teacher)
    emit(Log(message=f"the teacher has passed its smoke run in {time.monotonic() - started:.1f} s"))


def check_contract(
    teacher: TeacherSpec,
    dataset: Dataset,
    folders: Folders,
    emit: Emit,
    *,
    threads: int,
    device: Device = "auto",
    accept: bool = False,
    views: Views | None = None,
    should_stop: ShouldStop = never,
    forwards_in: Path | None = None,
) -> tuple[PreflightReport, int]:
    """Try the teacher on a labelled slice, once for every pairing of teacher and data, and on views of it.

    Args:
        accept: whether the job insists on a teacher that is doubted; each job for itself, whatever was recorded.
        views: the training views as the teacher sees them; None, or no augmentation, tries plain pictures alone.
        should_stop: asked after every batch.
        forwards_in: see ``InferenceTask.forwards``.

    Returns:
        The report on plain pictures, and the number of forward passes that both took now: 0 when the
        same teacher, preprocessing, data and views were tried before (the reports are then read back).

    Raises:
        ContractViolation: they do not belong together; see ``Teacher.run_preflight``.
        Stopped: ``should_stop`` said so; the next job tries anew.
    """
    counter = None if forwards_in is None else ForwardCounter(forwards_in)

    def count(rows: int) -> None:
        if counter is not None:
            counter.add(rows)
        if should_stop():
            raise Stopped("stopped while the teacher was tried on the data")

    identity = {
        "teacher": teacher.model_dump(mode="json", exclude={"path"}),
        "dataset": dataset.fingerprint,
        "class_names": dataset.class_names,
    }
    session = functools.cache(
        lambda: Teacher(
            teacher.path,
            teacher.preprocessing,
            teacher.output,
            threads=threads,
            device=device,
            dataset=dataset,
            on_forward=count,
            sessions=_CONTRACT_SESSIONS,
        )
    )
    record = _contract_record(folders, identity)
    report, forwards = _recorded(record, PreflightReport), 0
    if report is None:
        report = session().run_preflight(dataset, accept=accept)
        forwards = report.forwards
        _record(record, report)
    report.enforce(accept)
    on_views = None
    if views is not None and not isinstance(views.augmentation, NoAugmentation):
        record = _contract_record(folders, {**identity, "views": views.model_dump(mode="json")})
        on_views = _recorded(record, ViewsReport)
        if on_views is None:
            on_views = check_views(session(), dataset, views, report)
            forwards += on_views.rows
            _record(record, on_views)
    warnings = (*report.accepted, *report.warnings, *(on_views.warnings if on_views else ()))
    for warning in (*(session().warnings if forwards else ()), *warnings):
        emit(Log(level="warning", message=warning))
    if forwards:
        emit(
            PreflightChecked(
                rows=report.rows,
                forwards=forwards,
                accuracy=report.accuracy,
                views_accuracy=on_views.accuracy if on_views else None,
                chance=report.chance,
                output_kind=report.output_kind,
                provider=session().provider,
                provider_reason=session().provider_reason,
            )
        )
    return report, forwards


def _contract_record(folders: Folders, identity: Mapping[str, object]) -> Path:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return folders.contracts / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _recorded(record: Path, kind: type[Report]) -> Report | None:
    """What an earlier check has recorded; one that an older version wrote in another shape is as good as none."""
    try:
        return kind.model_validate_json(record.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def _record(record: Path, report: BaseModel) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record, "a contract report") as file:
        file.write(report.model_dump_json(indent=2).encode())


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
    """Prepare the data, check the teacher against it, and settle both cache specifications.

    The encoding is for the training split alone: the test split's cache is small, and results are measured on it.

    Args:
        forwards_in: see ``InferenceTask.forwards``.
    """
    for warning in job.warnings:
        emit(Log(level="warning", message=warning))
    train, test = prepare_data(job.dataset, folders, emit, should_stop)
    for student in job.students:
        # Known now, and cheaper to hear now than after the inference.
        check_image_side(student.name, min(output_size(job.views.augmentation, train.height, train.width)))
        check_batch_size(student.name, job.training.batch_size)
    teacher = identify(job.teacher)
    _smoke_run(teacher, train, folders, emit)
    size = teacher.preprocessing.size
    for warning in thumbnail_warnings(job.dataset, size):
        emit(Log(level="warning", message=warning))
    recipe = teacher_augmentation(job.views.augmentation, size, train.height, train.width)
    seen = job.views.model_copy(update={"augmentation": recipe})
    report, rows = check_contract(
        teacher,
        train,
        folders,
        emit,
        threads=threads,
        device=device,
        accept=job.accept_teacher,
        views=seen,
        should_stop=should_stop,
        forwards_in=forwards_in,
    )

    encoding, methods = job.cache.encoding, [method for method in job.methods if method.expand().needs_teacher]
    check_encoding(encoding, report.classes)

    def spec(dataset: Dataset, views: Views, encoding: Encoding) -> CacheSpec:
        return CacheSpec(
            teacher_sha256=teacher.sha256,
            teacher_output=report.output,
            output_kind=report.output_kind,
            dataset_fingerprint=dataset.fingerprint,
            split=dataset.split,
            samples=len(dataset.labels_N),
            classes=report.classes,
            preprocessing=teacher.preprocessing.model_dump(mode="json"),
            augmentation=views.augmentation.model_dump(mode="json"),
            augmentation_seed=views.seed,
            views=views.count,
            dtype=job.cache.dtype if encoding == "dense" else "float32",
            encoding=encoding,
        )

    # The output's name is part of a cache's identity; from here on it is always given.
    teacher = teacher.model_copy(update={"output": report.output})
    plain = Views(augmentation=NoAugmentation())
    train_cache = spec(train, seen, encoding)
    guard = EncodingCheck(methods=tuple(methods), epochs=job.training.epochs, allow_lossy=job.cache.allow_lossy)
    return CachePlan(
        teacher=teacher,
        train_cache=train_cache,
        test_cache=spec(test, plain, "dense"),
        contract_forwards=rows,
        guard=guard if train_cache.is_lossy else None,
    )


def open_teacher(task: InferenceTask) -> Teacher:
    """The session that an order asks for.

    Raises:
        DeviceUnavailable: the order promises a GPU, and none works or it computes something else than the CPU.
        InvalidTeacher, InvalidDataset, OutOfMemory.
    """
    return Teacher(
        task.teacher.path,
        task.teacher.preprocessing,
        task.teacher.output,
        threads=task.threads,
        device=task.device,
        memory_fraction=task.memory_fraction,
        output_kind=task.spec.output_kind,
        dataset=prepared.open_prepared(task.folders.datasets, task.spec.dataset_fingerprint),
        on_forward=None if task.forwards is None else ForwardCounter(task.forwards).add,
        sessions=task.sessions,
        confine_on_gpu=task.confine_on_gpu,
    )


def infer_with(
    teacher: Teacher, task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop
) -> None:
    """Infer and commit blocks of one cache with a session that is open already."""
    dataset = prepared.open_prepared(task.folders.datasets, task.spec.dataset_fingerprint)
    writer = CacheWriter(task.folders.caches, task.spec)
    infer_blocks(teacher, dataset, writer, blocks, emit, should_stop, task.batch_size, task.load_threads)


def infer_here(task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
    """Infer and commit blocks in this process."""
    teacher = open_teacher(task)
    emit(Log(message=f"inference on {teacher.provider}: {teacher.provider_reason}"))
    for warning in teacher.warnings:
        emit(Log(level="warning", message=warning))
    infer_with(teacher, task, blocks, emit, should_stop)


def reserve_caches(plan: CachePlan, folders: Folders, quota_bytes: int, emit: Emit) -> Reservation:
    """Hold both caches until the reservation is released or this process ends.

    Args:
        quota_bytes: for all caches together; others are evicted, the least recently used first. 0 is no quota.

    Raises:
        store.QuotaExceeded, store.StoreError.
    """
    specs = (plan.test_cache, plan.train_cache)
    # Without a provenance: where its blocks are inferred is not known yet, ``infer_blocks`` adds it.
    reservation = Catalog(folders.caches).reserve(specs, quota_bytes)
    for gone in reservation.evicted:
        used = gone.used_at.isoformat(sep=" ", timespec="seconds")
        emit(
            Log(
                message=f"cache {gone.key[:12]} ({gone.size_bytes:,} bytes, last used {used}) was evicted: "
                f"the quota of {quota_bytes:,} bytes has no room for this job's caches beside it"
            )
        )
    return reservation


def build_caches(
    plan: CachePlan,
    folders: Folders,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    threads: int,
    device: Device = "auto",
    infer: Infer = infer_here,
    forwards_in: Path | None = None,
) -> int:
    """Complete both caches, the test split's first (it is small and shows mistakes early).

    Before them comes one block of a lossy training split, and the judgement on it.

    Args:
        forwards_in: see ``InferenceTask.forwards``.

    Returns:
        How many rows went through the teacher, the contract check's included.

    Raises:
        Stopped, store.StoreError, WorkerError: committed blocks stay and are not inferred again.
        LossyCache: a method would learn something else from the training split's cache, see ``encoding_check``.
    """

    def task(spec: CacheSpec) -> InferenceTask:
        dataset = prepared.open_prepared(folders.datasets, spec.dataset_fingerprint)
        return InferenceTask(
            folders=folders,
            teacher=plan.teacher,
            spec=spec,
            threads=threads,
            device=device,
            batch_size=inference_batch(
                plan.teacher, dataset, spec.block_rows, AUGMENTATION.validate_python(spec.augmentation)
            ),
            forwards=forwards_in,
        )

    emit(Stage(stage="inference"))
    total = plan.contract_forwards
    already: dict[str, int] = {}
    if plan.guard is not None:
        already[plan.train_cache.key] = _check_lossy_encoding(
            plan.guard, task(plan.train_cache), infer, emit, should_stop
        )
    for spec in (plan.test_cache, plan.train_cache):
        started = time.monotonic()
        with _in_turn(folders, spec, should_stop):
            rows = _complete(task(spec), infer, emit, should_stop) + already.get(spec.key, 0)
        rows_total = spec.views * spec.samples
        _verify(folders, spec)
        emit(
            InferenceProgress(
                cache=spec.key,
                split=spec.split,
                rows_done=rows_total,
                rows_total=rows_total,
                rows_inferred=rows,
                rows_per_s=None,
                eta_s=0.0,
            )
        )
        emit(
            CacheReady(
                cache=spec.key,
                split=spec.split,
                views=spec.views,
                rows_total=rows_total,
                rows_inferred=rows,
                seconds=time.monotonic() - started,
            )
        )
        total += rows
    return total


def _in_turn(folders: Folders, spec: CacheSpec, should_stop: ShouldStop) -> AbstractContextManager[None]:
    """A second job that wants the same cache waits here, and then finds it complete."""
    locks = folders.data_dir / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return alone(locks / spec.key, should_stop, "infers the same cache")


def _check_lossy_encoding(
    guard: EncodingCheck, task: InferenceTask, infer: Infer, emit: Emit, should_stop: ShouldStop
) -> int:
    """Judge a lossy cache by its first block, which is inferred if need be; returns how many rows that was."""
    spec, folders = task.spec, task.folders
    rows = 0
    with _in_turn(folders, spec, should_stop):
        writer = CacheWriter(folders.caches, spec)
        if 0 in writer.pending_blocks():
            infer(task, [0], emit, should_stop)
            rows = spec.rows_in([0])
        reference = read_reference(folders.caches, spec)
    dataset = prepared.open_prepared(folders.datasets, spec.dataset_fingerprint)
    labels_R = torch.from_numpy(dataset.labels_N[: len(reference.exact)])
    check_lossy_encoding(guard, spec, reference, labels_R, emit)
    return rows


def _complete(task: InferenceTask, infer: Infer, emit: Emit, should_stop: ShouldStop) -> int:
    """Infer what is missing of one cache; returns how many rows that was."""
    spec = task.spec
    writer = CacheWriter(task.folders.caches, spec)
    if writer.is_complete:
        return 0
    blocks = writer.pending_blocks()
    infer(task, blocks, emit, should_stop)
    writer.finish()
    return spec.rows_in(blocks)


def inference_batch(teacher: TeacherSpec, dataset: Dataset, block_rows: int, recipe: Augmentation) -> int:
    """Pictures per call of the teacher: 256 up to 128 x 128 pixels, fewer of larger ones, as memory grows with both.

    A power of two, as ``block_rows`` is: every block but a view's last is made of whole batches.
    """
    fitting = batch_rows(BATCH, teacher.preprocessing, dataset, recipe)
    return min(1 << (fitting.bit_length() - 1), block_rows)


def _verify(folders: Folders, spec: CacheSpec) -> None:
    """Read every checksum and statistic once per job: the runs map the files and look at neither again.

    Raises:
        store.CacheCorrupt: naming what is wrong first.
    """
    catalog = Catalog(folders.caches)
    report = catalog.verify(spec.key)
    if not report.ok:
        raise CacheCorrupt(
            f"{report.problems[0]} ({len(report.problems)} in all): `retort cache delete {spec.key[:12]}` and "
            "submit the job again"
        )
    catalog.touch(spec.key)


def teacher_accuracy(plan: CachePlan, folders: Folders) -> TeacherAccuracy:
    """Top-1 accuracy of the cached logits of the whole test split and of all training views, without a teacher."""
    return TeacherAccuracy(
        test=_cached_accuracy(plan.test_cache, folders), views=_cached_accuracy(plan.train_cache, folders)
    )


def _cached_accuracy(spec: CacheSpec, folders: Folders) -> float:
    """Over all views of a cache, as its readers get the logits; ``_verify`` has checked the bytes."""
    labels_N = np.asarray(prepared.open_prepared(folders.datasets, spec.dataset_fingerprint).labels_N)
    step, hits = max(1, _ACCURACY_CELLS // spec.classes), 0
    with CacheReader(folders.caches, spec) as reader:
        for view in range(spec.views):
            rows = reader.row_map(view, np.arange(spec.samples))
            for start in range(0, spec.samples, step):
                stop = min(start + step, spec.samples)
                # NumPy's argmax of float16 takes three times as long.
                predicted = rows.gather(start, stop).astype(np.float32, copy=False).argmax(axis=1)
                hits += int((predicted == labels_N[start:stop]).sum())
    return hits / (spec.views * spec.samples)


def forwards_needed(job: JobSpec, plan: CachePlan) -> int:
    """Teacher forward passes that a live teacher would need for all runs of a job.

    It is run on every training picture of every epoch of every run that distils (on two views of it, if the method
    compares two), and once per run on the test split (its agreement). Plain cross-entropy needs none and counts none.
    """
    distilling = [method for method in (run.method.expand() for run in job.runs()) if method.needs_teacher]
    passes = sum(job.training.epochs * method.views * plan.train_cache.samples for method in distilling)
    return passes + len(distilling) * plan.test_cache.samples
