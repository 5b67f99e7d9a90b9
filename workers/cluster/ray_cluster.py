"""Cluster: this machine's Ray, where runs are trained and exported and caches are completed, each as a ``Task``.

It decides nothing about jobs: it starts actors with their share of the CPUs or of a GPU, finds them by name, and ends
them. One run is one actor; runs that share their batches can share an actor, and a large student can have several. The
caches of a job are one coordinating actor with a pool of inference actors: it ends with its engine, or when another one
leads, and the blocks that were committed are there.

The engine imports this file, and has no use for torch, which takes 300 MiB and seconds to import: packages for actors
alone are imported where they begin their work.
"""

import contextlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from workers import logs
from workers.cluster import ray_api
from workers.cluster.actor_group import ActorGroup
from workers.cluster.actors import Actor, Task, TaskSlot
from workers.cluster.connection import RayConnection
from workers.cluster.inference_pool import InferencePool
from workers.cluster.outcomes import Share, outcome, with_outcome
from workers.config.task import CachesTask, TrainingTask
from workers.errors import WorkerError
from workers.events import Stage
from workers.garbage import collection_paused
from workers.logs import RunLog
from workers.run_files import ARTIFACTS

if TYPE_CHECKING:
    from workers.teacher.sessions import Device


def export_name(name: str, slot: int) -> str:
    """Name of the actor that exports a run, from the name of the one that has trained it and the run's slot there."""
    return f"{name}-x{slot}"


def _names(name: str, count: int) -> list[str]:
    """Names of the actors that train one student; the first has the name itself."""
    return [name] + [f"{name}-{rank}" for rank in range(1, count)]


class Cluster(RayConnection):
    """Work on this machine's Ray: caches are completed, and runs are trained, exported, found again and ended."""

    def build_caches(self, task: CachesTask) -> Task:
        """Prepare the data and complete the caches of a job, with one inference actor per GPU, or per core.

        The outcome's value holds ``plan`` (a ``CachePlan``, with the teacher's accuracy), ``teacher_forwards``
        of this process's own and ``teacher_forwards_needed`` by a live teacher. Until ``Task.close`` neither cache is
        evicted.
        """
        # The name is for end_others alone: an engine that was stopped leaves it behind.
        actor = ray_api.start(CachesActor, cpus=0.0, gpus=0.0, name=f"caches-{secrets.token_hex(8)}")
        actor.work.remote(task.model_dump_json(), self.cpus, self.gpus if task.gpu_share else self.cpus)
        actor_group = ActorGroup([actor], [0], gpu_share=task.gpu_share)
        # It reports the shares of its inference itself; until then there are none.
        actor_group.shares = []
        return Task(actor_group)

    def train(self, name: str, training_tasks: Sequence[TrainingTask], cpus: float, gpu_share: float) -> list[Task]:
        """Train runs that share their batches, in one process; it waits until its share of the machine is free.

        A run with several ``training.actors`` is alone and has that many processes, each with such a share, in a
        placement group.

        Args:
            name: by which ``attach`` finds it; never used before.
            training_tasks: see ``loop.train_group``.
            cpus: of each process.
            gpu_share: likewise, 0 for none; NCCL wants a whole GPU for each of several processes.

        Returns:
            A task for each run, whose value is result.json.
        """
        count = training_tasks[0].training.actors
        if count == 1:
            texts = [training_task.model_dump_json() for training_task in training_tasks]
            actor = ray_api.start(TrainingActor, texts, cpus=cpus, gpus=gpu_share, name=name, outlives=True)
            actor_group = ActorGroup([actor], range(len(training_tasks)), cpus, gpu_share)
            return [Task(actor_group, slot) for slot in range(len(training_tasks))]
        [training_task] = training_tasks
        return [self._train_in_processes(name, training_task, cpus, gpu_share)]

    @staticmethod
    def _train_in_processes(name: str, training_task: TrainingTask, cpus: float, gpu_share: float) -> Task:
        """Train one student in several processes, in a placement group."""
        count = training_task.training.actors
        places = ray_api.reserve_places(name, count, cpus, gpu_share)
        actors = []
        for rank, own_name in enumerate(_names(name, count)):
            place = ray_api.place_in(places, rank)
            texts = [training_task.model_copy(update={"rank": rank}).model_dump_json()]
            actors.append(
                ray_api.start(
                    TrainingActor, texts, cpus=cpus, gpus=gpu_share, name=own_name, outlives=True, place=place
                )
            )
        return Task(ActorGroup(actors, [0], cpus, gpu_share, places=places))

    def export(self, name: str, training_task: TrainingTask, first_event: int) -> Task:
        """Write the artifacts of a trained run in a process without a GPU; one that has this name already is it.

        It takes no share of the cores, which belong to runs: it begins at once, and how many there are at once is the
        caller's affair.

        Args:
            name: see ``export_name``.
            training_task: of stage ``export``, in the folder that the run was trained in.
            first_event: the number of its first event.
        """
        task = self.find_export(name, first_event)
        if task is not None:
            return task
        texts = [training_task.model_dump_json()]
        actor = ray_api.start(TrainingActor, texts, first_event, cpus=0.0, gpus=0.0, name=name, outlives=True)
        return self._exporting(actor, first_event)

    def find_export(self, name: str, acknowledged: int) -> Task | None:
        """Find the task of an export that was started before, by another process perhaps; None if it is gone.

        Args:
            acknowledged: the number of the first event that is not stored.
        """
        try:
            return self._exporting(ray_api.find(name), acknowledged)
        except ValueError:
            return None

    @staticmethod
    def _exporting(actor: ray_api.Handle, acknowledged: int) -> Task:
        actor_group = ActorGroup([actor], [0])
        actor_group.exports = True
        return Task(actor_group, 0, acknowledged)

    def attach(
        self, name: str, count: int, acknowledged: Mapping[int, int], cpus: float = 0.0, gpu_share: float = 0.0
    ) -> dict[int, Task]:
        """Attach to a group of actors that was started before, by another process perhaps.

        Args:
            name: that ``train`` was given.
            count: how many processes one student has.
            acknowledged: for each slot that is still wanted, the number of the first event that is not stored.
            cpus, gpu_share: that each was started with.

        Returns:
            A task for each slot; none if one of the processes is gone.
        """
        try:
            actors = [ray_api.find(own_name) for own_name in _names(name, count)]
            places = ray_api.find_places(name) if count > 1 else None
        except ValueError:
            return {}
        actor_group = ActorGroup(actors, acknowledged, cpus, gpu_share, places=places)
        return {slot: Task(actor_group, slot, number, has_begun=True) for slot, number in acknowledged.items()}

    def end_others(self, names: Mapping[str, int]) -> int:
        """End all training but of these groups (name -> processes), and actors that build caches for another engine.

        Returns:
            How many actors were ended; those that inferred for one of them end with it.
        """
        wanted = {own_name for name, count in names.items() for own_name in _names(name, count)}
        others = [name for name in ray_api.actor_names() if name not in wanted]
        for name in others:
            # It may end by itself in between.
            with contextlib.suppress(ValueError):
                ray_api.end(ray_api.find(name))
        # Also the shares of groups whose actors are gone.
        ray_api.remove_other_places(frozenset(names))
        return len(others)


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
        self._slots[0].outcome = self._build(task_json, cpus, actors)

    @with_outcome
    def _build(self, task_json: str, cpus: int, actors: int) -> dict[str, Any]:
        with collection_paused():
            from workers.teacher.accuracy import measure_teacher
            from workers.teacher.build_caches import missing_blocks, reserve_caches
            from workers.teacher.forwards import forwards_needed
            from workers.teacher.plan_caches import plan_caches

        task = CachesTask.model_validate_json(task_json)
        job, folders, slot = task.job, task.folders, self._slots[0]
        emit, should_stop = partial(self._emit, slot), slot.stopping.is_set
        # The preflight is some hundred rows, here, on the CPU: Ray shows no GPU to an actor without a share.
        # So no device but an explicit CPU need be named; the pool names that of its actors.
        device: Device = "cpu" if job.training.device == "cpu" else "auto"
        plan = plan_caches(job, folders, emit, should_stop, threads=cpus, device=device, forwards_in=task.forwards)
        # Kept for as long as this process lives, so that the engine can hold the caches before it ends.
        self._reservation = reserve_caches(plan, folders, task.quota_bytes, emit)
        forwards = plan.contract_forwards
        self._pool = InferencePool(actors, task.gpu_share, cpus=cpus, confine_on_gpu=task.confine_on_gpu)
        found = missing_blocks(plan, folders, emit, should_stop, threads=1, device=device, forwards_in=task.forwards)
        with contextlib.closing(self._pool.workers), contextlib.closing(found):
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


