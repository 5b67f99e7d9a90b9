"""Ray, and nothing else: the plain functions of ``caching`` and ``train`` as actors with resources.

The only file that imports ray. It decides nothing about jobs: it starts an actor, passes its events on, tells whether
it finished, raised, stopped or vanished, and ends it. One run is one actor with its share of the CPUs or of a GPU;
runs that share their batches can share an actor, and a large student can have several. The caches of a job are one
coordinating actor, which fans blocks out to inference actors. Any of them may die at any moment: committed blocks and
checkpoints stay, the caller learns that the actor vanished.

Training actors have names and belong to nobody: when the engine is killed they go on, and its successor finds them by
name. What they have told since is kept until somebody acknowledges it. The actors of a cache end with their engine, or
when another one leads; the blocks they have committed are there.

Facts of Ray that shape this file: without an address ``ray.init`` joins whatever cluster it finds; a driver that is
without Ray for a minute is aborted; resources are logical, memory is not limited by them.
"""

import contextlib
import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from store import CacheWriter
from workers import caching, logs, signals
from workers.artifacts import ARTIFACTS
from workers.config import Folders, InferenceOrder, JobSpec, TrainingOrder
from workers.errors import Stopped, WorkerError
from workers.events import Emit, InferenceProgress, Log, ShouldStop, Stage, ignore
from workers.learner import Member
from workers.logs import RunLog
from workers.outcomes import Mailbox, Numbered, Outcome, WorkFailed, outcome, outcome_of
from workers.ray_head import ENVIRONMENT, RayHead
from workers.teacher import Teacher
from workers.train import train_group

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

ACTOR_LOSSES_MAX = 3
# Blocks of one call: enough to overlap loading, inference and writing, few enough to share work evenly.
_BLOCKS_PER_CALL = 4
_WAITING_S = 5.0
_NAMESPACE = "retort"
# An actor that Ray cannot reach may come back; after so long it counts as gone.
_UNAVAILABLE_S = 20.0
# One that is there and does not answer is stopped or stuck in native code; answering takes another of its threads.
_SILENT_S = 600.0


class WorkerLost(WorkerError):
    """Inference actors died again and again; what they had committed stays."""


# -------------------------------------------------------------------------------------------- actors


class _Actor:
    """What every actor answers beside its work (which runs in another of its threads).

    Args:
        pieces: of work that it does at once, each with its own mailbox.
    """

    def __init__(self, pieces: int = 1) -> None:
        logs.configure("info")
        self._mails = [Mailbox() for _ in range(pieces)]

    def answer(self, piece: int, acknowledged: int) -> tuple[list[Numbered], Outcome | None]:
        """Events from number ``acknowledged`` on (those before it are forgotten), and how the work has ended."""
        return self._mails[piece].take(acknowledged)

    def stop(self, piece: int) -> None:
        self._mails[piece].stopping.set()

    def pause(self, piece: int) -> None:
        self._mails[piece].pausing.set()


class _TrainingActor(_Actor):
    """It works from its birth on: whoever finds it by name need not know whether it was told to."""

    def __init__(self, orders_json: list[str]) -> None:
        super().__init__(len(orders_json))
        threading.Thread(target=self._work, args=(orders_json,), name="training", daemon=True).start()

    def _work(self, orders_json: list[str]) -> None:
        run_logs: list[RunLog] = []
        try:
            orders = [TrainingOrder.model_validate_json(order) for order in orders_json]
            # Of several processes of one student the first writes.
            run_logs += [RunLog(order.folder, order.folder / ARTIFACTS, order.rank == 0) for order in orders]
            logs.speak_for(run_logs)
            members = [
                Member(order, log.emitting(mail.emit), mail.stopping.is_set, mail.pausing.is_set)
                for order, log, mail in zip(orders, run_logs, self._mails, strict=True)
            ]
            for place, how in train_group(members):
                self._end(place, how, run_logs)
        except BaseException as error:
            # Whatever it is, a run without an outcome would never end.
            why = error if isinstance(error, Exception) else WorkerError(f"its process cannot go on: {error!r}")
            for place, mail in enumerate(self._mails):
                if mail.outcome is None:
                    self._end(place, why, run_logs)

    def _end(self, place: int, how: dict[str, Any] | Exception, run_logs: Sequence[RunLog]) -> None:
        # The log first: once the outcome is there, this process may be ended.
        with run_logs[place].ending(how) if run_logs else contextlib.nullcontext():
            told = outcome(how)
        self._mails[place].outcome = told


