"""Training tasks: one for each run of a job, and which runs share a process.

Light: the engine makes them, and loads no torch.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from workers.config.job import JobSpec, RunSpec
from workers.config.task import CHECKPOINT_S, Folders, Origin, TeacherIdentity, TrainingTask
from workers.teacher.cache_plan import CachePlan


class HasIndex(Protocol):
    """Anything that stands for a run, by its place in the job's plan."""

    @property
    def index(self) -> int: ...


AnyRun = TypeVar("AnyRun", bound=HasIndex)


def task_of_run(
    job: JobSpec,
    plan: CachePlan,
    run: RunSpec,
    folders: Folders,
    folder: Path,
    *,
    threads: int,
    earlier: tuple[Path, ...] = (),
    told_epoch: int = 0,
    gpu_share: float = 0.0,
    checkpoint_s: float = CHECKPOINT_S,
    stage: Literal["all", "train", "export"] = "all",
) -> TrainingTask:
    """The task of one run of a job, to be trained in ``folder``.

    Args:
        gpu_share: of a GPU and its memory that a scheduler gives to each process; 0 leaves the device to the process.
    """
    return TrainingTask(
        folders=folders,
        run=run,
        training=job.training.of_student(run.student.name),
        views=job.views_of(run),
        train_fingerprint=plan.train_cache.dataset_fingerprint,
        test_fingerprint=None if plan.test_cache is None else plan.test_cache.dataset_fingerprint,
        validation_fingerprint=None if plan.validation_cache is None else plan.validation_cache.dataset_fingerprint,
        train_cache=plan.train_cache,
        test_cache=plan.test_cache,
        validation_cache=plan.validation_cache,
        teacher_accuracy=plan.accuracy,
        folder=folder,
        earlier=earlier,
        told_epoch=told_epoch,
        threads=threads,
        has_gpu_share=gpu_share > 0.0,
        memory_fraction=gpu_share or 1.0,
        checkpoint_s=checkpoint_s,
        stage=stage,
        export=job.export,
        origin=Origin(
            job=job.of_run(run),
            teacher=TeacherIdentity(
                name=job.teacher_name,
                sha256=plan.train_cache.teacher_sha256,
                output=plan.teacher.output,
                preprocessing=plan.teacher.preprocessing,
                reading=plan.teacher.reading,
            ),
        ),
    )


def share_out(
    runs: Sequence[AnyRun],
    slots: int,
    largest_group: int,
    alone: Collection[int] = (),
    *,
    batches_of: Callable[[AnyRun], Hashable],
) -> list[list[AnyRun]]:
    """Which of the waiting runs to start now, each list in one process.

    Runs that see the same batches can share a process. They do where there are more of them than slots, and then no
    more than it takes to start all of them.

    Args:
        runs: in the order in which they wait.
        slots: how many processes there is room for.
        largest_group: of runs in one process.
        alone: indices of runs that are not to share one.
        batches_of: equal for runs that see the same batches, see ``Plan.batches_of``.

    Returns:
        At most ``slots`` groups.
    """
    waiting, groups = list(runs), list[list[AnyRun]]()
    batches = {run.index: batches_of(run) for run in runs}
    while waiting and len(groups) < slots:
        first = waiting[0]
        size = 1 if first.index in alone else min(largest_group, -(-len(waiting) // (slots - len(groups))))
        alike = [run for run in waiting[1:] if batches[run.index] == batches[first.index] and run.index not in alone]
        groups.append([first, *alike[: size - 1]])
        taken = {run.index for run in groups[-1]}
        waiting = [run for run in waiting if run.index not in taken]
    return groups
