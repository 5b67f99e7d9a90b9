"""Inference of blocks of a cache, from pictures to committed logits, in threads that do not wait for one another.

``infer_with`` is the one way from missing blocks to committed ones, whoever asks for it: ``build_caches`` in one
process, or an inference actor of the cluster.

Three things happen at once: loading threads draw the next batches' views and preprocess them, the calling thread runs
the teacher, a writing thread computes the statistics of the last block and commits it. ONNX Runtime, torch's kernels
and file writes leave the interpreter free, so threads are enough.

A block is a pure function of the cache's specification and the two files behind it, so it does not matter who infers
it, how often, or after which crash: a call takes the numbers of the blocks it is to do, and what was committed stays
whatever happens to the rest. What it does not do: choose blocks, finish the cache, retry.

Legend: B rows of a batch, R rows of a block, N classes.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from store import CacheSpec, CacheWriter
from store.documents import BlockRecord
from workers.config.cached_augmentation import read_recipe
from workers.config.task import Folders, InferenceTask
from workers.config.teacher import TeacherSpec
from workers.config.views import Augmentation
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.errors import Stopped
from workers.events import Emit, Log, ShouldStop, ignore, never, warn
from workers.teacher.cached_views import CachedViews
from workers.teacher.forwards import ForwardCounter
from workers.teacher.inference_counter import InferenceCounter
from workers.teacher.preflight.rows import BATCH, batch_rows
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher
from workers.unlabelled import labels_to_store

AHEAD = 2  # batches that may be loaded and not yet inferred, beside those that are being loaded
BLOCKS_AHEAD = 2  # blocks that may be inferred and not yet committed


def infer_here(task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
    """Open the teacher of a task, infer and commit blocks of its cache, and log where it ran.

    Raises:
        Stopped, store.StoreError, WorkerError: as of ``open_teacher`` and ``infer_with``.
    """
    teacher = open_teacher(task)
    emit(Log(message=f"inference on {teacher.provider}: {teacher.provider_reason}"))
    warn(teacher.warnings, emit)
    infer_with(teacher, task, blocks, emit=emit, should_stop=should_stop)


def open_teacher(task: InferenceTask) -> Teacher:
    """Open the session that a task asks for.

    Raises:
        DeviceUnavailable: the task promises a GPU, and none works or it computes something else than the CPU.
        InvalidTeacher, InvalidDataset, OutOfMemory.
    """
    return Teacher(
        task.teacher.path,
        task.teacher.preprocessing,
        task.teacher.output,
        reading=task.teacher,
        threads=task.threads,
        device=task.device,
        memory_fraction=task.memory_fraction,
        output_kind=task.spec.output_kind,
        columns=task.spec.columns,
        dataset=open_prepared(task.folders.datasets, task.spec.dataset_fingerprint),
        on_forward=None if task.forwards is None else ForwardCounter(task.forwards).add,
        sessions=task.sessions,
        confine_on_gpu=task.confine_on_gpu,
    )


def infer_with(
    teacher: Teacher, task: InferenceTask, blocks: Sequence[int], *, emit: Emit, should_stop: ShouldStop
) -> None:
    """Infer and commit blocks of one cache with a session that is open already.

    Raises:
        Stopped, store.StoreError, WorkerError: as of ``infer_blocks``; committed blocks stay.
    """
    infer_blocks(
        teacher,
        open_prepared(task.folders.datasets, task.spec.dataset_fingerprint),
        CacheWriter(task.folders.caches, task.spec),
        blocks,
        emit=emit,
        should_stop=should_stop,
        batch_size=task.batch_size,
        load_threads=task.load_threads,
    )


def task_of(
    spec: CacheSpec,
    teacher: TeacherSpec,
    *,
    folders: Folders,
    threads: int,
    device: Device,
    forwards: Path | None,
) -> InferenceTask:
    """Task of inferring blocks of one cache, with a batch that suits the teacher and the data."""
    dataset = open_prepared(folders.datasets, spec.dataset_fingerprint)
    batch = inference_batch(teacher, dataset, spec.block_rows, read_recipe(spec.augmentation))
    return InferenceTask(
        folders=folders,
        teacher=teacher,
        spec=spec,
        threads=threads,
        device=device,
        batch_size=batch,
        forwards=forwards,
    )


def inference_batch(teacher: TeacherSpec, dataset: Dataset, block_rows: int, recipe: Augmentation) -> int:
    """Pictures per call of the teacher: 256 up to 128 x 128 pixels, fewer of larger ones, as memory grows with both.

    A power of two, as ``block_rows`` is: every block but a view's last is made of whole batches.
    """
    fitting = batch_rows(BATCH, teacher.preprocessing, dataset, recipe)
    return min(1 << (fitting.bit_length() - 1), block_rows)


class _Batch(NamedTuple):
    """Samples ``start`` to ``stop`` (exclusive) of a view, within a block that begins at ``block_start``."""

    block: int
    view: int
    start: int
    stop: int
    block_start: int
    block_stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == self.block_stop


def infer_blocks(
    teacher: Teacher,
    dataset: Dataset,
    writer: CacheWriter,
    blocks: Iterable[int],
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    batch_size: int = 256,
    load_threads: int = 1,
) -> int:
    """Infer and commit ``blocks`` of the cache that ``writer`` holds; returns the rows that went through the teacher.

    Events are emitted from the calling thread: progress at most four times a second and once at the end, and a warning
    where the memory is too small for the batch.

    Args:
        teacher: made with the output kind that the cache's specification names.
        dataset: the split that the specification names.
        blocks: numbers below ``writer.spec.blocks``, usually some of ``writer.pending_blocks()``.
        should_stop: asked before every batch.
        batch_size: pictures per call of the teacher, best a power of two. Another one changes logits in their last
            bits only. A teacher with a fixed number takes as many whole ones as fit.
        load_threads: that draw views and preprocess; nothing kept depends on how many.

    Raises:
        Stopped: ``should_stop`` said so; blocks that were inferred whole are committed.
        store.DiskFull: no room; committed blocks stay, the call can be repeated when there is some.
        store.StoreError, WorkerError: as the teacher and the writer raise them.
    """
    _check_output(teacher, writer)
    if teacher.batch is not None:
        batch_size = teacher.batch * max(1, batch_size // teacher.batch)
    wanted = list(blocks)
    progress = InferenceCounter(writer, wanted, emit)
    with (
        ThreadPoolExecutor(1, "retort-commit") as committer,
        _loading_threads(load_threads) as loader,
    ):
        commits: deque[Future[BlockRecord]] = deque()
        views = CachedViews.of(writer.spec, dataset)
        load = functools.partial(_load, teacher, dataset, views)
        batches = _batches(writer, wanted, batch_size)
        for batch, input_ in _loaded(loader, AHEAD + load_threads, load, batches):
            if should_stop():
                raise Stopped(f"inference stopped after {progress.inferred} rows of this call")
            if batch.start == batch.block_start:
                logits_RN = np.empty((batch.block_stop - batch.block_start, writer.spec.classes), dtype=np.float32)
            rows = slice(batch.start - batch.block_start, batch.stop - batch.block_start)
            logits_RN[rows] = _infer(teacher, input_, batch_size, emit)
            progress.inferred += batch.stop - batch.start
            if batch.is_last:
                index_R = np.arange(batch.block_start, batch.block_stop)
                labels_R = labels_to_store(views.heavier_labels(dataset, batch.view, index_R), logits_RN)
                commit = functools.partial(writer.write_block, origin=teacher.provenance)
                commits.append(committer.submit(commit, batch.block, logits_RN, labels_R))
            while commits and (commits[0].done() or len(commits) > BLOCKS_AHEAD):
                progress.committed += commits.popleft().result().rows
            progress.report()
        for committed in commits:
            progress.committed += committed.result().rows
        progress.report(at_end=True)
    return progress.inferred


def _check_output(teacher: Teacher, writer: CacheWriter) -> None:
    """Raise ValueError if the teacher gives other outputs than the cache holds."""
    if teacher.output_kind != writer.spec.output_kind:
        raise ValueError(f"the cache holds {writer.spec.output_kind}, the teacher was made for {teacher.output_kind}")
    if teacher.columns != writer.spec.columns:
        raise ValueError(f"the cache holds columns {writer.spec.columns}, the teacher was made for {teacher.columns}")


@contextmanager
def _loading_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``count`` threads; several compute with one core each, a single one with all that torch uses.

    Whatever ends its use: what is begun is finished, what is not is dropped, and no thread is left.
    """
    # What is set in one thread holds for that one, and for every thread of the process that is begun later.
    threads = torch.get_num_threads()
    loader = ThreadPoolExecutor(count, "retort-load", (lambda: torch.set_num_threads(1)) if count > 1 else None)
    try:
        yield loader
    finally:
        loader.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _batches(writer: CacheWriter, blocks: Iterable[int], batch_size: int) -> Iterator[_Batch]:
    for block in blocks:
        view, block_start, block_stop = writer.spec.block_range(block)
        for start in range(block_start, block_stop, batch_size):
            yield _Batch(
                block=block,
                view=view,
                start=start,
                stop=min(start + batch_size, block_stop),
                block_start=block_start,
                block_stop=block_stop,
            )