class _InferenceActor(_Actor):
    """Infers blocks of one cache with a session that lives as long as the actor."""

    def __init__(self, order_json: str) -> None:
        super().__init__()
        self._order_json = order_json
        self._teacher: Teacher | None = None

    def work(self, blocks: list[int]) -> Outcome:
        return outcome_of(lambda: self._infer(blocks))

    def _infer(self, blocks: list[int]) -> dict[str, Any]:
        order = InferenceOrder.model_validate_json(self._order_json)
        if self._teacher is None:
            self._teacher = caching.open_teacher(order)
        # The coordinator tells of progress, for all actors together.
        caching.infer_with(self._teacher, order, blocks, ignore, self._mails[0].stopping.is_set)
        return {"provider": self._teacher.provider, "reason": self._teacher.provider_reason}


class _CachesActor(_Actor):
    """Prepares the data and completes the caches of one job; its inference is fanned out."""

    def work(
        self, job_json: str, folders_json: str, cpus: int, actors: int, gpu_share: float, quota_bytes: int
    ) -> None:
        self._mails[0].outcome = outcome_of(
            lambda: self._build(job_json, folders_json, cpus, actors, gpu_share, quota_bytes)
        )

    def _build(
        self, job_json: str, folders_json: str, cpus: int, actors: int, gpu_share: float, quota_bytes: int
    ) -> dict[str, Any]:
        job = JobSpec.model_validate_json(job_json)
        folders = Folders.model_validate_json(folders_json)
        emit, should_stop = self._mails[0].emit, self._mails[0].stopping.is_set

        def fan_out(order: InferenceOrder, blocks: Sequence[int], emit: Emit, should_stop: ShouldStop) -> None:
            _Fan(order, list(blocks), emit, should_stop, actors, gpu_share).run()

        # The contract check is some hundred rows, here, on the CPU: Ray shows no GPU to an actor without a share.
        plan = caching.plan_caches(job, folders, emit, should_stop, threads=cpus)
        # Kept for as long as this process lives, so that whoever waits for its outcome can take over.
        self._reservation = caching.reserve_caches(plan, folders, quota_bytes, emit)
        forwards = caching.build_caches(plan, folders, emit, should_stop, threads=1, infer=fan_out)
        emit(Stage(stage="training"))
        return {
            "plan": plan.model_dump(mode="json"),
            "teacher_forwards": forwards,
            "teacher_forwards_avoided": caching.forwards_avoided(job, plan, forwards),
            "teacher_accuracy": caching.teacher_accuracy(plan, folders),
        }


class _Method(Protocol):
    def remote(self, *arguments: object) -> "ray.ObjectRef[Any]": ...


class _Handle(Protocol):
    """What ray gives for an actor; its own annotations know no methods."""

    work: _Method
    answer: _Method
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
    # Three threads: the work, a question for events, a wish to stop.
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


class Pile:
    """The blocks that nobody has in hand, in pieces of a call.

    Args:
        size: blocks of a piece.
    """

    def __init__(self, blocks: Sequence[int], size: int) -> None:
        self._pieces = deque(list(blocks[start : start + size]) for start in range(0, len(blocks), size))
        self._losses: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._pieces)

    def take(self) -> list[int]:
        """The next piece."""
        return self._pieces.popleft()

    def give_back(self, piece: list[int], why: str) -> None:
        """Whoever had this piece has died. It is the next one again: where everybody dies, that is soon known.

        Raises:
            WorkerLost: too many have died of this very piece. Those of others do not count: a cache may take hours.
        """
        self._losses[piece[0]] += 1
        if self._losses[piece[0]] > ACTOR_LOSSES_MAX:
            raise WorkerLost(
                f"{self._losses[piece[0]]} inference actors died with the same blocks, the last one with: {why}. "
                "Committed blocks are kept; look for a full memory or a failing GPU and submit the job again"
            )
        self._pieces.appendleft(piece)


