"""Cluster: this machine's Ray, where runs are trained and exported and caches are completed, each as a ``Task``.

It decides nothing about jobs: it starts actors with their share of the CPUs or of a GPU, finds them by name, and ends
them. One run is one actor; runs that share their batches can share an actor, and a large student can have several. The
caches of a job are one coordinating actor with a pool of inference actors.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.cluster import ray_api
from workers.cluster.actor_group import ActorGroup
from workers.cluster.actors import Task, TrainingActor
from workers.cluster.caches_actor import CachesActor
from workers.cluster.head_folder import HeadFailed
from workers.cluster.ray_head import RayHead
from workers.config.task import CachesTask, TrainingTask


def export_name(name: str, slot: int) -> str:
    """Name of the actor that exports a run, from the name of the one that has trained it and the run's slot there."""
    return f"{name}-x{slot}"


def _names(name: str, count: int) -> list[str]:
    """Names of the actors that train one student; the first has the name itself."""
    return [name] + [f"{name}-{rank}" for rank in range(1, count)]


class Cluster:
    """This machine's Ray, found alive or started; it goes on without the caller until it is closed.

    Args:
        data_dir: whose jobs it works on; one head for each, see ``ray_head``.
        cpus: CPU cores to use; None takes all.
        gpus: GPUs to use; None takes all that Ray sees.

    Raises:
        HeadFailed: Ray does not start.
    """

    def __init__(self, data_dir: Path, cpus: float | None = None, gpus: int | None = None) -> None:
        whole = None if cpus is None else max(1, int(cpus))
        try:
            node = self._connect(data_dir, whole, gpus)
        except HeadFailed:
            raise
        except Exception:
            # One that was found may be dying; the second one is new.
            node = self._connect(data_dir, whole, gpus)
        self.cpus = int(node["Resources"].get("CPU", 1))
        self.gpus = int(node["Resources"].get("GPU", 0))

    def _connect(self, data_dir: Path, cpus: int | None, gpus: int | None) -> dict[str, Any]:
        """Find or start Ray and become its driver; returns its record of this machine. If that fails, it is ended."""
        self._head = RayHead(data_dir, cpus, gpus, os.environ.get("RAY_AUTH_TOKEN"))
        os.environ["RAY_AUTH_TOKEN"] = self._head.head.token
        try:
            return ray_api.connect(self._head.head.address)
        except Exception:
            self.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether Ray is there. If not, nothing here may be asked; a new cluster can be started."""
        return self._head.is_alive

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
        return [Task(ActorGroup(actors, [0], cpus, gpu_share, places=places))]

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

    def close(self) -> None:
        """End Ray with every process that it has started."""
        ray_api.disconnect()
        self._head.close()

    def leave(self) -> None:
        """Disconnect, without ending Ray: its actors go on, for the next engine."""
        ray_api.disconnect()
        self._head.leave()
