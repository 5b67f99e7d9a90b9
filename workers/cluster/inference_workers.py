"""Inference actors of one job, seen from outside: they are started with a share of the machine, replaced and ended.

Any of them may die at any moment: committed blocks stay. On GPUs there is one for each; Ray would put several of them
on the same one, so each asks for more than half of a GPU, and where none finds that much room, one is content with the
share that a run takes.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.backoff import LOST_ATTEMPTS_EVER_MAX, delay_s
from workers.cluster import ray_api
from workers.cluster.block_queue import WorkerLost
from workers.cluster.deaths import Death, Watch
from workers.cluster.memory import oom_kills
from workers.cluster.outcomes import Share
from workers.events import Emit, Log

# Workers that have had no blocks for so long are ended: this job may wait for a cache that another job infers, and that
# one for their GPU.
_IDLE_S = 10.0
# Two actors that ask for more than half of a GPU never share one.
_OVER_HALF = 0.5001
# Cores of an inference actor without a GPU; one on a GPU takes none from the runs.
_INFERENCE_CPUS = 1.0


@dataclass
class InferenceWorker:
    """One inference actor, seen from outside, and what it is doing.

    Attributes:
        share: of a GPU that it has asked for.
        started: answered, with its GPUs, once it has its share of the machine; until then it is given nothing to do.
        process: answered likewise, with what is to be watched.
        reference: of the outcome of the call that it is busy with; None if it has nothing to do.
        kills: see ``deaths.Watch.alive``.
    """

    actor: ray_api.Handle
    share: float
    started: Any
    blocks: list[int] = field(default_factory=list)
    reference: Any = None
    process: Any = None
    watch: Watch = field(default_factory=Watch)
    kills: int = 0

    @property
    def is_started(self) -> bool:
        """Whether it has its share of the machine."""
        return ray_api.is_ready(self.started)

    def held(self) -> Share:
        """The share that it holds, or, of a GPU, has asked for."""
        ids = self.gpu_ids() if self.share and self.is_started else []
        return Share(cpus=0.0 if self.share else _INFERENCE_CPUS, gpu=self.share, gpu_id=str(ids[0]) if ids else None)

    def gpu_ids(self) -> Sequence[int | str]:
        """GPUs of a worker that has started; none of one that has died since, which its next call raises."""
        with contextlib.suppress(ray_api.RayError):
            ids: Sequence[int | str] = ray_api.get(self.started)
            return ids
        return []

    def watch_process(self) -> None:
        """Watch its process from now on: it is given something to do."""
        if self.process is not None and ray_api.is_ready(self.process):
            with contextlib.suppress(ray_api.RayError):
                self.watch = Watch(ray_api.get(self.process))
            self.process = None
        self.kills = oom_kills()

    def free(self) -> None:
        """Note that its call has come back: it can begin another."""
        self.watch.alive(self.kills)
        self.reference, self.blocks = None, []


class InferenceWorkers:
    """The inference actors of one job: started with their shares, replaced when they die, ended when they idle.

    Args:
        kind: the actors' class.
        gpu_share: of a GPU for each, as a run takes; 0 is the CPU.
        several: whether there may be more than one: then each asks for more than half of a GPU.

    Attributes:
        all: those that there are, started or not.
    """

    def __init__(self, kind: type, gpu_share: float, *, several: bool) -> None:
        self._kind = kind
        self.all: list[InferenceWorker] = []
        self._least_share = gpu_share
        self._share = max(gpu_share, _OVER_HALF) if gpu_share and several else gpu_share
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None
        self._deaths = 0
        self._owed: list[float] = []
        self._start_again_s = 0.0

    @contextlib.contextmanager
    def in_use(self, count: int) -> Iterator[None]:
        """Have so many actors, and keep them for a while afterwards; an error ends them."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
        # What was still owed is started here.
        self._owed.clear()
        while len(self.all) < count:
            self.start()
        try:
            yield
        except BaseException:
            # Some are in the middle of a call that nobody waits for any more.
            self.close()
            raise
        with self._lock:
            self._idle = threading.Timer(_IDLE_S, self._end_idle)
            self._idle.daemon = True
            self._idle.start()

    def start(self, share: float | None = None) -> None:
        """Start one more, with this share of a GPU; None is the share that each asks for."""
        share = self._share if share is None else share
        actor = ray_api.start(self._kind, cpus=0.0 if share else _INFERENCE_CPUS, gpus=share)
        worker = InferenceWorker(actor, share, started=actor.gpu_ids.remote(), process=actor.process.remote())
        self.all.append(worker)

    def look_after(self) -> None:
        """Start those that are owed for dead ones, if it is time, and end a small one that is not needed any more."""
        if self._owed and time.monotonic() >= self._start_again_s:
            for share in self._owed:
                self.start(share)
            self._owed.clear()
        self.retire_small()

    def note_alive(self) -> None:
        """Note that one has done a call: deaths are counted anew."""
        self._deaths = 0

    def replace_later(self, worker: InferenceWorker, death: Death, emit: Emit) -> None:
        """Put another one in the place of one that has died, after a while if it is not the first in a row.

        Raises:
            WorkerLost: so many have died without a call done in between that it does not matter of what.
        """
        self._deaths += 1
        if self._deaths > LOST_ATTEMPTS_EVER_MAX:
            raise WorkerLost(
                f"{self._deaths} inference actors died one after the other, the last one: {death.text}. Committed "
                "blocks are kept; look for what has the memory of this machine, and submit the job again"
            )
        wait_s = delay_s(self._deaths)
        when = f" in {wait_s:.0f} s" if wait_s else ""
        emit(Log(level="warning", message=f"an inference actor died and is replaced{when}: {death.text}"))
        self.all.remove(worker)
        self._owed.append(worker.share)
        self._start_again_s = time.monotonic() + wait_s

    def add_small(self) -> None:
        """Start an actor that takes little of a GPU where none has much room: inference waits for no empty GPU."""
        if self._share > self._least_share and not any(w.is_started or w.share < self._share for w in self.all):
            self.start(self._least_share)

    def retire_small(self) -> None:
        """End the actor that took little of a GPU once that GPU has another."""
        for worker in [worker for worker in self.all if worker.share < self._share and worker.reference is None]:
            others = (each for each in self.all if each is not worker and each.is_started)
            if worker.is_started and {*worker.gpu_ids()} & {gpu for each in others for gpu in each.gpu_ids()}:
                self.end(worker)

    def shares(self) -> list[Share]:
        """Shares that they hold, and GPUs that they have asked for; called from another thread than the rest.

        A core that one still waits for is in nobody's books: runs whose turn it is, of whatever priority, would wait
        until all the inference that was ever asked for is done.
        """
        return [worker.held() for worker in [*self.all] if worker.share or worker.is_started]

    def end(self, worker: InferenceWorker) -> None:
        """End one, whatever it is doing."""
        self.all.remove(worker)
        ray_api.end(worker.actor)

    def close(self) -> None:
        """End every one."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            self._end_all()

    def _end_idle(self) -> None:
        with self._lock:
            # One that was cancelled too late has been replaced, or there is work again.
            if self._idle is threading.current_thread():
                self._idle = None
                self._end_all()

    def _end_all(self) -> None:
        for worker in [*self.all]:
            self.end(worker)
