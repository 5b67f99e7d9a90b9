"""The teacher's logits and statistics of one view, as batches take them: on the device, or mapped on the host.

Shapes as in ``batches``.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader
from workers.training.feed import on_device

# Where logits come from the disk, it is told so early what will be wanted.
_BATCHES_AHEAD = 4


class TeacherRows:
    """The teacher's logits and statistics of one view.

    Attributes:
        names: of the statistics.
        resident_NC: logits [N, C] of the current view on the device, always at one address; None if they are mapped.
    """

    def __init__(self, reader: CacheReader, device: torch.device) -> None:
        self.reader = reader
        self.names = tuple(reader.statistics(0))
        spec = reader.spec
        self.resident_NC: Tensor | None = None
        if on_device.fits(spec.samples * spec.row_bytes, device):
            dtype = torch.from_numpy(np.empty(0, spec.numpy_dtype)).dtype
            self.resident_NC = torch.empty((spec.samples, spec.classes), dtype=dtype, device=device)
        self._view = -1

    def begin(self, view: int, order_N: NDArray[np.int64]) -> None:
        """Make ``order_N`` of ``view`` current; on a GPU the view is loaded, and verified, when it changes."""
        if self.resident_NC is None:
            self._map = self.reader.row_map(view, order_N)
        elif view != self._view:
            self.resident_NC.copy_(torch.from_numpy(self.reader.logits(view)))
        self._view = view

    def statistics(self, order_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """[S, N] in this order, as ``names`` has them."""
        values = self.reader.statistics(self._view)
        return np.stack([values[name][order_N] for name in self.names])

    def gather(self, start: int, stop: int) -> Tensor:
        """Mapped logits [B, C] of positions ``start`` to ``stop`` of the order, on the host."""
        self._map.prefetch(start, stop + _BATCHES_AHEAD * (stop - start))
        return torch.from_numpy(self._map.gather(start, stop))
