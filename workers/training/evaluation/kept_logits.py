"""Logits of a student on a whole split, kept on the host while and after it is evaluated.

What is kept is less each row's largest logit, as float16: 2 bytes x rows x classes, 100 MB for 50,000 rows of 1,000
classes. Near 0, where the largest logits of a row are, float16 is fine enough to keep their order. From the first value
on that is beyond its range it is float32, twice as much; rows that came before have float16's digits.

Shapes: N rows of a split, B batch, C classes.
"""

import torch
from torch import Tensor

from workers.training.optimization.distributed import Replicas

# Logits that several processes gather at once: 4 MiB of float32.
_GATHERED_CELLS = 1 << 20
_HALF_MIN = torch.finfo(torch.float16).min


class KeptLogits:
    """Logits and predicted classes of this process's share of a split, on the host."""

    def __init__(self, samples: int, classes: int) -> None:
        self._below_NC = torch.zeros(samples, classes, dtype=torch.float16)
        self._predicted_N = torch.zeros(samples, dtype=torch.int64)

    def add(self, rows_B: Tensor, logits_BC: Tensor, predicted_B: Tensor) -> None:
        """Copy a batch to the host: waits for the device."""
        below_BC = (logits_BC - logits_BC.amax(dim=1, keepdim=True)).cpu()
        if float(below_BC.min()) < _HALF_MIN:
            self._widen()
        self._below_NC[rows_B] = below_BC.to(self._below_NC.dtype)
        self._predicted_N[rows_B] = predicted_B.cpu()

    def _widen(self) -> None:
        self._below_NC = self._below_NC.float()

    def whole(self, replicas: Replicas, device: torch.device) -> tuple[Tensor, Tensor]:
        """(logits less the row's largest [N, C], predicted classes int64 [N]) of all processes, on the host."""
        if replicas.count > 1:
            if replicas.greatest(self._below_NC.element_size()) > self._below_NC.element_size():
                self._widen()
            # Each row is one process's; added to zeros, every number keeps its bits.
            self._predicted_N = replicas.sum(self._predicted_N.to(device)).cpu()
            for part_BC in torch.split(self._below_NC, max(1, _GATHERED_CELLS // self._below_NC.shape[1])):
                part_BC.copy_(replicas.sum(part_BC.to(device).float()))
        return self._below_NC, self._predicted_N
