"""Actor that prepares the data and completes the caches of one job; a pool of inference actors runs what is missing.

It ends with its engine, or when another one leads; the blocks that its pool has committed are there.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.cluster.actors import Actor
from workers.cluster.inference_pool import InferencePool
from workers.cluster.outcomes import Share, outcome_of
from workers.config.job import JobSpec
from workers.config.task import Folders
from workers.events import Stage
from workers.spec import Spec

if TYPE_CHECKING:
    from workers.teacher.sessions import Device


class CachesTask(Spec):
    """Task: the caches of a job to complete, and the resources for it.

    Attributes:
        cpus: cores of this machine.
        actors: that infer, at most; one per GPU, or per core.
        gpu_share: of a GPU for each, see ``InferencePool``; 0 is the CPU.
        quota_bytes: see ``build_caches.reserve_caches``.
        forwards, confine_on_gpu: see ``InferenceTask``.
    """

    job: JobSpec
    folders: Folders
    cpus: int
    actors: int
    gpu_share: float = 0.0
    quota_bytes: int = 0
    forwards: Path | None = None
    confine_on_gpu: bool = True


class CachesActor(Actor):
    """Actor that prepares the data and completes the caches of one job; its inference is fanned out."""

    def __init__(self) -> None:
        super().__init__()
        self._pool: InferencePool | None = None

    def _held(self) -> list[Share]:
        pool = self._pool
        return [] if pool is None else pool.shares()

    def work(self, task_json: str) -> None:
        """Complete the caches of a ``CachesTask``; ``answer`` returns the outcome."""
        self._channels[0].outcome = outcome_of(lambda: self._build(CachesTask.model_validate_json(task_json)))

    def _build(self, task: CachesTask) -> dict[str, Any]:
        from workers.teacher.accuracy import measure_teacher
        from workers.teacher.build_caches import missing_blocks, reserve_caches
        from workers.teacher.forwards import forwards_needed
        from workers.teacher.plan_caches import plan_caches

        job, folders = task.job, task.folders
        emit, should_stop = self._channels[0].emit, self._channels[0].stopping.is_set
        # The preflight is some hundred rows, here, on the CPU: Ray shows no GPU to an actor without a share.
        # So no device but an explicit CPU need be named; the pool names that of its actors.
        device: Device = "cpu" if job.training.device == "cpu" else "auto"
        plan = plan_caches(job, folders, emit, should_stop, threads=task.cpus, device=device, forwards_in=task.forwards)
        # Kept for as long as this process lives, so that the engine can hold the caches before it ends.
        self._reservation = reserve_caches(plan, folders, task.quota_bytes, emit)
        forwards = plan.contract_forwards
        self._pool = InferencePool(task.actors, task.gpu_share, cpus=task.cpus, confine_on_gpu=task.confine_on_gpu)
        with (
            contextlib.closing(self._pool) as pool,
            contextlib.closing(
                missing_blocks(plan, folders, emit, should_stop, threads=1, device=device, forwards_in=task.forwards)
            ) as found,
        ):
            for missing in found:
                pool.infer(missing.task, missing.blocks, emit, should_stop)
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
