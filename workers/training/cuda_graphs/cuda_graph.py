"""CUDA graphs of a training step: recorded once, replayed as one launch, where a step is bound by its launches.

A step is recorded in two parts: the batch (gather, augment, normalise), once for all runs of a group, and each run's
own part (forward, loss, backward, update, sums). What changes from step to step reaches them through memory that stays
where it is: ``BatchInputs`` are copied there, the learning rate is a tensor. Each part has a memory pool of its own, so
that the parts of several runs may be replayed at once (``StepStreams``): one small student does not fill a GPU.

The first replays of every recording are made beside eager steps from the same state. A run whose step cannot be
recorded, or gives other weights, goes on eagerly and says why; one that insists on a graph (``on``) fails.
"""

from collections.abc import Callable
from typing import Literal

import torch

from workers.errors import InvalidJob, first_line

# Before anything is recorded, on batches of the very size: optimizers make their state, libraries choose their kernels,
# and constants on the device are made once and kept. One that is made while a graph is recorded has no value yet.
WARM_UP_STEPS = 3


def why_no_graph(wanted: Literal["auto", "on", "off"], device: torch.device, actors: int) -> str | None:
    """Explain why steps are not recorded at all; None if that is to be tried.

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


def cause_of(error: RuntimeError) -> str:
    """Return the first error while recording, in a line; the end of a recording that failed raises one of its own."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return first_line(cause)
