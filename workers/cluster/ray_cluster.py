"""Ray, and nothing else: the plain functions of ``build_caches`` and ``loop`` as actors with resources.

The only file that imports ray. It decides nothing about jobs: it starts an actor, passes its events on, tells whether
it finished, raised, stopped or vanished, and ends it. One run is one actor with its share of the CPUs or of a GPU;
runs that share their batches can share an actor, and a large student can have several. The caches of a job are one
coordinating actor, which fans blocks out to a pool of inference actors, one per GPU or per core. Any of them may die at
any moment: committed blocks and checkpoints stay, the caller learns that the actor vanished.

Training actors have names and belong to nobody: when the engine is killed they go on, and its successor finds them by
name. What they have told since is kept until somebody acknowledges it. The actors of a cache end with their engine, or
when another one leads; the blocks they have committed are there.

Facts of Ray that shape this file: without an address ``ray.init`` joins whatever cluster it finds; a driver that is
without Ray for a minute is aborted; resources are logical, memory is not limited by them; a share of a GPU is taken
from the fullest GPU that has room for it, so several equal ones fill one GPU before the next.

The engine imports this file, and has no use for torch, which takes 300 MiB and seconds to import: what actors alone
need is imported where they begin their work.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from store import CacheWriter
from workers import logs, signals
from workers.backoff import LOST_ATTEMPTS_EVER_MAX, delay_s
from workers.cluster.deaths import Death, ProcessId, Watch, oom_kills, own_id
from workers.cluster.outcomes import Numbered, Share, TaskChannel, TaskOutcome, WorkFailed, outcome, outcome_of
from workers.cluster.ray_head import ENVIRONMENT, HeadFailed, RayHead
from workers.config.job import JobSpec
from workers.config.task import Folders, InferenceTask, TrainingTask
from workers.errors import Stopped, WorkerError, first_line
from workers.events import Emit, InferenceProgress, Log, ShouldStop, Stage
from workers.logs import RunLog
from workers.run_files import ARTIFACTS

# Ray reads whether it has to show a token when it is imported, and not again.
os.environ.update(ENVIRONMENT)

import ray
from ray.util import get_placement_group, list_named_actors
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

if TYPE_CHECKING:
    from workers.teacher.teacher import Device, Teacher

ACTOR_DEATHS_MAX = 3
# Blocks of one call: enough to overlap loading, inference and writing, few enough to share work evenly.
_BLOCKS_PER_CALL = 4
_WAITING_S = 5.0
# Workers that have had no blocks for so long are ended: this job may wait for a cache that another job infers, and that
# one for their GPU.
_IDLE_S = 10.0
# Two actors that ask for more than half of a GPU never share one.
_OVER_HALF = 0.5001
# Cores of an inference actor without a GPU; one on a GPU takes none from the runs.
_INFERENCE_CPUS = 1.0
_NAMESPACE = "retort"
# An actor that Ray cannot reach may come back; after so long it counts as gone.
_UNAVAILABLE_S = 20.0
# One that is there and does not answer is stopped or stuck in native code; answering takes another of its threads.
_SILENT_S = 600.0
# Where one process of a student has failed, the first gets so long to say so itself, with its log in order.
_PEER_GRACE_S = 5.0


class WorkerLost(WorkerError):
    """Inference actors died again and again; what they had committed stays."""


# -------------------------------------------------------------------------------------------- actors


class _Actor:
    """What every actor answers beside its work (which runs in another of its threads).

    Args:
        slots: of work that it does at once, each with its own channel.
        first_event: the number of the first event of each.
    """

    def __init__(self, slots: int = 1, first_event: int = 0) -> None:
        logs.configure("info")
        self._channels = [TaskChannel(first_event) for _ in range(slots)]

    def answer(
        self, slot: int, acknowledged: int
    ) -> tuple[list[Numbered], TaskOutcome | None, list[Share] | str | None, ProcessId]:
        """Events from number ``acknowledged`` on (those before it are forgotten), how the work has ended, what is held.

        The third is the GPU that this process is on, by Ray's name, or what the processes that it has started hold;
        the last is for whoever watches over it.
        """
        return (*self._channels[slot].take(acknowledged), self._held(), own_id())

    def process(self) -> ProcessId:
        return own_id()

    def _held(self) -> list[Share] | str | None:
        return _own_gpu()

    def stop(self, slot: int) -> None:
        self._channels[slot].stopping.set()

    def pause(self, slot: int) -> None:
        self._channels[slot].pausing.set()


class _TrainingActor(_Actor):
    """It works from its birth on: whoever finds it by name need not know whether it was told to."""

    def __init__(self, tasks_json: list[str], first_event: int = 0) -> None:
        super().__init__(len(tasks_json), first_event)
        threading.Thread(target=self._work, args=(tasks_json,), name="training", daemon=True).start()

    def _work(self, tasks_json: list[str]) -> None:
        run_logs: list[RunLog] = []
        try:
            from workers.training.loop import train_group
            from workers.training.run import RunHandle

            tasks = [TrainingTask.model_validate_json(task) for task in tasks_json]
            # Of several processes of one student the first writes.
            run_logs += [RunLog(task.folder, task.folder / ARTIFACTS, task.rank == 0, task.stage) for task in tasks]
            logs.speak_for(run_logs)
            members = [
                RunHandle(task, log.emitting(channel.emit), channel.stopping.is_set, channel.pausing.is_set)
                for task, log, channel in zip(tasks, run_logs, self._channels, strict=True)
            ]
            for place, how in train_group(members):
                if tasks[place].stage == "train" and isinstance(how, dict):
                    # Whoever has the rest done may be another engine, which has not made this task.
                    how = {**how, "order": tasks_json[place]}
                self._end(place, how, run_logs)
        except BaseException as error:
            # Whatever it is, a run without an outcome would never end.
            why = error if isinstance(error, Exception) else WorkerError(f"its process cannot go on: {error!r}")
            for place, channel in enumerate(self._channels):
                if channel.outcome is None:
                    self._end(place, why, run_logs)

    def _end(self, place: int, how: dict[str, Any] | Exception, run_logs: Sequence[RunLog]) -> None:
        # The log first: once the outcome is there, this process may be ended.
        with run_logs[place].ending(how) if run_logs else contextlib.nullcontext():
            told = outcome(how)
        self._channels[place].outcome = told


class _InferenceActor(_Actor):
    """Infers blocks of the caches of one job, with a session that lives as long as what it was opened for is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._teacher: Teacher | None = None
        self._opened_for = ""

    def gpu_ids(self) -> Sequence[int | str]:
        """The GPUs of this machine that it may use; none on a CPU."""
        return _own_gpus()

    def work(self, task_json: str, blocks: list[int]) -> TaskOutcome:
        return outcome_of(lambda: self._infer(task_json, blocks))

    def _infer(self, task_json: str, blocks: list[int]) -> dict[str, Any]:
        from workers.teacher import build_caches as caching

        task = InferenceTask.model_validate_json(task_json)
        # Both splits of a job have one teacher on one device: its session does not depend on whose blocks it infers.
        opened_for = task.model_dump_json(exclude={"folders", "spec"}) + task.spec.output_kind
        if self._teacher is None or opened_for != self._opened_for:
            # The first session's memory is given back before the second one takes its own.
            self._teacher = None
            self._teacher, self._opened_for = caching.open_teacher(task), opened_for
        warnings = [*self._teacher.warnings]

        def keep_warnings(event: object) -> None:
            # The coordinator tells of progress, for all actors together.
            if isinstance(event, Log) and event.level == "warning":
                warnings.append(event.message)

        caching.infer_with(self._teacher, task, blocks, keep_warnings, self._channels[0].stopping.is_set)
        return {"provider": self._teacher.provider, "reason": self._teacher.provider_reason, "warnings": warnings}


