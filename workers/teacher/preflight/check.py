"""Check of a teacher on plain pictures: classes, outputs, batches, accuracy, class order, preprocessing.

Accuracy, class order and preprocessing are judged by the pictures that have a label; where none has, ``without_labels``
judges the teacher. Where few have, both look, and what the labels say is a warning.
"""

import functools
import time

import numpy as np

from workers.data.preparation.prepared import Dataset
from workers.errors import InvalidTeacher
from workers.onnx.checks.batch_rules import NO_HINT
from workers.onnx.sessions.smoke_test import BATCH_TOLERANCE
from workers.teacher.class_columns import ClassColumns, match_classes
from workers.teacher.output_values import chosen, to_logits
from workers.teacher.preflight.class_order import better_order, numeric_names
from workers.teacher.preflight.finite import check_finite
from workers.teacher.preflight.output_kind import find_kind
from workers.teacher.preflight.preprocessings import better_preprocessing
from workers.teacher.preflight.report import PreflightReport
from workers.teacher.preflight.rows import BATCH, LABELLED_MIN, batch_rows, slice_rows, spread
from workers.teacher.preflight.score import ALPHA, Explanation, Score
from workers.teacher.preflight.session import Images, Outputs, Rows, TeacherSession
from workers.teacher.preflight.without_labels import judge_without_labels
from workers.texts import differences
from workers.unlabelled import labelled_rows

AGAIN_ROWS, AGAIN_BATCH = 64, 24  # pictures that are run twice, the second time so many at once
FIRST_TIMEOUT_S = 120.0  # for one picture: a hostile graph may loop for ever
ALONE_ROWS = 4  # pictures compared alone and in a batch
_ALIKE_MAX = 10  # warnings about classes with names that look alike


def check(teacher: TeacherSession, dataset: Dataset, rows: int) -> PreflightReport:
    """Run the check on at least ``rows`` pictures, if there are so many; see ``slice_rows``.

    The outputs are compared and judged as the graph gives them, and scored by the dataset's classes.

    Returns:
        The report. Its ``refusals`` are for the caller to enforce.

    Raises:
        InvalidTeacher: it does not run, or a picture's outputs depend on the batch.
        NotFinite: NaN or infinite outputs.
        ContractViolation: the classes cannot be matched, or the outputs are not of the kind that was stated.
    """
    _matched(teacher, dataset, teacher.graph.classes)
    index_R = slice_rows(dataset.labels_N, dataset.classes, rows)
    labels_R = dataset.labels_N[index_R]
    first = teacher.outputs(dataset.take(index_R[:1]), timeout_s=FIRST_TIMEOUT_S)
    classes = _matched(teacher, dataset, first.shape[1])

    step = batch_rows(BATCH, teacher.preprocessing, dataset)
    parts = [index_R[i : i + step] for i in range(0, len(index_R), step)]
    began_s = time.monotonic()
    outputs_RN = np.concatenate([teacher.outputs(dataset.take(part)) for part in parts])
    rows_per_s = len(index_R) / max(time.monotonic() - began_s, 1e-9)
    check_finite(outputs_RN, index_R)
    alone = spread(len(index_R), ALONE_ROWS)
    again = np.random.default_rng(1).permutation(spread(len(index_R), AGAIN_ROWS))
    difference, tolerance = _check_alone(teacher, dataset.take(index_R[alone]), outputs_RN, alone, batch=step)
    repeated = _check_again(teacher, dataset, index_R, outputs_RN, rows=again, batch=min(step, AGAIN_BATCH))
    difference = max(difference, repeated)
    kind = find_kind(teacher.graph, outputs_RN, teacher.reading.output_kind)

    warnings = [*([classes.note] if classes.note else ()), *kind.warnings, *_alone_warning(teacher, rows_per_s)]
    refusals, of_classes_RN = [*kind.refusals], chosen(outputs_RN, classes.columns)
    labelled, score, judged, more_rows = labelled_rows(labels_R), None, None, 0
    is_sparse = len(labelled) < min(LABELLED_MIN, len(index_R))
    if len(labelled):
        score = Score.of(of_classes_RN[labelled], labels_R[labelled])
        order = better_order(score, dataset.class_names)
        preprocessing, more_rows = better_preprocessing(
            teacher, dataset, index_R[labelled], score, columns=classes.columns
        )
        doubts = _accuracy_refusal(score, order, preprocessing)
        if is_sparse:
            warnings += [f"{doubt} So few labels refuse no teacher" for doubt in doubts]
        else:
            refusals += doubts
    if is_sparse:
        logits_of = functools.partial(to_logits, kind=kind.stored, columns=classes.columns)
        found = judge_without_labels(teacher, dataset, index_R, outputs_RN, logits_of=logits_of)
        judged, of_judgement, unlike = found
        warnings, refusals, more_rows = warnings + of_judgement, refusals + unlike, more_rows + judged.forwards
    warnings += numeric_names(dataset.class_names)
    warnings += [f"classes that look alike: {found}" for found in differences(dataset.class_names)[:_ALIKE_MAX]]
    return PreflightReport(
        rows=len(index_R),
        forwards=1 + len(index_R) + len(alone) + len(again) + more_rows,
        classes=of_classes_RN.shape[1],
        output=teacher.graph.output,
        output_kind=kind.stored,
        columns=classes.columns,
        accuracy=None if score is None else score.accuracy,
        chance=None if score is None else score.chance,
        batch_difference=difference,
        batch_tolerance=tolerance,
        provider=teacher.provider,
        provider_reason=teacher.provider_reason,
        refusals=tuple(refusals),
        warnings=tuple(warnings),
        normalised=kind.is_normalised,
        labelled=None if len(labelled) == len(index_R) else len(labelled),
        without_labels=judged,
    )


