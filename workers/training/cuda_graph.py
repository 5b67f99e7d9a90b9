"""CUDA graphs of a training step: recorded once, replayed as one launch, where a step is bound by its launches.

A step is recorded in two parts: the batch (gather, augment, normalise), once for all runs of a group, and each run's
own part (forward, loss, backward, update, sums). What changes from step to step reaches them through memory that stays
where it is: ``BatchInputs`` are copied there, the learning rate is a tensor. Each part has a memory pool of its own, so
that the parts of several runs may be replayed at once (``StepStreams``): one small student does not fill a GPU.

The first replays of every recording are made beside eager steps from the same state. A run whose step cannot be
recorded, or gives other weights, goes on eagerly and says why; one that insists on a graph (``on``) fails.
"""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workers.config.teacher import Preprocessing
from workers.devices import new_stream
from workers.errors import InvalidJob, first_line
from workers.events import Log
from workers.objective.statistics import SharedTeacherTerms
from workers.training.batches import BatchInputs, TrainingBatch, TrainingFeed, to_input
from workers.training.run import RunState
from workers.training.step import compute_step

# Before anything is recorded, on batches of the very size: optimizers make their state, libraries choose their kernels,
# and constants on the device are made once and kept. One that is made while a graph is recorded has no value yet.
_WARM_UP_STEPS = 3
# Of a run's first recording, so that inputs of the recorded step that were taken for constants are found out; of a
# later one, which differs in constants alone, the last of them.
_COMPARED_STEPS = 2
# Of how far a step moves. With a batch's rows, and so all sums, in another order the weights of resnet8, vgg8 and
# mobilenet_v2 ended 0.0007 to 0.015 of that apart on a CPU; stale inputs make it about 1.
_TOLERANCE = 0.05


def why_no_graph(wanted: Literal["auto", "on", "off"], device: torch.device, actors: int) -> str | None:
    """Why steps are not recorded at all; None if that is to be tried.

    Raises:
        InvalidJob: ``on`` where it cannot be.
    """
    reason = None
    if wanted == "off":
        return "the job asks for none"
    if device.type != "cuda":
        reason = f"the run trains on {device.type}"
    elif actors > 1:
        reason = f"{actors} processes train the student together"
    if reason is not None and wanted == "on":
        raise InvalidJob(f"training.cuda_graph is 'on', but {reason}: use 'auto' or 'off'")
    return reason


class Recorder:
    """Records pieces of work of one training process, into one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record what ``work`` launches, without running it.

        Raises:
            RuntimeError: it does what cannot be recorded, or there is no memory for it.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads (prefetch) may go on meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            work()
        return graph


@dataclass(frozen=True)
class LoadedBatch:
    """A batch as runs train on it.

    Attributes:
        inputs: normalised float32 [b, K, H, W] of each view.
        recordable: it lies where the next batch will, so that a run's step on it can be recorded.
        failure: why making a batch could not be recorded; None if it was, or was not tried.
    """

    batch: TrainingBatch
    inputs: tuple[Tensor, ...]
    recordable: bool = False
    failure: str | None = None

    def fresh(self, rows: Tensor | None = None) -> "LoadedBatch":
        """The same without what other runs have derived from it; of these rows of the split, where they are others."""
        views = tuple(replace(seen, known=SharedTeacherTerms()) for seen in self.batch.views)
        batch = replace(self.batch, rows=self.batch.rows if rows is None else rows, views=views)
        return replace(self, batch=batch)


class StepStreams:
    """CUDA streams on which the runs of a group replay their steps side by side, on batches of the group's own stream.

    Work of another stream than the current one is ordered by ``fork`` and ``join`` alone: what a run's step reads was
    launched before ``fork``, and what comes after ``join`` waits for all steps.

    Args:
        count: runs in the group; one has nobody to overlap with, and stays on the group's stream.
        device: that they train on; streams are CUDA's.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._device = device
        self._is_used = count > 1 and device.type == "cuda"
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._loaded: torch.cuda.Event | None = None

    def fork(self) -> None:
        """The batch is made: steps may begin."""
        if self._is_used:
            self._loaded = torch.cuda.current_stream().record_event()

    @contextlib.contextmanager
    def of(self, step: "StepGraph") -> Iterator[None]:
        """Launch what is inside on the stream of this run."""
        if self._loaded is None or not step.may_overlap:
            yield
            return
        place = step.place
        if place not in self._streams:
            self._streams[place] = new_stream(self._device)
        stream = self._streams[place]
        stream.wait_event(self._loaded)
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """Let the group's stream wait for all steps."""
        for stream in self._streams.values():
            torch.cuda.current_stream().wait_stream(stream)

    def close(self, place: int) -> None:
        """Forget a run that has ended; what it has launched is waited for, since its memory is free from now on."""
        stream = self._streams.pop(place, None)
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)


