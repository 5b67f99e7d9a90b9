"""Batch loader: batches of a feed, normalised; their making is replayed from a CUDA graph where that can be."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.config.teacher import Preprocessing
from workers.objective.statistics import SharedTeacherTerms
from workers.training.batches import BatchInputs, TrainingBatch, to_input
from workers.training.cuda_graph import WARM_UP_STEPS, Recorder, cause_of
from workers.training.training_feed import TrainingFeed


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
            if self._warm_loads <= WARM_UP_STEPS:
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
            self._failure = f"making a batch cannot be recorded: {cause_of(error)}"
            return None
