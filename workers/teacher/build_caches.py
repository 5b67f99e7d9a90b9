"""Complete caches of a plan: reserve them, yield the blocks that are missing, verify what was committed.

``missing_blocks`` yields; whoever drives it infers and commits each with ``inference.infer_with`` before it asks
for more: ``build_caches`` in this process, ``cluster.ray_cluster`` with a pool of actors. Nothing here calls back.

Of a lossy cache the first block comes first, and ``encoding_check`` judges by it whether the rest is worth the
teacher's time. A complete cache costs a verification, and no teacher is opened for it.
"""

import functools
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from store import CacheCorrupt, CacheIncomplete, CacheSpec, CacheWriter, Catalog, Reservation, read_reference
from workers.config.combination import Combination
from workers.config.task import Folders, InferenceTask
from workers.config.teacher import TeacherSpec
from workers.data.preparation import prepared
from workers.events import CacheReady, Emit, InferenceProgress, Log, ShouldStop, Stage
from workers.files import alone
from workers.teacher.cache_plan import CacheBuild, CachePlan, EncodingCheck
from workers.teacher.cached_views import CachedViews
from workers.teacher.combine import combine_blocks
from workers.teacher.encoding_check import check_lossy_encoding
from workers.teacher.inference import infer_here, task_of
from workers.teacher.sessions import Device


class MissingBlocks(NamedTuple):
    """Blocks of one cache that are to be inferred and committed.

    Attributes:
        task: how, and of which cache.
        blocks: their numbers, ascending.
    """

    task: InferenceTask
    blocks: Sequence[int]

    @property
    def rows(self) -> int:
        """Rows that go through the teacher."""
        return self.task.spec.rows_in(self.blocks)


def reserve_caches(plan: CachePlan, folders: Folders, quota_bytes: int, emit: Emit) -> Reservation:
    """Hold the caches until the reservation is released or this process ends.

    Args:
        quota_bytes: for all caches together; others are evicted, the least recently used first. 0 is no quota.

    Raises:
        store.QuotaExceeded, store.StoreError.
    """
    # Without a provenance: where its blocks are inferred is not known yet, ``infer_blocks`` adds it.
    reservation = Catalog(folders.caches).reserve(plan.caches, quota_bytes)
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
    forwards_in: Path | None = None,
) -> int:
    """Complete the caches in this process.

    Args:
        forwards_in: see ``InferenceTask.forwards``.

    Returns:
        How many rows went through the teacher, the preflight's included.

    Raises:
        Stopped, store.StoreError, WorkerError: as of ``missing_blocks`` and ``inference.infer_here``.
    """
    forwards = plan.contract_forwards
    with closing(
        missing_blocks(plan, folders, emit, should_stop, threads=threads, device=device, forwards_in=forwards_in)
    ) as found:
        for missing in found:
            infer_here(missing.task, missing.blocks, emit, should_stop)
            forwards += missing.rows
    return forwards


def missing_blocks(
    plan: CachePlan,
    folders: Folders,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    threads: int,
    device: Device = "auto",
    forwards_in: Path | None = None,
) -> Generator[MissingBlocks, None, None]:
    """Yield what the caches miss, those of the measured splits first (they are small and show mistakes early).

    Before them comes one block of a lossy training split, and the check of its encoding. A cache is finished and
    verified when its blocks were committed and more is asked for. Until then no other job infers it: whoever does not
    drive this to its end closes it.

    Args:
        threads, device: of the tasks that are yielded.
        forwards_in: see ``InferenceTask.forwards``.

    Raises:
        Stopped: ``should_stop`` said so while another job inferred the same cache.
        store.StoreError: blocks are missing or wrong; committed ones stay and are not inferred again.
        LossyCache: a method would learn something else from the training split's cache, see ``encoding_check``.
    """
    emit(Stage(stage="inference"))
    task = functools.partial(task_of, folders=folders, threads=threads, device=device, forwards=forwards_in)
    judged_rows = 0
    if plan.guard is not None and not plan.members:
        if plan.teacher.caches:
            _judge(plan.train_cache, plan.guard, folders, emit)
        else:
            judged_rows = yield from _first_block(task(plan.train_cache, plan.teacher), plan.guard, emit, should_stop)
    for build in plan.builds:
        if build.members:
            yield from _combine(plan, build, task, folders, emit=emit, should_stop=should_stop)
            continue
        judged = judged_rows if build.spec == plan.train_cache else 0
        yield from _complete_own(build, task, folders, emit=emit, should_stop=should_stop, judged_rows=judged)


def _complete_own(
    build: CacheBuild,
    task: Callable[[CacheSpec, TeacherSpec], InferenceTask],
    folders: Folders,
    *,
    emit: Emit,
    should_stop: ShouldStop,
    judged_rows: int = 0,
) -> Generator[MissingBlocks, None, None]:
    """Yield what a teacher's cache misses, or verify an imported one."""
    if build.teacher is None:
        _take_imported(build.spec, folders, emit)
    else:
        yield from _complete(task(build.spec, build.teacher), emit, should_stop, judged_rows=judged_rows)


