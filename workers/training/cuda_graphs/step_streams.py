"""CUDA streams on which the runs of a group replay their steps side by side."""

import contextlib
from collections.abc import Iterator

import torch

from workers.devices import new_stream


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
    def of(self, place: int, *, may_overlap: bool) -> Iterator[None]:
        """Launch what is inside on the stream of this run, or on the group's if it may not overlap with others."""
        if self._loaded is None or not may_overlap:
            yield
            return
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