class _CachesActor(_Actor):
    """Prepares the data and completes the caches of one job; its inference is fanned out."""

    def __init__(self) -> None:
        super().__init__()
        self._pool: _InferencePool | None = None

    def _held(self) -> list[Share]:
        pool = self._pool
        return [] if pool is None else pool.shares()

    def work(
        self,
        job_json: str,
        folders_json: str,
        cpus: int,
        actors: int,
        gpu_share: float,
        quota_bytes: int,
        forwards_in: str | None,
        confine_on_gpu: bool,
    ) -> None:
        self._channels[0].outcome = outcome_of(
            lambda: self._build(
                job_json,
                folders_json,
                quota_bytes,
                cpus,
                _InferencePool(actors, gpu_share, cpus, confine_on_gpu),
                None if forwards_in is None else Path(forwards_in),
            )
        )

    def _build(
        self,
        job_json: str,
        folders_json: str,
        quota_bytes: int,
        cpus: int,
        pool: "_InferencePool",
        forwards_in: Path | None,
    ) -> dict[str, Any]:
        from workers.teacher import build_caches as caching

        job = JobSpec.model_validate_json(job_json)
        folders = Folders.model_validate_json(folders_json)
        emit, should_stop = self._channels[0].emit, self._channels[0].stopping.is_set
        # The contract check is some hundred rows, here, on the CPU: Ray shows no GPU to an actor without a share.
        # So no device but an explicit CPU need be named; the pool names that of its actors.
        device: Device = "cpu" if job.training.device == "cpu" else "auto"
        plan = caching.plan_caches(
            job, folders, emit, should_stop, threads=cpus, device=device, forwards_in=forwards_in
        )
        # Kept for as long as this process lives, so that whoever waits for its outcome can take over.
        self._reservation = caching.reserve_caches(plan, folders, quota_bytes, emit)
        with contextlib.closing(pool) as self._pool:
            infer = self._pool.infer
            forwards = caching.build_caches(
                plan, folders, emit, should_stop, threads=1, device=device, infer=infer, forwards_in=forwards_in
            )
        plan = plan.model_copy(update={"accuracy": caching.teacher_accuracy(plan, folders)})
        emit(Stage(stage="training"))
        return {
            "plan": plan.model_dump(mode="json"),
            "teacher_forwards": forwards,
            "teacher_forwards_needed": caching.forwards_needed(job, plan),
        }


