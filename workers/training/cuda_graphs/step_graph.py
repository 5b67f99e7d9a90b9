"""Step graph: a run's step, recorded in a CUDA graph after a few eager ones, compared with them, and replayed."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from workers.errors import InvalidJob
from workers.events import Log
from workers.training.cuda_graphs.cuda_graph import WARM_UP_STEPS, Recorder, cause_of
from workers.training.feed.batches import LoadedBatch
from workers.training.run import RunState

# Of a run's first recording, so that inputs of the recorded step that were taken for constants are found out; of a
# later one, which differs in constants alone, the last of them.
_COMPARED_STEPS = 2

# Of how far a step moves. With a batch's rows, and so all sums, in another order the weights of resnet8, vgg8 and
# mobilenet_v2 ended 0.0007 to 0.015 of that apart on a CPU; stale inputs make it about 1.
_TOLERANCE = 0.05


ComputeStep = Callable[[RunState, LoadedBatch], None]


class StepGraph:
    """A run's step, recorded after a few eager ones; says in the run's log and environment what became of it.

    Args:
        compute: launches a step on a batch.
    """

    def __init__(self, run_state: RunState, compute: ComputeStep) -> None:
        self._run_state = run_state
        self._compute = compute
        self._recorder: Recorder | None = Recorder()
        self._draws = False
        self._insists = run_state.training.cuda_graph == "on"
        self._warm_steps, self._warm_rows = 0, 0
        self._compared = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: tuple[float, ...] = ()
        # The next replay overwrites what the sums of a step are computed from.
        run_state.sums.is_deferred = False

    @property
    def place(self) -> int:
        """Place of the run in its group."""
        return self._run_state.place

    def may_overlap(self, loaded: LoadedBatch) -> bool:
        """Whether its step on this batch may run beside those of other runs: it is a replay and nothing else.

        What is recorded, compared or computed eagerly allocates memory, which torch keeps for each stream. Not those
        that draw random numbers: the replays of a process read seed and offset from one place. Nor those in float32:
        cuDNN's batch normalisation of channels-last pictures has blocks that wait for each other, and two such
        kernels, each with a part of the GPU, would wait for ever: the likely cause of a standstill that was seen on an
        H200. In bfloat16 torch uses its own.
        """
        is_replay = loaded.recordable and self._compared == _COMPARED_STEPS and self._key == self._key_now
        return is_replay and self._graph is not None and not self._draws and self._run_state.precision == "bfloat16"

    @property
    def _key_now(self) -> tuple[float, ...]:
        """Numbers that the method derives from the epoch: constants of the recorded step."""
        return self._run_state.method.epoch_key(self._run_state.epoch + 1)

    def step(self, step: int, loaded: LoadedBatch) -> None:
        """Make one update, replayed if it can be."""
        run_state = self._run_state
        if loaded.failure is not None and self._recorder is not None:
            self._give_up(loaded.failure)
        if self._recorder is None:
            self._compute(run_state, loaded)
            return
        if self._is_warming_up(len(loaded.batch.labels)) or not loaded.recordable:
            self._compute(run_state, loaded)
            self._draws = self._draws or _has_drawn(run_state.device)
            return
        key = self._key_now
        if self._graph is None or key != self._key:
            self._graph, self._key = self._record(self._recorder, loaded.fresh()), key
            self._compared = min(self._compared, _COMPARED_STEPS - 1)
            run_state.seed(step)
        if self._graph is None:
            self._compute(run_state, loaded)
        elif self._compared < _COMPARED_STEPS:
            self._compare(self._graph, step, loaded)
        else:
            self._graph.replay()

    def _is_warming_up(self, rows: int) -> bool:
        """Whether one more eager step is wanted first; counts those on batches of one size."""
        if self._warm_steps == WARM_UP_STEPS:
            return False
        self._warm_steps = self._warm_steps + 1 if rows == self._warm_rows else 1
        self._warm_rows = rows
        return True

    def _record(self, recorder: Recorder, loaded: LoadedBatch) -> torch.cuda.CUDAGraph | None:
        try:
            return recorder.record(lambda: self._compute(self._run_state, loaded))
        except RuntimeError as error:
            self._give_up(f"the step cannot be recorded: {cause_of(error)}")
            return None

    def _compare(self, graph: torch.cuda.CUDAGraph, step: int, loaded: LoadedBatch) -> None:
        """Make the step eagerly and by replay, from the same state; keep the replay's if they agree."""
        run_state = self._run_state
        tensors = run_state.tensors
        before = _on_host(tensors)
        self._compute(run_state, loaded)
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

    def forget(self) -> None:
        """Let go of what was recorded."""
        self._graph = None

    def _give_up(self, reason: str) -> None:
        if self._insists:
            raise InvalidJob(f"training.cuda_graph is 'on', but {reason}: use 'auto' to train without")
        self._graph, self._recorder = None, None
        self._run_state.environment["cuda_graph"] = f"off: {reason}"
        self._run_state.emit(
            Log(level="warning", message=f"trains without a CUDA graph, in {self._run_state.precision}: {reason}")
        )


def _has_drawn(device: torch.device) -> bool:
    """Whether anything was drawn on the device since the seed was set."""
    return device.type == "cuda" and bool(torch.cuda.default_generators[device.index].get_offset())


def _on_host(tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    """Copies of them, so that comparing takes no memory of the device."""
    return {what: [tensor.detach().to("cpu", copy=True) for tensor in some] for what, some in tensors.items()}


def _restore(tensors: Mapping[str, Sequence[Tensor]], values: Mapping[str, Sequence[Tensor]]) -> None:
    with torch.no_grad():
        for what, some in tensors.items():
            for tensor, value in zip(some, values[what], strict=True):
                tensor.copy_(value)


def _apart(before: Sequence[Tensor], eager: Sequence[Tensor], replayed: Sequence[Tensor]) -> float:
    """Measure how far two results are apart, as a share of how far the step has moved, by the norm over all tensors.

    NaN if one has NaN or infinity where the other has not.
    """
    apart = changed = size = 0.0
    for old, one, other in zip(before, eager, replayed, strict=True):
        alike = (one == other) | (one.isnan() & other.isnan())
        apart += float(torch.where(alike, 0.0, one.double() - other.double()).square().sum())
        changed += float(torch.where(one.isfinite(), one.double() - old.double(), 0.0).square().sum())
        size += float(torch.where(one.isfinite(), one.double(), 0.0).square().sum())
    return math.sqrt(apart) / max(math.sqrt(changed), 1e-6 * math.sqrt(size), 1e-30)