class BatchLoader:
    """Batches of a feed, normalised; the second part of their making is recorded if a recorder is given."""

    def __init__(self, feed: TrainingFeed, preprocessing: Preprocessing, recorder: Recorder | None) -> None:
        self._feed = feed
        self._preprocessing = preprocessing
        self._recorder = recorder
        self._warm_loads = 0
        self._warm_shapes: tuple[torch.Size, ...] = ()
        self._slot: BatchInputs | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made: LoadedBatch | None = None
        self._failure: str | None = None

    def load(self, inputs: BatchInputs) -> LoadedBatch:
        """The batch of these inputs."""
        if self._recorder is None:
            return self.load_eagerly(inputs)
        if self._slot is None:
            self._warm_loads = self._warm_loads + 1 if inputs.shapes == self._warm_shapes else 1
            self._warm_shapes = inputs.shapes
            if self._warm_loads <= _WARM_UP_STEPS:
                return self.load_eagerly(inputs)
            self._slot = inputs.clone()
            self._graph = self._record(self._slot)
        if self._graph is None or self._made is None or self._slot.shapes != inputs.shapes:
            return self.load_eagerly(inputs)
        self._slot.copy_from(inputs)
        self._graph.replay()
        return self._made.fresh(torch.from_numpy(inputs.rows))

    def batches(self, inputs: Iterable[BatchInputs]) -> Iterator[tuple[BatchInputs, LoadedBatch]]:
        """The batch of each of these inputs; on a CPU some are made at once, see ``TrainingFeed.batches_at_once``."""
        # What is recorded makes every batch in one place.
        at_once = self._feed.batches_at_once if self._recorder is None else 1
        remaining = iter(inputs)
        while some := list(itertools.islice(remaining, at_once)):
            made = deque((each, self.load(each)) for each in some)
            some.clear()
            while made:
                # Not kept here while it is trained on.
                yield made.popleft()

    def load_eagerly(self, inputs: BatchInputs) -> LoadedBatch:
        batch = self._feed.make(inputs)
        normalised = tuple(to_input(seen.images, self._preprocessing, channels_last=True) for seen in batch.views)
        return LoadedBatch(batch, normalised, failure=self._failure)

    def _record(self, slot: BatchInputs) -> torch.cuda.CUDAGraph | None:
        def work() -> None:
            self._made = replace(self.load_eagerly(slot), recordable=True)

        assert self._recorder is not None
        try:
            return self._recorder.record(work)
        except RuntimeError as error:
            self._failure = f"making a batch cannot be recorded: {_cause(error)}"
            return None


