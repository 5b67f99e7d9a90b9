"""Caches of one job on the cluster: an actor plans them, its pool fans the blocks out, inference actors infer them.

``teacher.build_caches`` says which blocks are missing. Whatever inference actor dies, its blocks go back to the queue.
All of them end with their engine, or when another one leads; the blocks that were committed are there.
"""

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from workers.cluster import ray_api
from workers.cluster.actors import Actor
from workers.cluster.block_queue import BlockQueue
from workers.cluster.inference_workers import InferenceWorker, InferenceWorkers
from workers.cluster.outcomes import Share, TaskOutcome, WorkFailed, outcome_of
from workers.cluster.pool_events import PoolProgress, WaitingLog
from workers.config.task import CachesTask, InferenceTask
from workers.errors import Stopped
from workers.events import Emit, Log, ShouldStop, Stage

if TYPE_CHECKING:
    from workers.teacher.sessions import Device
    from workers.teacher.teacher import Teacher

# Blocks of one call: enough to overlap loading, inference and writing, few enough to share work evenly.
_BLOCKS_PER_CALL = 4


class CachesActor(Actor):
    """Actor that prepares the data and completes the caches of one job; its inference is fanned out."""

    def __init__(self) -> None:
        super().__init__()
        self._pool: InferencePool | None = None

    def _held(self) -> list[Share]:
        pool = self._pool
        return [] if pool is None else pool.workers.shares()

    def work(self, task_json: str, cpus: int, actors: int) -> None:
        """Complete the caches of a job; ``answer`` returns the outcome.

        Args:
            task_json: a ``CachesTask``.
            cpus: cores of this machine.
            actors: that infer, at most; one per GPU, or per core.
        """
        self._slots[0].outcome = outcome_of(
            lambda: self._build(CachesTask.model_validate_json(task_json), cpus, actors)
        )

    def _build(self, task: CachesTask, cpus: int, actors: int) -> dict[str, Any]:
        from workers.teacher.accuracy import measure_teacher
        from workers.teacher.build_caches import missing_blocks, reserve_caches
        from workers.teacher.forwards import forwards_needed
        from workers.teacher.plan_caches import plan_caches

        job, folders = task.job, task.folders
        slot = self._slots[0]
        emit, should_stop = partial(self._emit, slot), slot.stopping.is_set
        # The preflight is some hundred rows, here, on the CPU: Ray shows no GPU to an actor without a share.
        # So no device but an explicit CPU need be named; the pool names that of its actors.
        device: Device = "cpu" if job.training.device == "cpu" else "auto"
        plan = plan_caches(job, folders, emit, should_stop, threads=cpus, device=device, forwards_in=task.forwards)
        # Kept for as long as this process lives, so that the engine can hold the caches before it ends.
        self._reservation = reserve_caches(plan, folders, task.quota_bytes, emit)
        forwards = plan.contract_forwards
        self._pool = InferencePool(actors, task.gpu_share, cpus=cpus, confine_on_gpu=task.confine_on_gpu)
        with (
            contextlib.closing(self._pool.workers),
            contextlib.closing(
                missing_blocks(plan, folders, emit, should_stop, threads=1, device=device, forwards_in=task.forwards)
            ) as found,
        ):
            for missing in found:
                self._pool.infer(missing.task, missing.blocks, emit, should_stop)
                forwards += missing.rows
        teacher = measure_teacher(plan, folders)
        plan = plan.model_copy(update={"accuracy": teacher.accuracy})
        emit(Stage(stage="training"))
        return {
            "plan": plan.model_dump(mode="json"),
            "teacher_metrics": teacher.metrics,
            "teacher_forwards": forwards,
            "teacher_forwards_needed": forwards_needed(job, plan),
        }


class InferencePool:
    """Inference actors of one job: they share its blocks, cache after cache; a dead one's go back to the queue.

    Args:
        actors: at most; one per GPU, or per core.
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
        count = max(1, min(self._actors, len(blocks)))
        text = self._on_its_device(task, count).model_dump_json()
        queue = BlockQueue(blocks, max(1, min(_BLOCKS_PER_CALL, len(blocks) // count)))
        progress, waiting, workers = PoolProgress(task, emit), WaitingLog(self._gpu_share, emit), self.workers
        try:
            with workers.in_use(count):
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
                    for reference in ready:
                        if reference in busy:
                            self._finish(busy[reference], queue, emit)
                    progress.report()
                    if should_stop():
                        raise Stopped("inference was stopped; committed blocks are kept")
        except BaseException:
            # Some are in the middle of a call that nobody waits for any more.
            workers.close()
            raise
        finally:
            progress.report(now=True)

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

    def _finish(self, worker: InferenceWorker, queue: BlockQueue, emit: Emit) -> None:
        """Take the outcome of a call; a dead actor is replaced."""
        try:
            outcome = ray_api.get(worker.reference)
        except ray_api.RayError as error:
            death = worker.watch.death(error)
            self.workers.replace_later(worker, death, emit)
            queue.give_back(worker.blocks, death)
            return
        self.workers.note_alive()
        worker.free()
        if outcome.kind == "stopped":
            raise Stopped(outcome.message)
        if outcome.kind in {"failed", "vanished"}:
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

    def work(self, task_json: str, blocks: list[int]) -> TaskOutcome:
        """Infer and commit these blocks.

        Args:
            task_json: an ``InferenceTask``.
            blocks: numbers of blocks that are missing in its cache.

        Returns:
            The outcome, whose value holds ``provider``, ``reason`` and ``warnings``.
        """
        return outcome_of(lambda: self._infer(InferenceTask.model_validate_json(task_json), blocks))

    def _infer(self, task: InferenceTask, blocks: list[int]) -> dict[str, Any]:
        from workers.teacher.inference import infer_with, open_teacher

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
