"""Work on the cluster, from outside and inside: a ``Task`` polls, and an ``Actor`` answers with events and the outcome.

An actor works in one of its threads, and answers in another: events, outcome, what it holds, requests to stop. It may
die at any moment; then its task has vanished, and what it had committed or saved is there. Training actors have names
and belong to nobody: when the engine is killed they go on, and its successor finds them by name. Events since are kept
until they are acknowledged.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from workers import logs
from workers.cluster import ray_api
from workers.cluster.actor_group import ActorGroup, Peers, vanished
from workers.cluster.deaths import ProcessId, own_id
from workers.cluster.memory import oom_kills
from workers.cluster.outcomes import Numbered, Share, TaskOutcome
from workers.logs import RunLog

# An actor that Ray cannot reach may come back; after so long it counts as gone.
_UNAVAILABLE_S = 20.0
# One that is there and does not answer is stopped or stuck in native code; answering takes another of its threads.
_SILENT_S = 600.0
# Events of one answer: those that gathered between two answers are passed on bit by bit.
EVENTS_MAX = 1000


# --------------------------------------------------------------------------------------------------------- outside


class Task:
    """Work on the cluster, seen from outside. Its events come in order, and again until acknowledged.

    Args:
        actor_group: who does it.
        slot: which of the group's tasks it is.
        acknowledged: the number of the first event that is wanted.
        has_begun: whether it is known to have its share of the machine; one that has not need not be asked to stop.
    """

    def __init__(self, actor_group: ActorGroup, slot: int = 0, acknowledged: int = 0, has_begun: bool = False) -> None:
        self.actor_group = actor_group
        self._slot = slot
        self._acknowledged = acknowledged
        self._asked: Any = None
        self._asked_s = 0.0
        self._kills = 0
        self._unavailable_since: float | None = None
        self._has_begun = has_begun
        self._is_closed = False
        self._peers = Peers(actor_group)

    def poll(self) -> tuple[list[Numbered], TaskOutcome | None]:
        """Numbered events that were not acknowledged, and the outcome once the work has ended. Never waits.

        An actor that is gone is ``vanished``; events that it had not been asked for are gone with it.
        """
        if self._is_closed:
            return [], TaskOutcome(kind="vanished", error_type="Closed", message="it was ended from outside")
        try:
            if self._asked is None:
                self._kills = oom_kills()
                self._asked = self.actor_group.first.answer.remote(self._slot, self._acknowledged)
                self._asked_s = time.monotonic()
            lost = self._peers.poll()
            if not ray_api.is_ready(self._asked):
                is_silent = self._has_begun and time.monotonic() - self._asked_s > _SILENT_S
                return [], vanished(TimeoutError(f"no answer in {_SILENT_S:.0f} s")) if is_silent else lost
            asked, self._asked = self._asked, None
            held: list[Any]
            # An actor that an earlier version has started answers without its share and its process.
            events, outcome, *held = ray_api.get(asked)
            self.actor_group.note(0, *held, kills=self._kills)
        except ray_api.ActorUnavailableError as error:
            now = time.monotonic()
            self._unavailable_since = self._unavailable_since or now
            return [], vanished(error) if now - self._unavailable_since > _UNAVAILABLE_S else None
        except ray_api.RayError as error:
            return [], self.actor_group.vanished(0, error)
        self._has_begun, self._unavailable_since = True, None
        return events, outcome or lost

    def acknowledge(self, events: Sequence[Numbered]) -> None:
        """Acknowledge events, which are stored now and need not come again."""
        if events:
            self._acknowledged = events[-1][0] + 1

    def stop(self) -> None:
        """Ask it to stop, without waiting: at its next batch, or at once if it still waits for its share.

        An actor that is gone is no error here; ``poll`` returns that. Every process of one student is asked: one that
        waits for its pictures has the others wait for it, where they hear nothing.
        """
        for actor in (self.actor_group.first, *self.actor_group.others):
            actor.stop.remote(self._slot)
        if not self._has_begun:
            self.close()

    def pause(self) -> None:
        """Ask it to leave a checkpoint and end as ``paused``, as ``stop`` does."""
        self.actor_group.first.pause.remote(self._slot)
        if not self._has_begun:
            self.close()

    def kill(self) -> None:
        """End its process, whatever that is doing; ``poll`` returns ``vanished`` once it is gone and writes no more.

        Where it still works on another task, this task alone is closed.
        """
        if self.actor_group.open_tasks > 1:
            self.close()
        else:
            self.actor_group.kill()

    def close(self) -> None:
        """End its process, whatever that is doing, unless it still works on another task."""
        self._is_closed = True
        self.actor_group.close(self._slot)


# ---------------------------------------------------------------------------------------------------------- inside


@dataclass
class TaskSlot:
    """Slot of an actor's work: its numbered events until they are acknowledged, requests to it, and its one outcome.

    Attributes:
        next_event: the number of its next event; another process may have emitted the earlier ones.
        log: of the run, if it is one: its events stand there as well.
    """

    next_event: int = 0
    events: list[Numbered] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    pausing: threading.Event = field(default_factory=threading.Event)
    outcome: TaskOutcome | None = None
    log: RunLog | None = None


class Actor:
    """Base of all actors: events, outcome and requests of its slots of work.

    Args:
        slots: of work that it does at once.
        first_event: the number of the first event of each.
    """

    def __init__(self, slots: int = 1, first_event: int = 0) -> None:
        logs.configure("info")
        self._slots = [TaskSlot(first_event) for _ in range(slots)]
        self._lock = threading.Lock()

    def _emit(self, slot: TaskSlot, event: BaseModel) -> None:
        """Number an event of the work in a slot, and keep it."""
        if slot.log is not None:
            slot.log.record(event)
        with self._lock:
            slot.events.append((slot.next_event, event.model_dump(mode="json")))
            slot.next_event += 1

    def answer(
        self, slot: int, acknowledged: int
    ) -> tuple[list[Numbered], TaskOutcome | None, list[Share] | str | None, ProcessId]:
        """Answer: events from number ``acknowledged`` on (earlier ones are forgotten), the outcome, the shares held.

        The outcome comes with the last of the events. The third is the GPU that this process is on, by Ray's name, or
        the shares of the processes that it has started; the last identifies this process for a watch.
        """
        asked = self._slots[slot]
        # Looked at first: with an outcome, the events are all there are.
        outcome = asked.outcome
        with self._lock:
            asked.events = [(n, event) for n, event in asked.events if n >= acknowledged]
            some = asked.events[:EVENTS_MAX]
            is_all = len(some) == len(asked.events)
        return some, outcome if is_all else None, self._held(), own_id()

    def process(self) -> ProcessId:
        """Identity of this process, for a watch."""
        return own_id()

    def _held(self) -> list[Share] | str | None:
        ids = ray_api.own_gpus()
        return str(ids[0]) if ids else None

    def stop(self, slot: int) -> None:
        """Request that the work of a slot stops at its next batch."""
        self._slots[slot].stopping.set()

    def pause(self, slot: int) -> None:
        """Request that the work of a slot leaves a checkpoint and ends as ``paused``."""
        self._slots[slot].pausing.set()