class TrainingActor(Actor):
    """Actor that trains or exports runs from its start on: an engine that finds it by name need not start the work.

    Args:
        tasks_json: a ``TrainingTask`` for each slot; several share their batches.
        first_event: the number of the first event of each.
    """

    def __init__(self, tasks_json: list[str], first_event: int = 0) -> None:
        super().__init__(len(tasks_json), first_event)
        threading.Thread(target=self._work, args=(tasks_json,), name="training", daemon=True).start()

    def _work(self, tasks_json: list[str]) -> None:
        try:
            with collection_paused():
                from workers.training.loop import train_group
                from workers.training.run_handle import RunHandle

            tasks = [TrainingTask.model_validate_json(task) for task in tasks_json]
            # Of several processes of one student the first writes.
            run_logs = [RunLog(task.folder, task.folder / ARTIFACTS, task.rank == 0, task.stage) for task in tasks]
            for slot, log in zip(self._slots, run_logs, strict=True):
                slot.log = log
            logs.speak_for(run_logs)
            handles = [
                RunHandle(task, partial(self._emit, slot), slot.stopping.is_set, slot.pausing.is_set)
                for task, slot in zip(tasks, self._slots, strict=True)
            ]
            for number, how in train_group(handles):
                if tasks[number].stage == "train" and isinstance(how, dict):
                    # The export may be started by another engine, which has not made this task.
                    how = {**how, "order": tasks_json[number]}
                self._end(self._slots[number], how)
        except BaseException as error:
            # BaseException, for a run without an outcome would never end.
            why = error if isinstance(error, Exception) else WorkerError(f"its process cannot go on: {error!r}")
            for slot in self._slots:
                if slot.outcome is None:
                    self._end(slot, why)

    def _end(self, slot: TaskSlot, how: dict[str, Any] | Exception) -> None:
        # The log first: once the outcome is there, this process may be ended.
        with contextlib.nullcontext() if slot.log is None else slot.log.ending(how):
            ended = outcome(how)
        slot.outcome = ended
