"""Labels of mixed pictures, each of which has two classes with a share each.

Shapes: B batch, C classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.unlabelled import NO_LABEL


@dataclass(frozen=True)
class MixedLabels:
    """The second labels of a batch's pictures; the first are the batch's own. On the device.

    Attributes:
        others_B: int64 [B], the label of what each picture is mixed with; -1 where the own one is.
        own_share_B: float32 [B], the share of the own label, 0 to 1; the rest is the other's.
    """

    others_B: Tensor
    own_share_B: Tensor

    def __getitem__(self, rows: slice) -> "MixedLabels":
        return MixedLabels(self.others_B[rows], self.own_share_B[rows])

    def negative_log_likelihood(self, log_softmax_BC: Tensor, labels_B: Tensor) -> Tensor:
        """-log S(z) of both labels, each with its share: [B]; 0 for a row without labels."""
        own_B, others_B = (
            F.nll_loss(log_softmax_BC, each_B, ignore_index=NO_LABEL, reduction="none")
            for each_B in (labels_B, self.others_B)
        )
        return torch.lerp(others_B, own_B, self.own_share_B.to(own_B.dtype))

    def heavier(self, labels_B: Tensor) -> Tensor:
        """The label with the larger share, the own one of two equal ones: int64 [B]."""
        return torch.where(self.own_share_B >= 0.5, labels_B, self.others_B)

    def accuracy(self, predicted_B: Tensor, labels_B: Tensor) -> Tensor:
        """Share of the label that is predicted, 0 for another: float32 [B]; its mean is mixup's accuracy."""
        own_B, others_B = predicted_B == labels_B, predicted_B == self.others_B
        return torch.lerp(others_B.to(torch.float32), own_B.to(torch.float32), self.own_share_B)
