"""Pool of inference actors of one job: blocks are fanned out, dead actors are replaced and their blocks go back.

Any actor may die at any moment: committed blocks stay. On GPUs there is one actor for each; Ray would put several of
them on the same one, so each asks for more than half of a GPU, and where none finds that much room, one is content
with the share that a run takes.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.backoff import LOST_ATTEMPTS_EVER_MAX, delay_s
from workers.cluster import ray_api
from workers.cluster.actors import InferenceActor
from workers.cluster.block_queue import BlockQueue, WorkerLost
from workers.cluster.deaths import Death, Watch
from workers.cluster.memory import oom_kills
from workers.cluster.outcomes import Share, WorkFailed
from workers.cluster.pool_events import PoolProgress, WaitingLog
from workers.config.task import InferenceTask
from workers.errors import Stopped
from workers.events import Emit, Log, ShouldStop

# Blocks of one call: enough to overlap loading, inference and writing, few enough to share work evenly.
_BLOCKS_PER_CALL = 4
# Workers that have had no blocks for so long are ended: this job may wait for a cache that another job infers, and that
# one for their GPU.
_IDLE_S = 10.0
# Two actors that ask for more than half of a GPU never share one.
_OVER_HALF = 0.5001
# Cores of an inference actor without a GPU; one on a GPU takes none from the runs.
_INFERENCE_CPUS = 1.0


@dataclass
class PoolWorker:
    """One inference actor and what it is doing.

    Attributes:
        share: of a GPU that it has asked for.
        started: answered, with its GPUs, once it has its share of the machine; until then it is given nothing to do.
        process: answered likewise, with what is to be watched.
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

    def begin(self, task_json: str, blocks: list[int]) -> None:
        """Begin to infer these blocks; the process is watched from now on."""
        if self.process is not None and ray_api.is_ready(self.process):
            with contextlib.suppress(ray_api.RayError):
                self.watch = Watch(ray_api.get(self.process))
            self.process = None
        self.kills = oom_kills()
        self.blocks, self.reference = blocks, self.actor.work.remote(task_json, blocks)


class InferencePool:
    """Inference actors of one job: they share its blocks, cache after cache; a dead one's go back to the queue.

    Args:
        actors: at most; one per GPU, or per core.
        gpu_share: of a GPU for each, as a run takes; 0 is the CPU.
        cpus: cores of this machine, which the actors on GPUs share for loading.
        confine_on_gpu: see ``InferenceTask``.
    """

    def __init__(self, actors: int, gpu_share: float, cpus: int, confine_on_gpu: bool = True) -> None:
        self._actors = actors
        self._confine_on_gpu = confine_on_gpu
        self._gpu_share = gpu_share
        self._share = max(gpu_share, _OVER_HALF) if gpu_share and actors > 1 else gpu_share
        self._load_threads = max(1, cpus // actors)
        self._workers: list[PoolWorker] = []
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None
        self._reported: set[str] = set()
        self._deaths = 0
        self._owed: list[float] = []
        self._start_again_s = 0.0

    def infer(self, task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
        """Infer and commit these blocks of one cache; see ``build_caches.missing_blocks``.

        Raises:
            Stopped, WorkFailed, WorkerLost: committed blocks stay.
        """
        count = max(1, min(self._actors, len(blocks)))
        text = self._on_its_device(task, count).model_dump_json()
        queue = BlockQueue(blocks, max(1, min(_BLOCKS_PER_CALL, len(blocks) // count)))
        progress = PoolProgress(task, emit)
        waiting = WaitingLog(self._gpu_share, emit)
        try:
            with self._in_use():
                # What the cache before this one was still owed is started here.
                self._owed.clear()
                while len(self._workers) < count:
                    self._workers.append(self._new_worker(self._share))
                while True:
                    self._start_owed()
                    self._retire_small_worker()
                    for worker in self._workers:
                        if worker.reference is None and queue and worker.is_started:
                            worker.begin(text, queue.take())
                    busy = {worker.reference: worker for worker in self._workers if worker.reference is not None}
                    if not busy and not queue:
                        return
                    if not busy and waiting.report():
                        self._add_small_worker()
                    references = list(busy) or [worker.started for worker in self._workers]
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
            self.close()
            raise
        finally:
            progress.report(now=True)

    def shares(self) -> list[Share]:
        """Shares that its actors hold, and GPUs that they have asked for; called from another thread than ``infer``.

        A core that one still waits for is in nobody's books: runs whose turn it is, of whatever priority, would wait
        until all the inference that was ever asked for is done.
        """
        return [worker.held() for worker in [*self._workers] if worker.share or worker.is_started]

    def close(self) -> None:
        """End every actor, whatever it is doing."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            self._end_workers()

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

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the actors, and for a while afterwards."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
        yield
        with self._lock:
            self._idle = threading.Timer(_IDLE_S, self._end_idle)
            self._idle.daemon = True
            self._idle.start()

    def _end_idle(self) -> None:
        with self._lock:
            # One that was cancelled too late has been replaced, or there is work again.
            if self._idle is threading.current_thread():
                self._idle = None
                self._end_workers()

    def _end_workers(self) -> None:
        for worker in [*self._workers]:
            self._end(worker)

    def _end(self, worker: PoolWorker) -> None:
        self._workers.remove(worker)
        ray_api.end(worker.actor)

    def _new_worker(self, share: float) -> PoolWorker:
        actor = ray_api.start(InferenceActor, cpus=0.0 if share else _INFERENCE_CPUS, gpus=share)
        return PoolWorker(actor, share, started=actor.gpu_ids.remote(), process=actor.process.remote())

    def _replace_later(self, worker: PoolWorker, death: Death, emit: Emit) -> None:
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
        self._workers.remove(worker)
        self._owed.append(worker.share)
        self._start_again_s = time.monotonic() + wait_s

    def _start_owed(self) -> None:
        if self._owed and time.monotonic() >= self._start_again_s:
            self._workers += [self._new_worker(share) for share in self._owed]
            self._owed.clear()

    def _add_small_worker(self) -> None:
        """Start an actor that takes little of a GPU where none has much room: inference waits for no empty GPU."""
        if self._share > self._gpu_share and not any(w.is_started or w.share < self._share for w in self._workers):
            self._workers.append(self._new_worker(self._gpu_share))

    def _retire_small_worker(self) -> None:
        """End the actor that took little of a GPU once that GPU has another."""
        for worker in [worker for worker in self._workers if worker.share < self._share and worker.reference is None]:
            others = (each for each in self._workers if each is not worker and each.is_started)
            if worker.is_started and {*worker.gpu_ids()} & {gpu for each in others for gpu in each.gpu_ids()}:
                self._end(worker)

    def _finish(self, worker: PoolWorker, queue: BlockQueue, emit: Emit) -> None:
        """Take the outcome of a call; a dead actor is replaced."""
        try:
            outcome = ray_api.get(worker.reference)
        except ray_api.RayError as error:
            death = worker.watch.death(error)
            self._replace_later(worker, death, emit)
            queue.give_back(worker.blocks, death)
            return
        self._deaths = 0
        worker.watch.alive(worker.kills)
        worker.reference, worker.blocks = None, []
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