def _loaded(
    loader: ThreadPoolExecutor,
    depth: int,
    load: Callable[[_Batch], NDArray[np.number]],
    batches: Iterator[_Batch],
) -> Iterator[tuple[_Batch, NDArray[np.number]]]:
    """Each batch with the teacher's input for it, at most ``depth`` of them loaded ahead, in order."""
    ahead: deque[tuple[_Batch, Future[NDArray[np.number]]]] = deque()
    for batch in batches:
        ahead.append((batch, loader.submit(load, batch)))
        if len(ahead) > depth:
            oldest, future = ahead.popleft()
            yield oldest, future.result()
    for oldest, future in ahead:
        yield oldest, future.result()


def _load(teacher: Teacher, dataset: Dataset, views: CachedViews, batch: _Batch) -> NDArray[np.number]:
    """The teacher's input for a batch."""
    rows = slice(batch.start, batch.stop)
    return teacher.preprocess_views(*views.take(dataset, batch.view, rows))


def _infer(teacher: Teacher, input_: NDArray[np.number], batch_size: int, emit: Emit) -> NDArray[np.float32]:
    """The logits of a batch; warns if it had to be taken in parts."""
    before = teacher.rows_max
    logits_BN = teacher.run(input_, batch_size)
    if teacher.rows_max != before:
        emit(
            Log(
                level="warning",
                message=f"the memory that the teacher has on {teacher.device} does not hold {before or batch_size} "
                f"pictures at once: it goes on with {teacher.rows_max}",
            )
        )
    return logits_BN
