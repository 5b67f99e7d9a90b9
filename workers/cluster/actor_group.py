"""Group of actors behind one task or, where runs share their batches, behind several; and what it holds."""

import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

from workers.cluster import ray_api
from workers.cluster.deaths import Death, ProcessId, Watch
from workers.cluster.memory import oom_kills
from workers.cluster.outcomes import Share, TaskOutcome
from workers.errors import first_line

# Where one process of a student has failed, the first gets so long to say so itself, with its log in order.
_PEER_GRACE_S = 5.0


class ActorGroup:
    """The actors behind one task or, where runs share their batches, behind several; ended with the last of these.

    Args:
        actors: of several processes of one student the first emits the events, and passes a request to pause on.
        slots: the tasks that they do at once.
        cpus: cores that each has, as it was started.
        gpu_share: of a GPU, likewise; 0 without one.
        places: the placement group of several processes, removed with them.

    Attributes:
        processes: how many actors there are.
        first, others: the actors.
        tasks: how many tasks they were given.
        shares: what its processes hold, or have asked for; those of a cache say so themselves.
        exports: whether they only write artifacts, beside what has a share of the machine.
    """

    exports = False

    def __init__(
        self,
        actors: Sequence[ray_api.Handle],
        slots: Collection[int],
        cpus: float = 0.0,
        gpu_share: float = 0.0,
        places: ray_api.PlacementGroup | None = None,
    ) -> None:
        self.processes, self.tasks = len(actors), len(slots)
        self.gpu_share = gpu_share
        self.shares = [Share(cpus=cpus, gpu=gpu_share)] * self.processes
        self.first, *self.others = actors
        self._places = places
        self._open = set(slots)
        self._watches = [Watch() for _ in actors]

    @property
    def open_tasks(self) -> int:
        """Number of its tasks that have not ended."""
        return len(self._open)

    def note(
        self,
        rank: int,
        held: list[Share] | str | None = None,
        process: ProcessId | None = None,
        *,
        kills: int = 0,
    ) -> None:
        """Note the share that an actor holds and its process, as it has answered.

        Args:
            kills: see ``deaths.Watch.alive``.
        """
        if isinstance(held, list):
            self.shares = held
        elif held is not None:
            self.shares[rank] = self.shares[rank].model_copy(update={"gpu_id": held})
        if process is not None:
            if not self._watches[rank].is_of(process):
                self._watches[rank] = Watch(process, kills)
            self._watches[rank].alive(kills)

    def vanished(self, rank: int, error: BaseException) -> TaskOutcome:
        """Outcome of a process that is gone by Ray's account."""
        return vanished(error, self._watches[rank].death(error))

    def kill(self) -> None:
        """End its processes, whatever they are doing."""
        for actor in (self.first, *self.others):
            ray_api.end(actor)

    def close(self, slot: int) -> None:
        """Close a task that is over or unwanted; the processes end with the last one."""
        self._open.discard(slot)
        if self._open:
            return
        self.kill()
        if self._places is not None:
            ray_api.remove_places(self._places)


class Peers:
    """Processes of one student beside its first: each is asked whether it lives and works.

    The first notices a lost one only if its communication does: NCCL waits for ten minutes.
    """

    def __init__(self, actor_group: ActorGroup) -> None:
        self._actor_group, self._actors = actor_group, actor_group.others
        self._asked: dict[int, Any] = {}
        self._kills: dict[int, int] = {}
        self._ended: tuple[float, TaskOutcome] | None = None

    def poll(self) -> TaskOutcome | None:
        """Outcome of the run if a process is gone, or has failed or stopped and the first one is silent since."""
        for rank, actor in enumerate(self._actors, start=1):
            try:
                if rank not in self._asked:
                    # Only the first one's events are stored: these are forgotten.
                    self._kills[rank] = oom_kills()
                    self._asked[rank] = actor.answer.remote(0, sys.maxsize)
                if not ray_api.is_ready(self._asked[rank]):
                    continue
                held: list[Any]
                _, outcome, *held = ray_api.get(self._asked.pop(rank))
                self._actor_group.note(rank, *held, kills=self._kills[rank])
            except ray_api.ActorUnavailableError:
                # It may come back; the first one's own patience decides.
                self._asked.pop(rank, None)
                continue
            except ray_api.RayError as error:
                gone = self._actor_group.vanished(rank, error)
                message = f"process {rank + 1} of the {len(self._actors) + 1} of this student is gone: {gone.message}"
                return gone.model_copy(update={"message": message})
            if outcome is not None and outcome.kind in {"failed", "vanished", "stopped"}:
                self._ended = self._ended or (time.monotonic(), outcome)
        if self._ended is not None and time.monotonic() - self._ended[0] > _PEER_GRACE_S:
            return self._ended[1]
        return None


def vanished(error: BaseException, death: Death | None = None) -> TaskOutcome:
    """Outcome of a process that is gone, or counts as gone; None takes the error's own words for its death."""
    death = death or Death(first_line(error))
    return TaskOutcome(
        kind="vanished",
        error_type=type(error).__name__,
        message=death.text,
        is_node_fault=death.is_node_fault,
    )