class _Method(Protocol):
    def remote(self, *arguments: object) -> "ray.ObjectRef[Any]": ...


class _Handle(Protocol):
    """What ray gives for an actor; its own annotations know no methods."""

    work: _Method
    gpu_ids: _Method
    answer: _Method
    process: _Method
    stop: _Method
    pause: _Method


def _start(
    kind: type[_Actor],
    *arguments: str | int | list[str],
    cpus: float,
    gpus: float,
    name: str | None = None,
    outlives: bool = False,
    place: PlacementGroupSchedulingStrategy | None = None,
) -> _Handle:
    """An actor with its share of the machine; it waits, without a process, until that is free.

    Args:
        name: by which others find it.
        outlives: it goes on when whoever has started it ends.
    """
    actor_class: Any = ray.remote(kind)
    # Three threads: the work, a question for events, a request to stop.
    options = actor_class.options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_concurrency=3,
        scheduling_strategy=place,
        name=name,
        lifetime="detached" if outlives else None,
    )
    handle: _Handle = options.remote(*arguments)
    return handle


def _own_gpus() -> Sequence[int | str]:
    """The GPUs of this machine that Ray has given to this actor, by its names of them."""
    ids: Sequence[int | str] = ray.get_gpu_ids()
    return ids


def _own_gpu() -> str | None:
    """The same, of an actor with one GPU or a share of one."""
    ids = _own_gpus()
    return str(ids[0]) if ids else None


def _found(name: str) -> _Handle:
    """The actor of this name. Raises ValueError if there is none."""
    get_actor: Any = ray.get_actor
    handle: _Handle = get_actor(name)
    return handle


def _end(handle: _Handle) -> None:
    """End an actor's process, whatever it is doing; nothing happens if it has ended."""
    kill: Any = ray.kill
    kill(handle)


# ------------------------------------------------------------------------------------------- fan-out


class BlockQueue:
    """Blocks that no worker has, as batches of one call each.

    Args:
        size: blocks of a batch, one call.
    """

    def __init__(self, blocks: Sequence[int], size: int) -> None:
        self._batches = deque(list(blocks[start : start + size]) for start in range(0, len(blocks), size))
        self._deaths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._batches)

    def take(self) -> list[int]:
        """The next blocks."""
        return self._batches.popleft()

    def give_back(self, blocks: list[int], death: Death) -> None:
        """Take back the blocks of a worker that died. They are the next again: where all die, that is soon known.

        Raises:
            WorkerLost: too many have died of these very blocks. Those of others do not count: a cache may take hours.
        """
        self._batches.appendleft(blocks)
        if death.is_node_fault:
            return
        self._deaths[blocks[0]] += 1
        if self._deaths[blocks[0]] > ACTOR_DEATHS_MAX:
            raise WorkerLost(
                f"{self._deaths[blocks[0]]} inference actors died with the same blocks, the last one: {death.text}. "
                "Committed blocks are kept; look for a full memory or a failing GPU and submit the job again"
            )


