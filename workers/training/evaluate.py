"""Evaluation of a student on a split: how good it is, and how close to its teacher.

Shapes: B batch, C classes. All probabilities are at temperature 1. Sums are kept on the device in
float64, so the result does not depend on the batch size beyond rounding, and are read once.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.config.teacher import Preprocessing
from workers.events import Split
from workers.training.batches import to_input
from workers.training.distributed import Replicas
from workers.training.evaluation_feed import EvaluationFeed

ECE_BINS = 15


class _Sums:
    """Running sums over the split, in one tensor: it is copied to the host once, at the end.

    Attributes:
        totals: float64 [5 + 3 * ECE_BINS]: rows of the right class, with it among the first five, summed negative
            log-likelihood, rows on which student and teacher agree, summed KL; then for each bin of confidence its
            rows, those of the right class, and their summed confidence.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(5 + 3 * ECE_BINS, dtype=torch.float64, device=device)
        self._scalars, self._bins = self.totals[:5], self.totals[5:].view(3, ECE_BINS)

    def add(self, logits_BC: Tensor, labels_B: Tensor, teacher_BC: Tensor | None) -> None:
        log_q_BC = F.log_softmax(logits_BC, dim=1)
        confidence_B, predicted_B = log_q_BC.exp().max(dim=1)
        correct_B = predicted_B == labels_B
        top_B5 = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
        in_top5_B = (top_B5 == labels_B[:, None]).any(dim=1)
        nll = F.nll_loss(log_q_BC, labels_B, reduction="sum")
        agreement = kl = torch.zeros((), device=logits_BC.device)
        if teacher_BC is not None:
            log_p_BC = F.log_softmax(teacher_BC.float(), dim=1)
            agreement = (log_p_BC.argmax(dim=1) == predicted_B).sum()
            kl = F.kl_div(log_q_BC, log_p_BC, reduction="sum", log_target=True)
        parts = (correct_B.sum(), in_top5_B.sum(), nll, agreement, kl)
        self._scalars += torch.stack([part.double() for part in parts])
        # (0, 1/15], (1/15, 2/15], ...: right-closed as in Guo et al.
        bin_B = (confidence_B.double() * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
        ones_B = torch.ones_like(confidence_B, dtype=torch.float64)
        for row, value_B in enumerate((ones_B, correct_B.double(), confidence_B.double())):
            self._bins[row].index_add_(0, bin_B, value_B)


def name_of(split: Split, metric: str) -> str:
    """Name of a split's metric in metrics and results: the test split's have no prefix."""
    return metric if split == "test" else f"{split}_{metric}"


def evaluate_splits(
    forward: Callable[[Tensor], Tensor],
    feeds: Mapping[Split, EvaluationFeed],
    preprocessing: Preprocessing,
    replicas: Replicas,
) -> dict[str, float | None]:
    """Measure a student on each split: as ``evaluate``, the validation split's metrics as ``validation_NAME``."""
    return {
        name_of(split, name): value
        for split, feed in feeds.items()
        for name, value in evaluate(forward, feed, preprocessing, replicas).items()
    }


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Tensor], feed: EvaluationFeed, preprocessing: Preprocessing, replicas: Replicas
) -> dict[str, float | None]:
    """Measure a student on a whole split.

    Args:
        forward: float32 [B, K, H, W] -> logits [B, C], the network in evaluation mode.
        feed: this process's share of the split, with the teacher's cache or without.
        preprocessing: from picture to ``forward``'s input.
        replicas: the processes that measure together.

    Returns:
        ``top1``, ``top5`` (accuracies, 0..1; top5 is top-C below five classes), ``nll`` (nats),
        ``ece`` (expected calibration error, 15 equal bins; Guo et al. 2017, arXiv 1706.04599),
        ``agreement`` (share of samples on which student and teacher choose the same class) and
        ``kl_to_teacher`` (mean KL(teacher || student), nats); the last two are None without a
        teacher.
    """
    sums = _Sums(feed.device)
    for batch in feed.batches():
        (seen,) = batch.views
        inputs = to_input(seen.images, preprocessing, channels_last=True)
        sums.add(forward(inputs).float(), batch.labels, seen.teacher_logits)
    totals = replicas.sum(sums.totals).cpu()
    correct, in_top5, nll, agreement, kl = (totals[:5] / feed.samples).tolist()
    _, correct_of_bin, confidence_of_bin = totals[5:].view(3, ECE_BINS)
    with_teacher = feed.has_teacher
    return {
        "top1": correct,
        "top5": in_top5,
        "nll": nll,
        "ece": float((correct_of_bin - confidence_of_bin).abs().sum() / feed.samples),
        "agreement": agreement if with_teacher else None,
        "kl_to_teacher": kl if with_teacher else None,
    }