def _complete(
    task: InferenceTask, emit: Emit, should_stop: ShouldStop, *, judged_rows: int = 0
) -> Generator[MissingBlocks, None, None]:
    """Yield what a teacher's cache misses, and verify it; ``judged_rows`` were inferred now, before."""
    started, rows = time.monotonic(), judged_rows
    spec, folders = task.spec, task.folders
    with _in_turn(folders, spec, should_stop):
        writer = CacheWriter(folders.caches, spec)
        if not writer.is_complete:
            missing = MissingBlocks(task, writer.pending_blocks())
            yield missing
            writer.finish()
            rows += missing.rows
    _verify(folders, spec)
    _emit_ready(spec, rows, time.monotonic() - started, emit)


def _combine(
    plan: CachePlan,
    build: CacheBuild,
    task: Callable[[CacheSpec, TeacherSpec], InferenceTask],
    folders: Folders,
    *,
    emit: Emit,
    should_stop: ShouldStop,
) -> Generator[MissingBlocks, None, None]:
    """Complete a combined cache: yield what its members miss, then combine their rows here.

    Of a cache that is complete the members are not asked for: they may have been evicted since. A lossy one is judged
    by its first block, which comes of all rows of its members: those stay, for another encoding.
    """
    spec, started = build.spec, time.monotonic()
    if not CacheWriter(folders.caches, spec).is_complete:
        for member in build.members:
            yield from _complete_own(member, task, folders, emit=emit, should_stop=should_stop)
    with _in_turn(folders, spec, should_stop):
        writer = CacheWriter(folders.caches, spec)
        combine = functools.partial(
            combine_blocks,
            writer,
            members=[member.spec for member in build.members],
            weights=[member.weight for member in plan.members],
            combination=plan.combine or Combination(),
            folders=folders,
            should_stop=should_stop,
        )
        if not writer.is_complete:
            if plan.guard is not None and spec == plan.train_cache:
                combine([0])
                _judge(spec, plan.guard, folders, emit)
            combine(writer.pending_blocks())
            writer.finish()
    _verify(folders, spec)
    _emit_ready(spec, 0, time.monotonic() - started, emit)


def _take_imported(spec: CacheSpec, folders: Folders, emit: Emit) -> None:
    """Verify an imported cache, which nothing here can complete. Raises CacheIncomplete; CacheCorrupt."""
    if not CacheWriter(folders.caches, spec).is_complete:
        raise CacheIncomplete(f"cache {spec.key[:12]} has lost logits that were imported: import them again")
    _verify(folders, spec)
    _emit_ready(spec, 0, 0.0, emit)


def _emit_ready(spec: CacheSpec, rows_inferred: int, seconds: float, emit: Emit) -> None:
    """Emit the last progress of a cache, and that it is complete."""
    rows_total = spec.views * spec.samples
    emit(
        InferenceProgress(
            cache=spec.key,
            split=spec.split,
            rows_done=rows_total,
            rows_total=rows_total,
            rows_inferred=rows_inferred,
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
            rows_inferred=rows_inferred,
            seconds=seconds,
        )
    )


def _in_turn(folders: Folders, spec: CacheSpec, should_stop: ShouldStop) -> AbstractContextManager[None]:
    """Lock a cache: a second job that wants it waits here, and then finds it complete."""
    locks = folders.data_dir / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return alone(locks / spec.key, should_stop, "infers the same cache")


def _first_block(
    task: InferenceTask, check: EncodingCheck, emit: Emit, should_stop: ShouldStop
) -> Generator[MissingBlocks, None, int]:
    """Yield the first block of a lossy cache if it is missing, and judge the cache by it; returns rows yielded."""
    spec, folders = task.spec, task.folders
    rows = 0
    with _in_turn(folders, spec, should_stop):
        writer = CacheWriter(folders.caches, spec)
        if 0 in writer.pending_blocks():
            missing = MissingBlocks(task, [0])
            yield missing
            rows = missing.rows
    _judge(spec, check, folders, emit)
    return rows


def _judge(spec: CacheSpec, check: EncodingCheck, folders: Folders, emit: Emit) -> None:
    """Judge a lossy cache by its first block, which is there. Raises LossyCache."""
    reference = read_reference(folders.caches, spec)
    dataset = prepared.open_prepared(folders.datasets, spec.dataset_fingerprint)
    labels_R = torch.from_numpy(
        CachedViews.of(spec, dataset).heavier_labels(dataset, 0, np.arange(len(reference.exact)))
    )
    check_lossy_encoding(check, spec, reference, labels_R, emit=emit)


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