@dataclass
class _PoolWorker:
    """One inference actor and what it is doing.

    Attributes:
        share: of a GPU that it has asked for.
        started: answered, with its GPUs, once it has its share of the machine; until then it is given nothing to do.
        process: answered likewise, with what is to be watched.
        kills: see ``deaths.Watch.alive``.
    """

    actor: _Handle
    share: float
    started: Any
    blocks: list[int] = field(default_factory=list)
    reference: Any = None
    process: Any = None
    watch: Watch = field(default_factory=Watch)
    kills: int = 0

    @property
    def is_started(self) -> bool:
        return _is_ready(self.started)

    def held(self) -> Share:
        """What it holds, or, of a GPU, has asked for."""
        ids = self.gpu_ids() if self.share and self.is_started else []
        return Share(cpus=0.0 if self.share else _INFERENCE_CPUS, gpu=self.share, gpu_id=str(ids[0]) if ids else None)

    def gpu_ids(self) -> Sequence[int | str]:
        """Of one that has started; none of one that has died since, which its next call tells."""
        with contextlib.suppress(ray.exceptions.RayError):
            ids: Sequence[int | str] = ray.get(self.started)
            return ids
        return []

    def begin(self, task_json: str, blocks: list[int]) -> None:
        """Have it infer these; its process is watched from now on."""
        if self.process is not None and _is_ready(self.process):
            with contextlib.suppress(ray.exceptions.RayError):
                self.watch = Watch(ray.get(self.process))
            self.process = None
        self.kills = oom_kills()
        self.blocks, self.reference = blocks, self.actor.work.remote(task_json, blocks)


