"""Inference pool of one job: the missing blocks of its caches are fanned out to inference actors, which infer them.

``teacher.build_caches`` says which blocks are missing. Whatever inference actor dies, its blocks go back to the queue.
All of them end with the actor that has the pool (``ray_cluster.CachesActor``).
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workers.cluster import ray_api
from workers.cluster.actors import Actor
from workers.cluster.block_queue import BlockQueue
from workers.cluster.inference_workers import InferenceWorkers
from workers.cluster.outcomes import TaskOutcome, WorkFailed, with_outcome
from workers.cluster.pool_events import PoolProgress, WaitingLog
from workers.config.task import InferenceTask
from workers.errors import Stopped
from workers.events import Emit, Log, ShouldStop
from workers.onnx.sessions.session_memory import sessions_max

if TYPE_CHECKING:
    from workers.teacher.teacher import Teacher

# Blocks of one call: enough to overlap loading, inference and writing, few enough to share work evenly.
_BLOCKS_PER_CALL = 4


class InferencePool:
    """Inference actors of one job: they share its blocks, cache after cache; a dead one's go back to the queue.

    Args:
        actors: at most; one per GPU, or per core. On the CPU there are fewer where the memory does not hold the
            teacher's weights so many times: those take the cores as threads.
        gpu_share: of a GPU for each, as a run takes; 0 is the CPU.
        cpus: cores of this machine, which the actors on GPUs share for loading.
        confine_on_gpu: see ``InferenceTask``.

    Attributes:
        workers: the actors; whoever has made the pool closes them.
    """

    def __init__(self, actors: int, gpu_share: float, cpus: int, confine_on_gpu: bool = True) -> None:
        self.workers = InferenceWorkers(InferenceActor, gpu_share, several=actors > 1)
        self._actors = actors
        self._confine_on_gpu = confine_on_gpu
        self._gpu_share = gpu_share
        self._load_threads = max(1, cpus // actors)
        self._reported: set[str] = set()

    def infer(self, task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
        """Infer and commit these blocks of one cache; see ``build_caches.missing_blocks``.

        Raises:
            Stopped, WorkFailed, WorkerLost: committed blocks stay.
        """
        count = self._count(task, len(blocks))
        text = self._on_its_device(task, count).model_dump_json()
        queue = BlockQueue(blocks, max(1, min(_BLOCKS_PER_CALL, len(blocks) // count)))
        progress, waiting, workers = PoolProgress(task, emit), WaitingLog(self._gpu_share, emit), self.workers
        with progress, workers.in_use(count):
            while True:
                workers.look_after()
                for worker in workers.all:
                    if worker.reference is None and queue and worker.is_started:
                        worker.watch_process()
                        worker.blocks = queue.take()
                        worker.reference = worker.actor.work.remote(text, worker.blocks)
                busy = {worker.reference: worker for worker in workers.all if worker.reference is not None}
                if not busy and not queue:
                    return
                if not busy and waiting.report():
                    workers.add_small()
                references = list(busy) or [worker.started for worker in workers.all]
                ready = ray_api.first_ready(references, timeout_s=0.25) if references else []
                if not references:
                    # All have died, and are started again in a while.
                    time.sleep(0.05)
                for worker in [busy[reference] for reference in ready if reference in busy]:
                    try:
                        outcome = ray_api.get(worker.reference)
                    except ray_api.RayError as error:
                        death = worker.watch.death(error)
                        workers.replace_later(worker, death, emit)
                        queue.give_back(worker.blocks, death)
                        continue
                    workers.note_alive()
                    worker.free()
                    self._check(outcome, emit)
                progress.report()
                if should_stop():
                    raise Stopped("inference was stopped; committed blocks are kept")

    def _count(self, task: InferenceTask, blocks: int) -> int:
        """Number of actors for so many blocks."""
        count = max(1, min(self._actors, blocks))
        return count if self._gpu_share else min(count, sessions_max(task.teacher.path))

    def _on_its_device(self, task: InferenceTask, count: int) -> InferenceTask:
        if self._gpu_share:
            changes = {
                "device": "cuda",
                "memory_fraction": self._gpu_share,
                "load_threads": self._load_threads,
                "sessions": count,
                "confine_on_gpu": self._confine_on_gpu,
            }
        else:
            # A small cache has fewer blocks than there are cores; then each actor gets several. Its memory is that of
            # one of as many as there are cores: the other cores may infer for other jobs.
            changes = {"threads": max(1, self._actors // count), "sessions": self._actors}
        return task.model_copy(update=changes)

    def _check(self, outcome: TaskOutcome, emit: Emit) -> None:
        """Raise what is wrong with an outcome; of one that is done, log once where it ran and what it warned of."""
        if outcome.kind == "stopped":
            raise Stopped(outcome.message)
        if outcome.value is None:
            raise WorkFailed(outcome)
        if not self._reported:
            emit(Log(message=f"inference on {outcome.value['provider']}: {outcome.value['reason']}"))
        # Every actor has the same warnings.
        for warning in dict.fromkeys(outcome.value["warnings"]):
            if warning not in self._reported:
                emit(Log(level="warning", message=warning))
        self._reported |= {outcome.value["provider"], *outcome.value["warnings"]}


class InferenceActor(Actor):
    """Actor that infers blocks of the caches of one job, with a session that is kept while it fits the task."""

    def __init__(self) -> None:
        super().__init__()
        self._teacher: Teacher | None = None
        self._opened_for = ""

    def gpu_ids(self) -> Sequence[int | str]:
        """The GPUs of this machine that it may use; none on a CPU."""
        return ray_api.own_gpus()

    @with_outcome
    def work(self, task_json: str, blocks: list[int]) -> dict[str, Any]:
        """Infer and commit these blocks.

        Args:
            task_json: an ``InferenceTask``.
            blocks: numbers of blocks that are missing in its cache.

        Returns:
            ``provider``, ``reason`` and ``warnings``.
        """
        from workers.teacher.inference import infer_with, open_teacher

        task = InferenceTask.model_validate_json(task_json)
        # Both splits of a job have one teacher on one device: its session does not depend on whose blocks it infers.
        read_as = f"{task.spec.output_kind} of {task.spec.columns}"
        opened_for = task.model_dump_json(exclude={"folders", "spec"}) + read_as
        if self._teacher is None or opened_for != self._opened_for:
            # The first session's memory is given back before the second one takes its own.
            self._teacher = None
            self._teacher, self._opened_for = open_teacher(task), opened_for
        warnings = [*self._teacher.warnings]

        def keep_warnings(event: object) -> None:
            # The coordinator reports progress, for all actors together.
            if isinstance(event, Log) and event.level == "warning":
                warnings.append(event.message)

        infer_with(self._teacher, task, blocks, emit=keep_warnings, should_stop=self._slots[0].stopping.is_set)
        return {"provider": self._teacher.provider, "reason": self._teacher.provider_reason, "warnings": warnings}
