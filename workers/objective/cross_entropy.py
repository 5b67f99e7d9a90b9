"""Cross-entropy of the student with the labels: smoothed, of labelled rows alone, of mixed pictures.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.objective.mixed_labels import MixedLabels
from workers.objective.statistics import Logits
from workers.unlabelled import NO_LABEL


def cross_entropy(
    student: Logits, labels_B: Tensor, label_smoothing: float, *, labelled: Tensor | None, mixed: MixedLabels | None
) -> Tensor:
    """The mean of -log S(z)[y] at T=1, mixed with the mean over classes by ``label_smoothing``: [].

    Args:
        labelled: int64 [], rows with a label, over which the mean is; None if all have one.
        mixed: second labels; each of two counts with its share.
    """
    log_p_BC = student.log_softmax_BC
    if labelled is not None:
        if mixed is None:
            total: Tensor = F.nll_loss(log_p_BC, labels_B, ignore_index=NO_LABEL, reduction="sum")
        else:
            total = mixed.negative_log_likelihood(log_p_BC, labels_B).sum()
        if label_smoothing > 0.0:
            over_classes_B = log_p_BC.mean(dim=1) * (labels_B >= 0)
            total = torch.lerp(total, -over_classes_B.sum(), label_smoothing)
        return total / labelled.clamp(min=1)
    if mixed is None:
        ce: Tensor = F.nll_loss(log_p_BC, labels_B)
    else:
        ce = mixed.negative_log_likelihood(log_p_BC, labels_B).mean()
    return ce if label_smoothing == 0.0 else torch.lerp(ce, -log_p_BC.mean(), label_smoothing)