class _InferencePool:
    """Inference actors of one job: they share its blocks, cache after cache; a dead one's go back to the queue.

    On GPUs there is one actor for each. Ray would put several of them on the same one, so each asks for more than half
    of a GPU; where none finds that much room, one is content with the share that a run takes.

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
        self._workers: list[_PoolWorker] = []
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None
        self._told: set[str] = set()
        self._deaths = 0
        self._owed: list[float] = []
        self._start_again_s = 0.0

    def infer(self, task: InferenceTask, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
        """Infer and commit these blocks of one cache; see ``caching.Infer``.

        Raises:
            Stopped, WorkFailed, WorkerLost: committed blocks stay.
        """
        count = max(1, min(self._actors, len(blocks)))
        text = self._on_its_device(task, count).model_dump_json()
        queue = BlockQueue(blocks, max(1, min(_BLOCKS_PER_CALL, len(blocks) // count)))
        progress = _CacheProgress(task, emit)
        waiting = _Waiting(self._gpu_share, emit)
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
                    if not busy and waiting.tell():
                        self._add_small_worker()
                    references = list(busy) or [worker.started for worker in self._workers]
                    ready = ray.wait(references, num_returns=1, timeout=0.25)[0] if references else []
                    if not references:
                        # All have died, and are started again in a while.
                        time.sleep(0.05)
                    for reference in ready:
                        if reference in busy:
                            self._finish(busy[reference], queue, emit)
                    progress.tell()
                    if should_stop():
                        raise Stopped("inference was stopped; committed blocks are kept")
        except BaseException:
            # Some are in the middle of a call that nobody waits for any more.
            self.close()
            raise
        finally:
            progress.tell(now=True)

    def shares(self) -> list[Share]:
        """What its actors hold, and which GPUs they have asked for; asked from another thread than infers.

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
            # A small cache has fewer blocks than there are cores; then each actor gets several.
            changes = {"threads": max(1, self._actors // count), "sessions": count}
        return task.model_copy(update=changes)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the actors; afterwards, for a while."""
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

    def _end(self, worker: _PoolWorker) -> None:
        self._workers.remove(worker)
        _end(worker.actor)

    def _new_worker(self, share: float) -> _PoolWorker:
        actor = _start(_InferenceActor, cpus=0.0 if share else _INFERENCE_CPUS, gpus=share)
        return _PoolWorker(actor, share, started=actor.gpu_ids.remote(), process=actor.process.remote())

    def _replace_later(self, worker: _PoolWorker, death: Death, emit: Emit) -> None:
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
        """Where no GPU has much room, an actor that takes little of one: inference shall not wait for an empty GPU."""
        if self._share > self._gpu_share and not any(w.is_started or w.share < self._share for w in self._workers):
            self._workers.append(self._new_worker(self._gpu_share))

    def _retire_small_worker(self) -> None:
        """End the actor that took little of a GPU once that GPU has another."""
        for worker in [worker for worker in self._workers if worker.share < self._share and worker.reference is None]:
            others = (each for each in self._workers if each is not worker and each.is_started)
            if worker.is_started and {*worker.gpu_ids()} & {gpu for each in others for gpu in each.gpu_ids()}:
                self._end(worker)

    def _finish(self, worker: _PoolWorker, queue: BlockQueue, emit: Emit) -> None:
        """Take a call's outcome; a dead actor is replaced."""
        try:
            outcome = ray.get(worker.reference)
        except ray.exceptions.RayError as error:
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
        if not self._told:
            emit(Log(message=f"inference on {outcome.value['provider']}: {outcome.value['reason']}"))
        # Every actor has the same to say.
        for warning in dict.fromkeys(outcome.value["warnings"]):
            if warning not in self._told:
                emit(Log(level="warning", message=warning))
        self._told |= {outcome.value["provider"], *outcome.value["warnings"]}


class _CacheProgress:
    """One progress event for all actors of a pool together, whenever another block of the cache is committed."""

    def __init__(self, task: InferenceTask, emit: Emit) -> None:
        self._spec, self._emit = task.spec, emit
        self._writer = CacheWriter(task.folders.caches, task.spec)
        self._total = task.spec.views * task.spec.samples
        # Not by the blocks that are to be inferred: those may be some of the missing ones.
        self._before = self._told = self._done()
        self._started = self._look_again = time.monotonic()

    def _done(self) -> int:
        return self._total - self._spec.rows_in(self._writer.pending_blocks())

    def tell(self, now: bool = False) -> None:
        """Look whether there is something to tell of, unless that was just now."""
        looked = time.monotonic()
        if looked < self._look_again and not now:
            return
        done = self._done()
        # Looking reads a record for every block: of very many blocks, less often.
        self._look_again = looked + max(0.5, 20 * (time.monotonic() - looked))
        if done == self._told:
            return
        self._told = done
        rate = (done - self._before) / (time.monotonic() - self._started)
        self._emit(
            InferenceProgress(
                cache=self._spec.key,
                split=self._spec.split,
                rows_done=done,
                rows_total=self._total,
                rows_inferred=done - self._before,
                rows_per_s=rate,
                eta_s=(self._total - done) / rate if rate > 0 else None,
            )
        )


class _Waiting:
    """Why no inference actor has begun, as Ray says: its process is starting, or others hold what it asks for.

    Args:
        gpu_share: that it asks for; 0 is a core.
    """

    def __init__(self, gpu_share: float, emit: Emit) -> None:
        self._kind, self._asked = ("GPU", gpu_share) if gpu_share else ("CPU", 1.0)
        self._emit = emit
        self._was_free = self._free()
        self._look_again = time.monotonic() + _WAITING_S
        self._told = ""

    def tell(self) -> bool:
        """Tell of it, once for each reason; whether it has lasted for so long that there is something to tell."""
        if time.monotonic() < self._look_again:
            return False
        self._look_again = time.monotonic() + _WAITING_S
        total = _resources(ray.cluster_resources).get(self._kind, 0.0)
        free = self._free()
        others = max(0, len(list_named_actors()) - 1)
        names = {"GPU": "GPUs", "CPU": "CPU cores"}[self._kind]
        # A share has to be free on one GPU, and only the sum over all is known.
        enough = self._asked * (total if self._kind == "GPU" and total > 1 else 1)
        if free >= enough or (self._was_free >= enough and not others):
            # Resources count as taken from the moment on at which Ray begins to start the process.
            reason, message = "starting", "inference has its share of the machine: Ray is starting its processes"
        else:
            reason = "taken"
            message = (
                f"inference waits for {self._asked:g} of the {total:g} {names}, of which {free:g} are free; "
                f"{others} other processes of training or inference have the rest, or wait as well"
            )
        if reason != self._told:
            self._told = reason
            self._emit(Log(message=message))
        return True

    def _free(self) -> float:
        return _resources(ray.available_resources).get(self._kind, 0.0)


def _resources(ask: Callable[[], Any]) -> dict[str, float]:
    """Of the whole cluster, by name; ray's own functions are not annotated."""
    found: dict[str, float] = ask()
    return found


def _is_ready(reference: "ray.ObjectRef[Any]") -> bool:
    ready, _ = ray.wait([reference], timeout=0)
    return bool(ready)


# ------------------------------------------------------------------------------------------- cluster


class ActorGroup:
    """The actors behind one task or, where runs share their batches, behind several; ended with the last of these.

    Args:
        actors: the first of several processes of one student tells, and its request to pause is the others'.
        slots: the tasks that they do at once.
        cpus: cores that each has, as it was started.
        gpu_share: of a GPU, likewise; 0 without one.

    Attributes:
        processes: how many actors there are.
        tasks: how many tasks they were given.
        shares: what its processes hold, or have asked for; those of a cache say so themselves.
        exports: whether they only write artifacts, beside what has a share of the machine.
    """

    exports = False

    def __init__(
        self,
        actors: Sequence[_Handle],
        slots: Collection[int],
        cpus: float = 0.0,
        gpu_share: float = 0.0,
        places: PlacementGroup | None = None,
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
        """How many of its tasks have not ended."""
        return len(self._open)

    def note(
        self,
        rank: int,
        held: list[Share] | str | None = None,
        process: ProcessId | None = None,
        *,
        kills: int = 0,
    ) -> None:
        """Take down what an actor has said of the share that it holds, and of its process.

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
        """The outcome of a process that Ray says is gone."""
        return _vanished(error, self._watches[rank].death(error))

    def kill(self) -> None:
        """End its processes, whatever they are doing."""
        for actor in (self.first, *self.others):
            _end(actor)

    def close(self, slot: int) -> None:
        """One of its tasks is over or unwanted; the processes end when all are."""
        self._open.discard(slot)
        if self._open:
            return
        self.kill()
        if self._places is not None:
            _remove(self._places)


class _Peers:
    """The processes of one student beside its first: each is asked whether it lives and works.

    The first notices a lost one only if its communication does: NCCL waits for ten minutes.
    """

    def __init__(self, actor_group: ActorGroup) -> None:
        self._actor_group, self._actors = actor_group, actor_group.others
        self._asked: dict[int, Any] = {}
        self._kills: dict[int, int] = {}
        self._ended: tuple[float, TaskOutcome] | None = None

    def poll(self) -> TaskOutcome | None:
        """The end of the run by a process that is gone, or that has failed or stopped with its first silent since."""
        for rank, actor in enumerate(self._actors, start=1):
            try:
                if rank not in self._asked:
                    # Only the first one's events are stored: these are forgotten.
                    self._kills[rank] = oom_kills()
                    self._asked[rank] = actor.answer.remote(0, sys.maxsize)
                if not _is_ready(self._asked[rank]):
                    continue
                held: list[Any]
                _, outcome, *held = ray.get(self._asked.pop(rank))
                self._actor_group.note(rank, *held, kills=self._kills[rank])
            except ray.exceptions.ActorUnavailableError:
                # It may come back; the first one's own patience decides.
                self._asked.pop(rank, None)
                continue
            except ray.exceptions.RayError as error:
                gone = self._actor_group.vanished(rank, error)
                message = f"process {rank + 1} of the {len(self._actors) + 1} of this student is gone: {gone.message}"
                return gone.model_copy(update={"message": message})
            if outcome is not None and outcome.kind in {"failed", "vanished", "stopped"}:
                self._ended = self._ended or (time.monotonic(), outcome)
        if self._ended is not None and time.monotonic() - self._ended[0] > _PEER_GRACE_S:
            return self._ended[1]
        return None


class Task:
    """A piece of work on the cluster, seen from outside. Its events come in order, and again until acknowledged.

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
        self._asked: ray.ObjectRef[tuple[list[Numbered], TaskOutcome | None]] | None = None
        self._asked_s = 0.0
        self._kills = 0
        self._unavailable_since: float | None = None
        self._has_begun = has_begun
        self._is_closed = False
        self._peers = _Peers(actor_group)

    def poll(self) -> tuple[list[Numbered], TaskOutcome | None]:
        """(number, event) pairs that were not acknowledged, and how the work ended once it has. Never waits.

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
            if not _is_ready(self._asked):
                is_silent = self._has_begun and time.monotonic() - self._asked_s > _SILENT_S
                return [], _vanished(TimeoutError(f"no answer in {_SILENT_S:.0f} s")) if is_silent else lost
            asked, self._asked = self._asked, None
            held: list[Any]
            # An actor that an earlier version has started does not say what it holds, or which process it is.
            events, outcome, *held = ray.get(asked)
            self.actor_group.note(0, *held, kills=self._kills)
        except ray.exceptions.ActorUnavailableError as error:
            now = time.monotonic()
            self._unavailable_since = self._unavailable_since or now
            return [], _vanished(error) if now - self._unavailable_since > _UNAVAILABLE_S else None
        except ray.exceptions.RayError as error:
            return [], self.actor_group.vanished(0, error)
        self._has_begun, self._unavailable_since = True, None
        return events, outcome or lost

    def acknowledge(self, events: Sequence[Numbered]) -> None:
        """These need not be told again: they are stored."""
        if events:
            self._acknowledged = events[-1][0] + 1

    def stop(self) -> None:
        """Ask it to stop, without waiting: at its next batch, or at once if it still waits for its share.

        An actor that is gone is no error here; ``poll`` tells. Every process of one student is asked: one that waits
        for its pictures has the others wait for it, where they hear nothing.
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
        """End its process, whatever that is doing; ``poll`` tells ``vanished`` once it is gone, and writes no more.

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


def _vanished(error: BaseException, death: Death | None = None) -> TaskOutcome:
    death = death or Death(first_line(error))
    return TaskOutcome(
        kind="vanished",
        error_type=type(error).__name__,
        message=death.text,
        is_node_fault=death.is_node_fault,
    )


def export_name(name: str, slot: int) -> str:
    """Of the actor that exports a run, from the name of the one that has trained it and the run's place there."""
    return f"{name}-x{slot}"


def _names(name: str, count: int) -> list[str]:
    """Of the actors that train one student; the first has the name itself."""
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
        """Find or start Ray and become its driver; returns what it says of this machine. If that fails, it is ended."""
        self._head = RayHead(data_dir, cpus, gpus, os.environ.get("RAY_AUTH_TOKEN"))
        os.environ["RAY_AUTH_TOKEN"] = self._head.head.token
        nodes: Any = ray.nodes  # not annotated
        try:
            # Ray puts its own handlers in place when it connects, and none when it leaves.
            with signals.waiting():
                ray.init(
                    address=self._head.head.address,
                    namespace=_NAMESPACE,
                    log_to_driver=True,
                    configure_logging=False,
                )
            [node] = nodes()
        except Exception:
            self.close()
            raise
        found: dict[str, Any] = node
        return found

    @property
    def is_alive(self) -> bool:
        """Whether Ray is there. If not, nothing here may be asked; a new cluster can be started."""
        return self._head.is_alive

    def build_caches(
        self,
        job: JobSpec,
        folders: Folders,
        gpu_share: float = 0.0,
        quota_bytes: int = 0,
        forwards_in: Path | None = None,
        confine_on_gpu: bool = True,
    ) -> Task:
        """Prepare the data and complete the caches of a job, with one inference actor per GPU, or per core.

        The outcome's value holds ``plan`` (``caching.CachePlan``, with the teacher's accuracy), ``teacher_forwards``
        of this process's own and ``teacher_forwards_needed`` by a live teacher. Until ``Task.close`` neither cache is
        evicted.

        Args:
            gpu_share: of each GPU that inference takes at least, see ``_InferencePool``; 1 has a GPU for itself; 0 is
                the CPU.
            quota_bytes: see ``build_caches.reserve_caches``.
            forwards_in, confine_on_gpu: see ``InferenceTask``.
        """
        # The name is for end_others alone: an engine that was stopped leaves it behind.
        actor = _start(_CachesActor, cpus=0.0, gpus=0.0, name=f"caches-{secrets.token_hex(8)}")
        actors = self.gpus if gpu_share else self.cpus
        arguments = (job.model_dump_json(), folders.model_dump_json(), self.cpus, actors, gpu_share, quota_bytes)
        actor.work.remote(*arguments, None if forwards_in is None else str(forwards_in), confine_on_gpu)
        actor_group = ActorGroup([actor], [0], gpu_share=gpu_share)
        # It says itself what its inference has; until then that is nothing.
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
            actor = _start(_TrainingActor, texts, cpus=cpus, gpus=gpu_share, name=name, outlives=True)
            actor_group = ActorGroup([actor], range(len(training_tasks)), cpus, gpu_share)
            return [Task(actor_group, slot) for slot in range(len(training_tasks))]
        [training_task] = training_tasks
        bundle = {"CPU": cpus, "GPU": gpu_share} if gpu_share else {"CPU": cpus}
        places = placement_group([bundle] * count, strategy="PACK", name=name, lifetime="detached")
        actors = []
        for rank, own_name in enumerate(_names(name, count)):
            place = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=rank)
            texts = [training_task.model_copy(update={"rank": rank}).model_dump_json()]
            actors.append(
                _start(_TrainingActor, texts, cpus=cpus, gpus=gpu_share, name=own_name, outlives=True, place=place)
            )
        return [Task(ActorGroup(actors, [0], cpus, gpu_share, places))]

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
        return self._exporting(
            _start(
                _TrainingActor,
                [training_task.model_dump_json()],
                first_event,
                cpus=0.0,
                gpus=0.0,
                name=name,
                outlives=True,
            ),
            first_event,
        )

    def find_export(self, name: str, acknowledged: int) -> Task | None:
        """The task of an export that was started before, by another process perhaps; None if it is gone.

        Args:
            acknowledged: the number of the first event that is not stored.
        """
        try:
            return self._exporting(_found(name), acknowledged)
        except ValueError:
            return None

    @staticmethod
    def _exporting(actor: _Handle, acknowledged: int) -> Task:
        actor_group = ActorGroup([actor], [0])
        actor_group.exports = True
        return Task(actor_group, 0, acknowledged)

    def attach(
        self, name: str, count: int, acknowledged: Mapping[int, int], cpus: float = 0.0, gpu_share: float = 0.0
    ) -> dict[int, Task]:
        """The tasks of a group of actors that was started before, by another process perhaps.

        Args:
            name: that ``train`` was given.
            count: how many processes one student has.
            acknowledged: for each slot that is still wanted, the number of the first event that is not stored.
            cpus, gpu_share: that each was started with.

        Returns:
            A task for each slot; none if one of the processes is gone.
        """
        try:
            actors = [_found(own_name) for own_name in _names(name, count)]
            places = get_placement_group(name) if count > 1 else None
        except ValueError:
            return {}
        actor_group = ActorGroup(actors, acknowledged, cpus, gpu_share, places)
        return {slot: Task(actor_group, slot, number, has_begun=True) for slot, number in acknowledged.items()}

    def end_others(self, names: Mapping[str, int]) -> int:
        """End all training but of these groups (name -> processes), and whatever builds caches for another engine.

        Returns:
            How many actors were ended; those that inferred for one of them end with it.
        """
        wanted = {own_name for name, count in names.items() for own_name in _names(name, count)}
        others = [name for name in list_named_actors() if name not in wanted]
        for name in others:
            # It may end by itself in between.
            with contextlib.suppress(ValueError):
                _end(_found(name))
        table: Any = placement_group_table  # not annotated
        for places in table().values():
            # Also those whose actors are gone: they keep their share of the machine.
            if places["state"] != "REMOVED" and places["name"] not in names:
                with contextlib.suppress(ValueError):
                    _remove(get_placement_group(places["name"]))
        return len(others)

    def close(self) -> None:
        """End Ray with every process that it has started."""
        with signals.waiting():
            ray.shutdown()
        self._head.close()

    def leave(self) -> None:
        """Let go of it: its actors go on, for whoever comes next."""
        with signals.waiting():
            ray.shutdown()
        self._head.leave()


def _remove(places: PlacementGroup) -> None:
    """Give back a share of the machine."""
    remove: Any = remove_placement_group
    remove(places)