@dataclass
class _Hand:
    """One inference actor and what it is doing."""

    actor: _Handle
    # Answered once the actor has its share of the machine; until then it is given nothing to do.
    born: Any
    blocks: list[int] = field(default_factory=list)
    reference: Any = None


class _Fan:
    """Shares the blocks of one cache among inference actors; a dead actor's blocks go back to the pile."""

    def __init__(
        self,
        order: InferenceOrder,
        blocks: list[int],
        emit: Emit,
        should_stop: ShouldStop,
        actors: int,
        gpu_share: float,
    ) -> None:
        self._order = order
        self._emit = emit
        self._should_stop = should_stop
        self._gpu_share = gpu_share
        self._count = max(1, min(actors, len(blocks)))
        self._pile = Pile(blocks, max(1, min(_BLOCKS_PER_CALL, len(blocks) // self._count)))
        self._provider_told = False
        if not gpu_share:
            # A small cache has fewer blocks than there are cores; then each actor gets several.
            self._order = order.model_copy(update={"threads": max(1, actors // self._count)})
        spec = order.spec
        self._writer = CacheWriter(order.folders.caches, spec)
        # Not by the blocks given: those may be some of the missing ones.
        missing = spec.rows_in(self._writer.pending_blocks())
        self._before = self._told = spec.views * spec.samples - missing
        self._started = time.monotonic()
        self._look_again = self._started
        self._waiting_told = False

    def run(self) -> None:
        hands = [self._new_hand() for _ in range(self._count)]
        try:
            while True:
                for hand in hands:
                    if hand.reference is None and self._pile and _is_ready(hand.born):
                        hand.blocks = self._pile.take()
                        hand.reference = hand.actor.work.remote(hand.blocks)
                busy = {hand.reference: hand for hand in hands if hand.reference is not None}
                if not busy and not self._pile:
                    return
                self._tell_of_waiting(busy)
                ready, _ = ray.wait(list(busy) or [hand.born for hand in hands], num_returns=1, timeout=0.25)
                for reference in ready:
                    if reference in busy:
                        self._finish(busy[reference], hands)
                self._tell()
                if self._should_stop():
                    self._stop(hands)
        finally:
            for hand in hands:
                _end(hand.actor)
            self._look_again = 0.0
            self._tell()

    def _new_hand(self) -> _Hand:
        cpus = 0.0 if self._gpu_share else 1.0
        actor = _start(_InferenceActor, self._order.model_dump_json(), cpus=cpus, gpus=self._gpu_share)
        return _Hand(actor, born=actor.answer.remote(0, 0))

    def _finish(self, hand: _Hand, hands: list[_Hand]) -> None:
        """Take a call's outcome; a dead actor is replaced."""
        try:
            outcome = ray.get(hand.reference)
        except ray.exceptions.RayError as error:
            self._pile.give_back(hand.blocks, _first_line(error))
            self._emit(Log(level="warning", message=f"an inference actor died and is replaced: {_first_line(error)}"))
            hands[hands.index(hand)] = self._new_hand()
            return
        hand.reference, hand.blocks = None, []
        if outcome.kind == "stopped":
            raise Stopped(outcome.message)
        if outcome.kind == "failed":
            raise WorkFailed(outcome)
        if not self._provider_told:
            self._provider_told = True
            provider, reason = outcome.value["provider"], outcome.value["reason"]
            is_fallback = self._gpu_share > 0 and "CUDA" not in provider
            level: Literal["info", "warning"] = "warning" if is_fallback else "info"
            self._emit(Log(level=level, message=f"inference on {provider}: {reason}"))

    def _tell_of_waiting(self, busy: Mapping[Any, _Hand]) -> None:
        if not busy and not self._waiting_told and time.monotonic() - self._started > _WAITING_S:
            self._waiting_told = True
            kind = "share of a GPU" if self._gpu_share else "CPU core"
            self._emit(Log(message=f"inference waits for a free {kind}: other runs have them all"))

    def _tell(self) -> None:
        """One progress event for all actors together, when another block is committed."""
        looked = time.monotonic()
        if looked < self._look_again:
            return
        spec = self._order.spec
        pending = spec.rows_in(self._writer.pending_blocks())
        done = spec.views * spec.samples - pending
        # Looking reads a record for every block: of very many blocks, less often.
        self._look_again = looked + max(0.5, 20 * (time.monotonic() - looked))
        if done == self._told:
            return
        self._told = done
        rate = (done - self._before) / (time.monotonic() - self._started)
        self._emit(
            InferenceProgress(
                cache=spec.key,
                split=spec.split,
                rows_done=done,
                rows_total=spec.views * spec.samples,
                rows_inferred=done - self._before,
                rows_per_s=rate,
                eta_s=pending / rate if rate > 0 else None,
            )
        )

    def _stop(self, hands: list[_Hand]) -> None:
        for hand in hands:
            hand.actor.stop.remote(0)
        raise Stopped("inference was stopped; committed blocks are kept")


def _is_ready(reference: "ray.ObjectRef[Any]") -> bool:
    ready, _ = ray.wait([reference], timeout=0)
    return bool(ready)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ------------------------------------------------------------------------------------------- cluster


class Crew:
    """The actors behind one task or, where runs share their batches, behind several; ended with the last of these.

    Args:
        actors: the first of several processes of one student tells, and its wish to stop is the others'.
        pieces: the tasks that they do at once.

    Attributes:
        size: how many shares of the machine they take.
        tasks: how many tasks they were given.
    """

    def __init__(
        self, actors: Sequence[_Handle], pieces: Collection[int], places: PlacementGroup | None = None
    ) -> None:
        self.size, self.tasks = len(actors), len(pieces)
        self.first = actors[0]
        self._actors = actors
        self._places = places
        self._open = set(pieces)

    def close(self, piece: int) -> None:
        """One of its tasks is over or unwanted; the processes end when all are."""
        self._open.discard(piece)
        if self._open:
            return
        for actor in self._actors:
            _end(actor)
        if self._places is not None:
            _remove(self._places)


class Task:
    """A piece of work on the cluster, seen from outside. Its events come in order, and again until acknowledged.

    Args:
        crew: who does it.
        piece: which of the crew's tasks it is.
        acknowledged: the number of the first event that is wanted.
        has_begun: whether it is known to have its share of the machine; one that has not need not be asked to stop.
    """

    def __init__(self, crew: Crew, piece: int = 0, acknowledged: int = 0, has_begun: bool = False) -> None:
        self.crew = crew
        self._piece = piece
        self._acknowledged = acknowledged
        self._asked: ray.ObjectRef[tuple[list[Numbered], Outcome | None]] | None = None
        self._asked_s = 0.0
        self._unavailable_since: float | None = None
        self._has_begun = has_begun
        self._is_closed = False

    def poll(self) -> tuple[list[Numbered], Outcome | None]:
        """(number, event) pairs that were not acknowledged, and how the work ended once it has. Never waits.

        An actor that is gone is ``vanished``; events that it had not been asked for are gone with it.
        """
        if self._is_closed:
            return [], Outcome(kind="vanished", error_type="Closed", message="it was ended from outside")
        try:
            if self._asked is None:
                self._asked = self.crew.first.answer.remote(self._piece, self._acknowledged)
                self._asked_s = time.monotonic()
            if not _is_ready(self._asked):
                is_silent = self._has_begun and time.monotonic() - self._asked_s > _SILENT_S
                return [], _vanished(TimeoutError(f"no answer in {_SILENT_S:.0f} s")) if is_silent else None
            asked, self._asked = self._asked, None
            events, outcome = ray.get(asked)
        except ray.exceptions.ActorUnavailableError as error:
            now = time.monotonic()
            self._unavailable_since = self._unavailable_since or now
            return [], _vanished(error) if now - self._unavailable_since > _UNAVAILABLE_S else None
        except ray.exceptions.RayError as error:
            return [], _vanished(error)
        self._has_begun, self._unavailable_since = True, None
        return events, outcome

    def acknowledge(self, events: Sequence[Numbered]) -> None:
        """These need not be told again: they are stored."""
        if events:
            self._acknowledged = events[-1][0] + 1

    def stop(self) -> None:
        """Ask it to stop, without waiting: at its next batch, or at once if it still waits for its share.

        An actor that is gone is no error here; ``poll`` tells.
        """
        self.crew.first.stop.remote(self._piece)
        if not self._has_begun:
            self.close()

    def pause(self) -> None:
        """Ask it to leave a checkpoint and end as ``paused``, as ``stop`` does."""
        self.crew.first.pause.remote(self._piece)
        if not self._has_begun:
            self.close()

    def close(self) -> None:
        """End its process, whatever that is doing, unless it still works on another task."""
        self._is_closed = True
        self.crew.close(self._piece)


def _vanished(error: BaseException) -> Outcome:
    return Outcome(kind="vanished", error_type=type(error).__name__, message=_first_line(error))


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

    def build_caches(self, job: JobSpec, folders: Folders, gpu_share: float = 1.0, quota_bytes: int = 0) -> Task:
        """Prepare the data and complete the caches of a job, with one inference actor per GPU, or per core without any.

        The outcome's value holds ``plan`` (``caching.CachePlan``), ``teacher_forwards``,
        ``teacher_forwards_avoided`` and ``teacher_accuracy``. Until ``Task.close`` neither cache is evicted.

        Args:
            quota_bytes: see ``caching.reserve_caches``.
        """
        # The name is for end_others alone: an engine that was stopped leaves it behind.
        actor = _start(_CachesActor, cpus=0.0, gpus=0.0, name=f"caches-{secrets.token_hex(8)}")
        actors = self.gpus or self.cpus
        share = gpu_share if self.gpus else 0.0
        order = (job.model_dump_json(), folders.model_dump_json(), self.cpus, actors, share, quota_bytes)
        actor.work.remote(*order)
        return Task(Crew([actor], [0]))

    def train(self, name: str, orders: Sequence[TrainingOrder], cpus: float, gpu_share: float) -> list[Task]:
        """Train runs that share their batches, in one process; it waits until its share of the machine is free.

        A run with several ``training.actors`` is alone and has that many processes, each with such a share, in a
        placement group.

        Args:
            name: by which ``attach`` finds it; never used before.
            orders: see ``train.train_group``.
            cpus, gpu_share: of each process.

        Returns:
            A task for each run, whose value is result.json.
        """
        gpus = gpu_share if self.gpus else 0.0
        count = orders[0].training.actors
        if count == 1:
            told = [order.model_dump_json() for order in orders]
            actor = _start(_TrainingActor, told, cpus=cpus, gpus=gpus, name=name, outlives=True)
            crew = Crew([actor], range(len(orders)))
            return [Task(crew, piece) for piece in range(len(orders))]
        [order] = orders
        bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
        places = placement_group([bundle] * count, strategy="PACK", name=name, lifetime="detached")
        actors = []
        for rank, own_name in enumerate(_names(name, count)):
            place = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=rank)
            told = [order.model_copy(update={"rank": rank}).model_dump_json()]
            actors.append(_start(_TrainingActor, told, cpus=cpus, gpus=gpus, name=own_name, outlives=True, place=place))
        return [Task(Crew(actors, [0], places))]

    def attach(self, name: str, count: int, acknowledged: Mapping[int, int]) -> dict[int, Task]:
        """The tasks of a crew that was started before, by another process perhaps.

        Args:
            name: that ``train`` was given.
            count: how many processes one student has.
            acknowledged: for each piece that is still wanted, the number of the first event that is not stored.

        Returns:
            A task for each piece; none if one of the processes is gone.
        """
        try:
            actors = [_found(own_name) for own_name in _names(name, count)]
            places = get_placement_group(name) if count > 1 else None
        except ValueError:
            return {}
        crew = Crew(actors, acknowledged, places)
        return {piece: Task(crew, piece, number, has_begun=True) for piece, number in acknowledged.items()}

    def end_others(self, names: Mapping[str, int]) -> int:
        """End all training but of these crews (name -> processes), and whatever builds caches for another engine.

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
