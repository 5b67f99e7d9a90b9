"""Counters of batch normalisation, kept on the host while a network trains."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class BatchCounters:
    """Counters of batch normalisation (``num_batches_tracked``), kept on the host while the network trains.

    On the device each would be a launch in every step, for a number that nothing reads: the running statistics have a
    fixed momentum. A layer without one does read its counter, and keeps it.

    Attributes:
        steps: forward passes in training so far.
    """

    def __init__(self, network: nn.Module) -> None:
        self.steps = 0
        norms = (m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d))
        self._norms = [norm for norm in norms if norm.momentum is not None and norm.num_batches_tracked is not None]
        self._detach()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Within, the network has its counters, to be read or loaded."""
        self.attach()
        yield
        if self._norms:
            self.steps = int(self._norms[0].num_batches_tracked or 0)
        self._detach()

    def attach(self) -> None:
        """Give the network its counters back."""
        for norm in self._norms:
            norm.num_batches_tracked = torch.tensor(self.steps)

    def _detach(self) -> None:
        for norm in self._norms:
            norm.num_batches_tracked = None
