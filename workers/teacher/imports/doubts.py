"""Doubts about imported logits: their accuracy on labelled samples, and another order of classes that does better.

These are the preflight's tests of a teacher, as far as they need its outputs alone. Every view is looked at, for each
epoch trains on another. Legend: R rows, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.data.preparation.prepared import Dataset
from workers.teacher.preflight.class_order import better_order
from workers.teacher.preflight.rows import LABELLED_MIN
from workers.teacher.preflight.score import Score
from workers.teacher.wording import IMPORT
from workers.unlabelled import labelled_rows


class Judgement(NamedTuple):
    """Judgement of imported logits.

    Attributes:
        accuracy: top-1 on the labelled rows of the slice, of the worst view; None without any.
        doubts: sentences that forbid the import unless a client insists.
        warnings: sentences that forbid nothing.
    """

    accuracy: float | None
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(
    take: Callable[[int, NDArray[np.int64]], NDArray[np.float32]],
    views: int,
    dataset: Dataset,
    rows_R: NDArray[np.int64],
) -> Judgement:
    """Judge logits of these rows of a split, as the preflight judges a teacher: by the worst of all their views.

    Args:
        take: logits [R, C] of a view, by its number and the rows.
    """
    labels_R = np.asarray(dataset.labels_N)[rows_R]
    labelled = labelled_rows(labels_R)

    def goodness(view: int) -> int:
        predicted_R = take(view, rows_R).argmax(axis=1)
        return int((predicted_R == labels_R).sum()) if len(labelled) else len(np.unique(predicted_R))

    # A view that is right less often than the others may be of other rows; all are of the same recipe.
    view = min(range(views), key=goodness)
    of_view = "" if views == 1 else f" of view {view} of {views} (0 to {views - 1}; the worst)"
    return _judge(take(view, rows_R), labelled, dataset, labels_R, of_view=of_view)


def _judge(
    logits_RC: NDArray[np.float32],
    labelled: NDArray[np.int64],
    dataset: Dataset,
    labels_R: NDArray[np.int64],
    *,
    of_view: str,
) -> Judgement:
    if not len(labelled):
        taken = len(np.unique(logits_RC.argmax(axis=1)))
        who = f"Those{of_view}" if of_view else "They"
        told = (
            "no sample has a label: the accuracy of the logits is not known. "
            f"{who} take the samples for {taken} classes"
        )
        one = (f"{who} take all samples for one class, so that students learn nothing from them.",) if taken < 2 else ()
        return Judgement(None, one if len(labels_R) > 1 else (), (told,))
    score = Score.of(logits_RC[labelled], labels_R[labelled])
    right = f"The logits{of_view} are right on {score.hits} of {score.rows} labelled samples ({score.accuracy:.1%}), "
    order = better_order(score, dataset.class_names, IMPORT)
    doubts = []
    if score.explained_by_chance:
        doubts.append(
            f"{right}guessing would be on {score.chance:.1%}: the order of their classes or of their rows is not the "
            f"dataset's.{'' if order is None else f' {order.sentence}'}"
        )
    elif order is not None:
        doubts.append(f"{right}and on significantly more if they are read otherwise. {order.sentence}")
    if len(labelled) < min(LABELLED_MIN, len(labels_R)):
        return Judgement(score.accuracy, (), tuple(f"{doubt} So few labels refuse no logits" for doubt in doubts))
    return Judgement(score.accuracy, tuple(doubts))
