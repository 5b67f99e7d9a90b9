"""Doubts about imported logits: their accuracy on labelled samples, and another order of classes that does better.

These are the preflight's tests of a teacher, as far as they need its outputs alone. Legend: R rows, C classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.data.prepared import Dataset
from workers.teacher.preflight.class_order import better_order
from workers.teacher.preflight.rows import LABELLED_MIN
from workers.teacher.preflight.score import Score
from workers.unlabelled import labelled_rows


class Judgement(NamedTuple):
    """Judgement of imported logits.

    Attributes:
        accuracy: top-1 on the labelled rows of the slice; None without any.
        doubts: sentences that forbid the import unless a client insists.
        warnings: sentences that forbid nothing.
    """

    accuracy: float | None
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(logits_RC: NDArray[np.float32], dataset: Dataset, rows_R: NDArray[np.int64]) -> Judgement:
    """Judge logits of these rows of a split, as the preflight judges a teacher."""
    labels_R = np.asarray(dataset.labels_N)[rows_R]
    labelled = labelled_rows(labels_R)
    if not len(labelled):
        taken = len(np.unique(logits_RC.argmax(axis=1)))
        told = (
            f"no sample has a label: the accuracy of the logits is not known. They take the samples for {taken} classes"
        )
        one = ("They take all samples for one class, so that students learn nothing from them.",) if taken < 2 else ()
        return Judgement(None, one if len(rows_R) > 1 else (), (told,))
    score = Score.of(logits_RC[labelled], labels_R[labelled])
    right = f"The logits are right on {score.hits} of {score.rows} labelled samples ({score.accuracy:.1%}), "
    order = better_order(score, dataset.class_names)
    doubts = []
    if score.explained_by_chance:
        doubts.append(
            f"{right}guessing would be on {score.chance:.1%}: the order of their classes or of their rows is not the "
            f"dataset's.{'' if order is None else f' {order.sentence}'}"
        )
    elif order is not None:
        doubts.append(f"{right}and on significantly more if they are read otherwise. {order.sentence}")
    if len(labelled) < min(LABELLED_MIN, len(rows_R)):
        return Judgement(score.accuracy, (), tuple(f"{doubt} So few labels refuse no logits" for doubt in doubts))
    return Judgement(score.accuracy, tuple(doubts))
