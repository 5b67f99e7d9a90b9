"""Inference tasks in this process: open the teacher that a task names, and infer and commit blocks of its cache.

``infer_with`` is the one way from missing blocks to committed ones, whoever asks for it: ``build_caches`` in one
process, or an inference actor of the cluster.
"""

from collections.abc import Sequence

from store import CacheWriter
from workers.config.task import InferenceTask
from workers.config.teacher import TeacherSpec
from workers.config.views import Augmentation
from workers.data import prepared
from workers.data.prepared import Dataset
from workers.events import Emit, Log, ShouldStop
from workers.teacher.forwards import ForwardCounter
from workers.teacher.inference import infer_blocks
from workers.teacher.preflight.rows import BATCH, batch_rows
from workers.teacher.teacher import Teacher


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
    teacher: Teacher, task: InferenceTask, blocks: Sequence[int], *, emit: Emit, should_stop: ShouldStop
) -> None:
    """Infer and commit blocks of one cache with a session that is open already.

    Raises:
        Stopped, store.StoreError, WorkerError: as of ``infer_blocks``; committed blocks stay.
    """
    infer_blocks(
        teacher,
        prepared.open_prepared(task.folders.datasets, task.spec.dataset_fingerprint),
        CacheWriter(task.folders.caches, task.spec),
        blocks,
        emit=emit,
        should_stop=should_stop,
        batch_size=task.batch_size,
        load_threads=task.load_threads,
    )


def infer_here(task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
    """Open the teacher of a task, infer and commit blocks of its cache, and log where it ran.

    Raises:
        Stopped, store.StoreError, WorkerError: as of ``open_teacher`` and ``infer_with``.
    """
    teacher = open_teacher(task)
    emit(Log(message=f"inference on {teacher.provider}: {teacher.provider_reason}"))
    for warning in teacher.warnings:
        emit(Log(level="warning", message=warning))
    infer_with(teacher, task, blocks, emit=emit, should_stop=should_stop)


def inference_batch(teacher: TeacherSpec, dataset: Dataset, block_rows: int, recipe: Augmentation) -> int:
    """Pictures per call of the teacher: 256 up to 128 x 128 pixels, fewer of larger ones, as memory grows with both.

    A power of two, as ``block_rows`` is: every block but a view's last is made of whole batches.
    """
    fitting = batch_rows(BATCH, teacher.preprocessing, dataset, recipe)
    return min(1 << (fitting.bit_length() - 1), block_rows)
