"""Evaluation of a student on a split: how good it is, and how close to its teacher.

Shapes: N rows of a split, B batch, C classes. All probabilities are at temperature 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.augmentation.apply import to_input
from workers.config.teacher import Preprocessing
from workers.events import Split
from workers.measures import Measured, Measures
from workers.training.evaluation.evaluation_feed import EvaluationFeed
from workers.training.evaluation.kept_logits import KeptLogits
from workers.training.optimization.distributed import Replicas


@dataclass(frozen=True)
class EvaluatedSplit:
    """Logits and predictions of a student on a whole split, and their measures.

    Attributes:
        logits_NC: less their row's largest, as ``KeptLogits`` has them, in the split's order, on the host.
        predicted_N: int64, the class of the largest probability.
        labels_N: int64; -1 for a row without.
    """

    measured: Measured
    has_teacher: bool
    logits_NC: Tensor
    predicted_N: Tensor
    labels_N: Tensor


def name_of(split: Split, metric: str) -> str:
    """Name of a split's metric in metrics and results: the test split's have no prefix."""
    return metric if split == "test" else f"{split}_{metric}"


def evaluate_with_logits(
    forward: Callable[[Tensor], Tensor], feed: EvaluationFeed, preprocessing: Preprocessing, replicas: Replicas
) -> EvaluatedSplit:
    """Measure a student as ``measure_split`` does, and keep its logits and predicted class of every row."""
    kept = KeptLogits(feed.samples, feed.classes)
    measured = measure_split(forward, feed, preprocessing, replicas, kept=kept)
    logits_NC, predicted_N = kept.whole(replicas, feed.device)
    return EvaluatedSplit(measured, feed.has_teacher, logits_NC, predicted_N, labels_N=feed.labels_N.cpu())


@torch.no_grad()
def measure_split(
    forward: Callable[[Tensor], Tensor],
    feed: EvaluationFeed,
    preprocessing: Preprocessing,
    replicas: Replicas,
    kept: KeptLogits | None = None,
) -> Measured:
    """Measure a student on a split as a whole.

    Args:
        forward: float32 [B, K, H, W] -> logits [B, C], of a network in evaluation mode.
        feed: this process's share of the split, with the teacher's cache or without.
        preprocessing: from picture to ``forward``'s input.
        replicas: the processes that measure together.
        kept: takes the logits.
    """
    sums = Measures(feed.device, some_unlabelled=feed.some_unlabelled)
    for batch in feed.batches():
        (seen,) = batch.views
        logits_BC = forward(to_input(seen.images, preprocessing, channels_last=True)).float()
        predicted_B = sums.add(logits_BC, batch.labels, seen.teacher_logits)
        if kept is not None:
            kept.add(batch.rows, logits_BC, predicted_B)
    return Measured.of(replicas.sum(sums.totals), feed.samples)
