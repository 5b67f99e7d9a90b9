"""Pictures and cached logits of a split: on the device if they fit there, else mapped on the host.

Legend: N samples, B of a batch, C classes, H x W pixels, K channels, S statistics.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader
from workers.data.prepared import Dataset, DecodedDataset, SubsetDataset

# Left free on a GPU for weights, activations and the other runs that share it.
_RESIDENT_SHARE = 0.25

# Where logits come from the disk, it is told so early what will be wanted.
_BATCHES_AHEAD = 4


def _fits(tensor_bytes: int, device: torch.device) -> bool:
    """Whether a tensor may stay on a GPU: in a quarter of what is free there and within the process's own limit."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return tensor_bytes < _RESIDENT_SHARE * min(free, allowed)


class SplitPictures:
    """uint8 pictures and labels of one split, on the device when they fit, else mapped, or decoded when asked for.

    Attributes:
        resident_NHWK: uint8 [N, H, W, K] on the device; None if they are somewhere else.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset = dataset
        self.resident_NHWK: Tensor | None = None
        if isinstance(dataset, SubsetDataset) and isinstance(dataset.base, DecodedDataset):
            row_bytes = int(np.prod(dataset.picture_shape))
            if device.type != "cpu" and _fits(dataset.samples * row_bytes, device):
                self.resident_NHWK = torch.from_numpy(dataset.take(slice(None))).to(device)
        elif isinstance(dataset, DecodedDataset):
            mapped_NHWK = torch.from_numpy(np.asarray(dataset.images_NHWC))
            if device.type == "cpu":
                self.resident_NHWK = mapped_NHWK
            elif _fits(mapped_NHWK.nbytes, device):
                self.resident_NHWK = mapped_NHWK.to(device)


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
        if _fits(spec.samples * spec.row_bytes, device):
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
