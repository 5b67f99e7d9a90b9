"""Usual preprocessings: another one with which the teacher is right significantly more often than with the given."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import Dataset
from workers.teacher.output_values import chosen
from workers.teacher.preflight.rows import PART, batch_rows
from workers.teacher.preflight.score import ALPHA, Explanation, Score
from workers.teacher.preflight.session import Rows, TeacherSession

# A preprocessing that the rows so far show to be worse, with this chance of a mistake, is not tried on the others.
DROPPED = 0.001


def better_preprocessing(
    teacher: TeacherSession,
    dataset: Dataset,
    index_R: Rows,
    given: Score,
    *,
    columns: Sequence[int] | None = None,
) -> tuple[Explanation | None, int]:
    """The best usual preprocessing if it is right significantly more often than the given one, and rows run for it.

    Args:
        columns: of the output, for each class of the dataset; None is all of them in their order.
    """
    variants = list(_usual_preprocessings(teacher.preprocessing, keeps_scaling=teacher.graph.takes_bytes))
    if not variants:
        return None, 0
    alpha = ALPHA / len(variants)
    if 0.5 ** (given.rows - given.hits) > alpha:  # not even one that is right on all rows
        return None, 0
    step = batch_rows(PART, teacher.preprocessing, dataset)
    # Strides, so that the first part shows all classes of a sorted dataset.
    stride = math.ceil(given.rows / PART)
    parts = [np.arange(i, given.rows, stride) for i in range(stride)]
    predicted_VR = np.full((len(variants), len(index_R)), -1)
    alive, forwards = set(range(len(variants))), 0
    seen = np.empty(0, dtype=np.int64)
    for part in parts:
        seen = np.concatenate([seen, part])
        for start in range(0, len(part), step):
            rows = part[start : start + step]
            images = dataset.take(index_R[rows])
            for v in sorted(alive):
                predicted_VR[v, rows] = chosen(teacher.outputs(images, variants[v]), columns).argmax(axis=1)
                forwards += len(rows)
        for v in sorted(alive):
            if given.part(seen).p_value(Score(predicted_VR[v, seen], given.labels_R[seen], given.classes)) < DROPPED:
                alive.remove(v)
    scores = {v: Score(predicted_VR[v], given.labels_R, given.classes) for v in sorted(alive)}
    better = {
        v: score for v, score in scores.items() if score.p_value(given) <= alpha and not score.explained_by_chance
    }
    if not better:
        return None, forwards
    v = max(better, key=lambda v: better[v].hits)
    changes, unchanged = _changes(teacher.preprocessing, variants[v]), _changes(variants[v], teacher.preprocessing)
    return (
        Explanation(
            better[v],
            f"The preprocessing seems to be another: with {changes}, {better[v].accuracy:.1%} of {given.rows} pictures "
            f"are right, with the given {unchanged} {given.accuracy:.1%}. Give the teacher that `preprocessing`.",
        ),
        forwards,
    )


def _usual_preprocessings(given: Preprocessing, *, keeps_scaling: bool) -> Iterator[Preprocessing]:
    """The given scaling and the usual ones, each with the given channel order and with red and blue swapped."""
    count = given.channel_count
    scalings = [(given.scale, given.mean, given.std)]
    usual = [
        (1 / 255, (0.0,) * count, (1.0,) * count),
        (1 / 255, (0.5,) * count, (0.5,) * count),
        (1.0, (0.0,) * count, (1.0,) * count),
    ]
    if count == 3:
        usual.append((1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    scalings += () if keeps_scaling else usual
    orders = {"rgb": ("rgb", "bgr"), "bgr": ("bgr", "rgb"), "gray": ("gray",)}[given.channels]
    seen = [given]
    for channels in orders:
        for scale, mean, std in scalings:
            update = {"channels": channels, "scale": scale, "mean": mean, "std": std}
            variant = given.model_copy(update=update)
            if variant not in seen:
                seen.append(variant)
                yield variant


def _changes(given: Preprocessing, other: Preprocessing) -> str:
    def spelt(value: object) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(spelt(item) for item in value)}]"
        return f"{value:.4g}" if isinstance(value, float) else repr(value)

    names = ("channels", "scale", "mean", "std")
    return ", ".join(f"{n}={spelt(getattr(other, n))}" for n in names if getattr(other, n) != getattr(given, n))