def _matched(teacher: TeacherSession, dataset: Dataset, outputs: int | None) -> ClassColumns:
    return match_classes(teacher.reading, teacher.graph.class_names, dataset.class_names, outputs)


def _alone_warning(teacher: TeacherSession, rows_per_s: float) -> list[str]:
    if not teacher.graph.runs_alone:
        return []
    return [
        f"the teacher runs on one picture at a time, {rows_per_s:.0f} per second here, as its outputs would depend on "
        f"the batch. {teacher.graph.batch_hint}, and it runs in batches"
    ]


def _check_alone(
    teacher: TeacherSession, images: Images, outputs_RN: Outputs, rows: Rows, *, batch: int
) -> tuple[float, float]:
    """Largest difference between the pictures of ``rows`` alone and in their batch, and the largest allowed."""
    alone = np.concatenate([teacher.outputs(images[i : i + 1]) for i in range(len(rows))])
    difference, tolerance = float(np.abs(alone - outputs_RN[rows]).max()), _tolerance(teacher, outputs_RN)
    if not difference <= tolerance:
        raise InvalidTeacher(
            f"the same picture gives other outputs alone than in a batch of {min(batch, len(outputs_RN))} (difference "
            f"{difference:.3g}, {tolerance:.3g} is allowed). {teacher.graph.batch_hint or NO_HINT}"
        )
    return difference, tolerance


def _check_again(
    teacher: TeacherSession, dataset: Dataset, index_R: Rows, outputs_RN: Outputs, *, rows: Rows, batch: int
) -> float:
    """Largest difference of the pictures of ``rows``, in that order and ``batch`` at once, from the first time."""
    parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    second = np.concatenate([teacher.outputs(dataset.take(index_R[part])) for part in parts])
    difference_R, tolerance = np.abs(second - outputs_RN[rows]).max(axis=1), _tolerance(teacher, outputs_RN)
    others = int(np.logical_not(difference_R <= tolerance).sum())
    if others:
        raise InvalidTeacher(
            f"{others} of {len(rows)} pictures give other outputs when they are run again, in another order and "
            f"{batch} at once (difference {difference_R.max():.3g}, {tolerance:.3g} is allowed). "
            f"{teacher.graph.batch_hint or NO_HINT}"
        )
    return float(difference_R.max())


def _tolerance(teacher: TeacherSession, outputs_RN: Outputs) -> float:
    return BATCH_TOLERANCE[teacher.graph.output_dtype] * float(np.abs(outputs_RN).max())


def _accuracy_refusal(score: Score, *found: Explanation | None) -> list[str]:
    explanations = [one for one in found if one]
    # A wrong order makes many a preprocessing seem better, and the other way round: who is far behind explains nothing.
    hints = [a.sentence for a in explanations if all(b.score.p_value(a.score) > ALPHA for b in explanations)]
    right = f"The teacher is right on {score.hits} of {score.rows} labelled pictures ({score.accuracy:.1%}), "
    if score.explained_by_chance:
        refusal = (
            f"{right}guessing would be on {score.chance:.1%}: its label order or its preprocessing does not fit this "
            "dataset."
        )
        return [" ".join([refusal, *(hints or ["No usual preprocessing does better."])])]
    return [" ".join([f"{right}and on significantly more if it is used otherwise.", *hints])] if hints else []
