"""Judgement of a teacher on pictures of which none or few have a label: by its answers, not by whether they are right.

- Constant output: every picture has the same outputs.
- One class: every picture is taken for it.
- Uniform output: the mean entropy of the softmax is nearly that of guessing, as of a network without its weights.
- Two views: a picture and the same moved by a few pixels are taken for one class no more often than two answers drawn
  from the histogram of the classes that are taken.

Each is a refusal that a job may insist against. A wrong class order cannot be seen this way, and a wrong preprocessing
only by what it does to the answers: that is said.

Shapes: R rows of the slice, N classes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from workers.augmentation.apply import apply
from workers.augmentation.draw import draw
from workers.config.views import CropFlip
from workers.data.preparation.prepared import Dataset
from workers.teacher.preflight.report import WithoutLabels
from workers.teacher.preflight.rows import BATCH, batch_rows
from workers.teacher.preflight.score import Score
from workers.teacher.preflight.session import Outputs, Rows, TeacherSession
from workers.unlabelled import class_name, labelled_rows

# Of the largest output: what rounding makes of equal ones.
_EQUAL = 1e-6
# Of log N. A network that has learned its classes is far below, one with random weights mostly above.
_UNIFORM = 0.99
# With fewer rows one class may be all that there is.
_ROWS_OF_ONE_CLASS = 10
# Rows for each class from which it is worth a warning that fewer than half of the classes are ever taken.
_ROWS_PER_CLASS = 4
# The second view is moved by up to this part of the shorter side, and at least a pixel.
_MOVED = 1 / 16


def judge_without_labels(
    teacher: TeacherSession,
    dataset: Dataset,
    index_R: Rows,
    outputs_RN: Outputs,
    *,
    logits_of: Callable[[Outputs], Outputs],
) -> tuple[WithoutLabels, list[str], list[str]]:
    """The judgement, warnings, refusals.

    Args:
        index_R: the pictures.
        outputs_RN: of the teacher for them, as the graph gives them.
        logits_of: makes logits of the classes of such outputs.
    """
    logits_RN = logits_of(outputs_RN)
    classes = logits_RN.shape[1]
    taken_R = logits_RN.argmax(axis=1)
    counts_N = np.bincount(taken_R, minlength=classes)
    moved = Score(_taken_when_moved(teacher, dataset, index_R, logits_of), taken_R, classes)
    judged = WithoutLabels(
        entropy=float(_entropies(logits_RN).mean()),
        agreement=moved.accuracy,
        chance=moved.chance,
        classes_taken=int(np.count_nonzero(counts_N)),
        largest_share=float(counts_N.max() / len(taken_R)),
        forwards=len(index_R),
    )
    most = class_name(dataset.class_names, int(counts_N.argmax()))
    said = (
        f"mean entropy {judged.entropy:.3g} of at most {math.log(classes):.3g} nats; {judged.classes_taken} of "
        f"{classes} classes are taken, {most!r} for {judged.largest_share:.1%}; {judged.agreement:.1%} of the pictures "
        "are taken for the same class when they are moved by a few pixels"
    )
    labelled = len(labelled_rows(dataset.labels_N[index_R]))
    few, sure = (
        (f"only {labelled} training pictures have", " for sure") if labelled else ("no training picture has", "")
    )
    warnings = [
        f"{few} a label, so whether the teacher is right, its class order and its preprocessing cannot be "
        f"checked{sure}; it is judged by its answers to {len(index_R)} pictures: {said}"
    ]
    if judged.classes_taken < classes / 2 and len(index_R) >= _ROWS_PER_CLASS * classes:
        warnings.append(
            f"the teacher takes {len(index_R)} pictures for only {judged.classes_taken} of its {classes} classes: look "
            "at its preprocessing, or whether these pictures are of its classes"
        )
    return judged, warnings, _refusals(judged, logits_RN, moved, str(most))


def _refusals(judged: WithoutLabels, logits_RN: Outputs, moved: Score, most: str) -> list[str]:
    """The first of the four, for each explains those after it."""
    rows, classes = logits_RN.shape
    advice = "Its file or its preprocessing is probably not what was meant."
    if rows > 1 and float(np.ptp(logits_RN, axis=0).max()) <= _EQUAL * float(np.abs(logits_RN).max()):
        return [
            f"The teacher gives the same outputs for each of {rows} pictures: nothing can be learned from it. {advice}"
        ]
    if judged.classes_taken == 1 and rows >= _ROWS_OF_ONE_CLASS:
        return [f"The teacher takes each of {rows} pictures for class {most!r}. {advice}"]
    if judged.entropy >= _UNIFORM * math.log(classes):
        return [
            f"The teacher's answers to {rows} pictures are nearly uniform (mean entropy {judged.entropy:.4g} of "
            f"{math.log(classes):.4g} nats), as of a network without its weights. {advice}"
        ]
    if moved.explained_by_chance:
        return [
            f"The teacher takes only {judged.agreement:.1%} of {rows} pictures for the same class when they are moved "
            f"by a few pixels; answers drawn at random would agree on {judged.chance:.1%}. {advice}"
        ]
    return []


def _entropies(logits_RN: Outputs) -> NDArray[np.float64]:
    """Entropy of each row's distribution, nats, float64 [R]."""
    z_RN = logits_RN.astype(np.float64)
    p_RN = np.exp(z_RN - z_RN.max(axis=1, keepdims=True))
    p_RN = p_RN / p_RN.sum(axis=1, keepdims=True)
    entropy_R: NDArray[np.float64] = -(p_RN * np.log(np.maximum(p_RN, np.finfo(np.float64).tiny))).sum(axis=1)
    return entropy_R


def _taken_when_moved(
    teacher: TeacherSession, dataset: Dataset, index_R: Rows, logits_of: Callable[[Outputs], Outputs]
) -> Rows:
    """Class that each picture is taken for when it is moved by a few pixels: [R]. Nothing is mirrored."""
    height, width = dataset.height, dataset.width
    recipe = CropFlip(pad=max(1, min(64, round(_MOVED * min(height, width)))), flip=False)
    step, taken = batch_rows(BATCH, teacher.preprocessing, dataset, recipe), []
    for start in range(0, len(index_R), step):
        part = index_R[start : start + step]
        drawn = draw(recipe, 0, 0, part, height=height, width=width)
        made = apply(torch.from_numpy(dataset.take(part)), recipe, drawn)
        taken.append(logits_of(teacher.outputs(made.numpy())).argmax(axis=1))
    return np.concatenate(taken)