class StepGraph:
    """A run's step, recorded after a few eager ones; says in the run's log and environment what became of it.

    Args:
        reason: why nothing is to be recorded; None if it is.
    """

    def __init__(self, run_state: RunState, reason: str | None) -> None:
        self._run_state = run_state
        self._recorder = Recorder() if reason is None else None
        self._draws = False
        self._insists = run_state.training.cuda_graph == "on"
        self._warm_steps, self._warm_rows = 0, 0
        self._compared = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: tuple[float, ...] = ()
        if self._recorder is not None:
            # The next replay overwrites what the sums of a step are computed from.
            run_state.sums.is_deferred = False
        # A run that was resumed when all was trained keeps what was said of its training.
        run_state.environment.setdefault("cuda_graph", f"off: {reason or 'too few steps'}")

    @property
    def place(self) -> int:
        """Of the run in its group."""
        return self._run_state.place

    @property
    def may_overlap(self) -> bool:
        """Whether its steps may run beside those of other runs.

        Not those that draw random numbers: the replays of a process read seed and offset from one place. Nor those in
        float32: cuDNN's batch normalisation of channels-last pictures has blocks that wait for each other, and two
        such kernels, each with a part of the GPU, wait for ever (seen on an H200). In bfloat16 torch uses its own.
        """
        return self._graph is not None and not self._draws and self._run_state.precision == "bfloat16"

    def step(self, step: int, loaded: LoadedBatch) -> None:
        """One update, replayed if it can be."""
        run_state = self._run_state
        if loaded.failure is not None and self._recorder is not None:
            self._give_up(loaded.failure)
        if self._recorder is None:
            compute_step(run_state, loaded.batch, loaded.inputs)
            return
        if self._is_warming_up(len(loaded.batch.labels)) or not loaded.recordable:
            self._compute_apart(loaded)
            self._draws = self._draws or _has_drawn(run_state.device)
            return
        # Numbers that the method derives from the epoch are constants of the recorded step.
        key = run_state.method.epoch_key(run_state.epoch + 1)
        if self._graph is None or key != self._key:
            self._graph, self._key = self._record(self._recorder, loaded.fresh()), key
            self._compared = min(self._compared, _COMPARED_STEPS - 1)
            run_state.seed(step)
        if self._graph is None:
            self._compute_apart(loaded)
        elif self._compared < _COMPARED_STEPS:
            self._compare(self._graph, step, loaded)
        else:
            self._graph.replay()

    def _compute_apart(self, loaded: LoadedBatch) -> None:
        """An eager step that shares nothing it derives from the batch: other runs may compute on other streams."""
        own = loaded.fresh()
        compute_step(self._run_state, own.batch, own.inputs)

    def _is_warming_up(self, rows: int) -> bool:
        """Whether one more eager step is wanted first; counts those on batches of one size."""
        if self._warm_steps == _WARM_UP_STEPS:
            return False
        self._warm_steps = self._warm_steps + 1 if rows == self._warm_rows else 1
        self._warm_rows = rows
        return True

    def _record(self, recorder: Recorder, loaded: LoadedBatch) -> torch.cuda.CUDAGraph | None:
        try:
            return recorder.record(lambda: compute_step(self._run_state, loaded.batch, loaded.inputs))
        except RuntimeError as error:
            self._give_up(f"the step cannot be recorded: {_cause(error)}")
            return None

    def _compare(self, graph: torch.cuda.CUDAGraph, step: int, loaded: LoadedBatch) -> None:
        """Make the step eagerly and by replay, from the same state; keep the replay's if they agree."""
        run_state = self._run_state
        tensors = run_state.tensors
        before = _on_host(tensors)
        self._compute_apart(loaded)
        eager = _on_host(tensors)
        _restore(tensors, before)
        run_state.seed(step)
        graph.replay()
        replayed = _on_host(tensors)
        self._compared += 1
        for what in tensors:
            apart = _apart(before[what], eager[what], replayed[what])
            if not apart <= _TOLERANCE:
                _restore(tensors, eager)
                self._give_up(f"the {what} of a replayed step differ from an eager one's by {apart:.2g} of its change")
                return
        if self._compared == _COMPARED_STEPS and run_state.environment["cuda_graph"] != "on":
            run_state.environment["cuda_graph"] = "on"
            run_state.emit(Log(message="steps are replayed as a CUDA graph; the first agree with eager ones"))

    def _give_up(self, reason: str) -> None:
        if self._insists:
            raise InvalidJob(f"training.cuda_graph is 'on', but {reason}: use 'auto' to train without")
        self._graph, self._recorder = None, None
        self._run_state.environment["cuda_graph"] = f"off: {reason}"
        self._run_state.emit(Log(level="warning", message=f"trains without a CUDA graph: {reason}"))


def _has_drawn(device: torch.device) -> bool:
    """Whether anything was drawn on the device since the seed was set."""
    return device.type == "cuda" and bool(torch.cuda.default_generators[device.index].get_offset())


def _cause(error: RuntimeError) -> str:
    """What went wrong while recording; the end of a recording that failed raises an error of its own."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return first_line(cause)


def _on_host(tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    """Copies of them, so that comparing takes no memory of the device."""
    return {what: [tensor.detach().to("cpu", copy=True) for tensor in some] for what, some in tensors.items()}


def _restore(tensors: Mapping[str, Sequence[Tensor]], values: Mapping[str, Sequence[Tensor]]) -> None:
    with torch.no_grad():
        for what, some in tensors.items():
            for tensor, value in zip(some, values[what], strict=True):
                tensor.copy_(value)


def _apart(before: Sequence[Tensor], eager: Sequence[Tensor], replayed: Sequence[Tensor]) -> float:
    """How far two results are apart, as a share of how far the step has moved, by the norm over all tensors.

    NaN if one has NaN or infinity where the other has not.
    """
    apart = changed = size = 0.0
    for old, one, other in zip(before, eager, replayed, strict=True):
        alike = (one == other) | (one.isnan() & other.isnan())
        apart += float(torch.where(alike, 0.0, one.double() - other.double()).square().sum())
        changed += float(torch.where(one.isfinite(), one.double() - old.double(), 0.0).square().sum())
        size += float(torch.where(one.isfinite(), one.double(), 0.0).square().sum())
    return math.sqrt(apart) / max(math.sqrt(changed), 1e-6 * math.sqrt(size), 1e-30)
