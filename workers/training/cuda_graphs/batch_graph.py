"""Batch graph: the making of a group's batches, recorded in a CUDA graph after a few eager ones, and replayed."""

from dataclasses import replace

import torch

from workers.training.cuda_graphs.cuda_graph import WARM_UP_STEPS, Recorder, cause_of
from workers.training.feed.batches import BatchInputs, LoadedBatch
from workers.training.training_feed import TrainingFeed


class BatchGraph:
    """``TrainingFeed.load``, recorded: from then on every batch lies where the last one did."""

    def __init__(self, feed: TrainingFeed) -> None:
        self._feed = feed
        self._recorder = Recorder()
        self._warm_loads = 0
        self._warm_shapes: tuple[torch.Size, ...] = ()
        self._slot: BatchInputs | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made: LoadedBatch | None = None
        self._failure: str | None = None

    def load(self, inputs: BatchInputs) -> LoadedBatch:
        """The batch of these inputs, normalised; of the size that was recorded, by a replay."""
        if self._slot is None:
            self._warm_loads = self._warm_loads + 1 if inputs.shapes == self._warm_shapes else 1
            self._warm_shapes = inputs.shapes
            if self._warm_loads <= WARM_UP_STEPS:
                return self._feed.load(inputs)
            self._slot = inputs.clone()
            self._graph = self._record(self._slot)
        if self._graph is None or self._made is None or self._slot.shapes != inputs.shapes:
            return replace(self._feed.load(inputs), failure=self._failure)
        self._slot.copy_from(inputs)
        self._graph.replay()
        return self._made.fresh(torch.from_numpy(inputs.rows))

    def _record(self, slot: BatchInputs) -> torch.cuda.CUDAGraph | None:
        def work() -> None:
            self._made = replace(self._feed.load(slot), recordable=True)

        try:
            return self._recorder.record(work)
        except RuntimeError as error:
            self._failure = f"making a batch cannot be recorded: {cause_of(error)}"
            return None
