"""The contract check: do this teacher and this data set belong together? Asked before any long work, on a few rows.

In the order in which a mistake would spoil the rest:

1. the class count that the graph declares, and that it really has, is the data set's;
2. one picture runs through in reasonable time; the outputs are finite;
3. the same pictures give the same outputs in the batches of inference, alone, and once more in another order and
   another batch size (else: training mode, chance, or a graph that mixes the batch);
4. rows that are >= 0 and sum to 1 are probabilities: their log is cached, and the fact is part of the cache's key.
   Other outputs with a bounded range or a fixed sum (sigmoid, percent) are refused: as logits they would mislead;
5. the teacher is right more often than predictions that know nothing of the picture;
6. no other order of the classes and no other usual preprocessing is right significantly more often on the same rows.

Points 4 (sigmoid, percent), 5 and 6 are judgements: a job may insist with ``accept_teacher``, and they become warnings.

Chance is the accuracy of the same predictions against the same labels in random order, in the mean the sum over classes
of P(predicted) P(label). It explains the hits if one such order in 1 / ``ALPHA`` reaches them: both counts per class
are given, so this suits unbalanced data and constant predictions (Fisher's exact test, by Monte Carlo).

Two ways to read the same rows are compared by McNemar's exact test: of the rows that only one gets right, each is
equally likely to be either's if neither is better. Tests share ``ALPHA`` (Bonferroni). Class orders tried are those
that sorting makes of the names and the best assignment of outputs to classes (Hungarian method), which is found on one
half of the rows and tested on the other.

Where a job augments, ``check_views`` asks once more on the pictures that the logits will be of: a teacher that is right
on whole pictures and wrong on their views teaches what it gets wrong. Augmentation is meant to make pictures harder, so
this is a warning, and none unless a good part of the hits is lost beyond chance.

What it does not do: judge how good a teacher is. A weak one passes.

Legend: R rows of the slice, N classes, V usual preprocessings.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from workers.augmentation.apply import apply
from workers.augmentation.draw import draw
from workers.config.teacher import Preprocessing
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop, Views, output_size
from workers.data.prepared import Dataset
from workers.errors import ContractViolation, InvalidTeacher, NotFinite
from workers.onnx.batch_rules import NO_HINT
from workers.onnx.check import TeacherGraph
from workers.onnx.smoke_test import BATCH_TOLERANCE
from workers.texts import differences

OutputKind = Literal["logits", "log_probabilities"]
Rows = NDArray[np.int64]
Images = NDArray[np.uint8]
Outputs = NDArray[np.float32]

ALPHA = 0.01  # the chance that a teacher which only guesses gets through
ROWS = 512  # pictures in a slice, or more, see ``slice_rows``
BATCH = 256  # pictures per call, as of inference: a graph may do something else in a large batch than in a small one
AGAIN_ROWS, AGAIN_BATCH = 64, 24  # pictures that are run twice, the second time so many at once
PART = 64  # rows after which other preprocessings are given up, and the next view has its turn
# Of the float32 input of one call, or, as bytes, of the pictures that it is made from, at four bytes a pixel.
BATCH_PIXELS = 256 * 128 * 128
_PLAIN = NoAugmentation()
FIRST_TIMEOUT_S = 120.0  # for one picture: a hostile graph may loop for ever
ALONE_ROWS = 4  # pictures compared alone and in a batch
VIEWS_KEEP = 0.75  # of the hits on plain pictures; a teacher that has fewer on their views is told of

# Probabilities of a row sum to 1 up to their own rounding.
SUM_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2}
# Percentages are often rounded: their sums differ by so much of the sum itself.
SCALED_SUM_TOLERANCE = 0.01

# Two classes of the teacher that have changed places are noticed if each has about so many rows.
ROWS_PER_CLASS = 10
_ALIKE_MAX = 10  # warnings about classes with names that look alike
ROWS_MAX = 2048  # of a slice that grows with the classes
PERMUTATIONS = 2000
# A preprocessing that the rows so far show to be worse, with this chance of a mistake, is not tried on the others.
DROPPED = 0.001


class PreflightReport(BaseModel):
    """What the check found.

    Attributes:
        rows: labelled pictures in the slice.
        forwards: rows that went through the teacher in all, other preprocessings included.
        classes: number of classes.
        output: name of the output that is taken.
        output_kind: ``log_probabilities`` if the graph ends in a softmax, so that the log has to be taken.
        accuracy: top-1 on the slice.
        chance: accuracy that the same predictions would have on independent labels.
        batch_difference: largest difference of an output alone and in a batch.
        batch_tolerance: largest one allowed.
        provider: what it ran on, in ONNX Runtime's name.
        provider_reason: why on that.
        refusals: sentences about what forbids the work unless a job insists.
        warnings: sentences for a person; nothing that forbids the work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    forwards: int
    classes: int
    output: str
    output_kind: OutputKind
    accuracy: float
    chance: float
    batch_difference: float
    batch_tolerance: float
    provider: str
    provider_reason: str
    # No default: the record of a version that did not look for them tells nothing.
    refusals: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def enforce(self, accept: bool) -> None:
        """Raise ContractViolation of all refusals, unless they are accepted."""
        if self.refusals and not accept:
            raise ContractViolation(
                f'{" ".join(self.refusals)} `"accept_teacher": true` in the job uses the teacher as it is all the same'
            )

    @property
    def accepted(self) -> tuple[str, ...]:
        """The refusals as warnings of a job that insists."""
        return tuple(f"{refusal} It is used as it is, for the job says accept_teacher" for refusal in self.refusals)


class ViewsReport(BaseModel):
    """What the check on training views found.

    Attributes:
        rows: labelled views in the slice, of as many pictures; all went through the teacher.
        accuracy: top-1 on them.
        warnings: sentences for a person.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    accuracy: float
    warnings: tuple[str, ...]


class TeacherSession(Protocol):
    """What the check needs of a ``workers.teacher.teacher.Teacher``."""

    graph: TeacherGraph
    preprocessing: Preprocessing
    provider: str

    @property
    def provider_reason(self) -> str:
        """Why it runs on that provider."""

    def outputs(
        self, images_BHWC: Images, preprocessing: Preprocessing | None = None, timeout_s: float | None = None
    ) -> Outputs:
        """The graph's own output [B, N] for uint8 pictures, no log taken."""


def check(teacher: TeacherSession, dataset: Dataset, rows: int) -> PreflightReport:
    """Run the check on at least ``rows`` pictures, if there are so many; see ``slice_rows``.

    Returns:
        The report. Its ``refusals`` are for the caller to enforce.

    Raises:
        InvalidTeacher: it does not run, or a picture's outputs depend on the batch.
        NotFinite: NaN or infinite outputs.
        ContractViolation: wrong class count.
    """
    _check_classes(teacher.graph.classes, dataset)
    index_R = slice_rows(dataset.labels_N, dataset.classes, rows)
    labels_R = dataset.labels_N[index_R]
    first = teacher.outputs(dataset.take(index_R[:1]), timeout_s=FIRST_TIMEOUT_S)
    _check_classes(first.shape[1], dataset)

    step = batch_rows(BATCH, teacher.preprocessing, dataset)
    parts = [index_R[i : i + step] for i in range(0, len(index_R), step)]
    outputs_RN = np.concatenate([teacher.outputs(dataset.take(part)) for part in parts])
    _check_finite(outputs_RN, index_R)
    alone = spread(len(index_R), ALONE_ROWS)
    again = np.random.default_rng(1).permutation(spread(len(index_R), AGAIN_ROWS))
    difference, tolerance = _check_alone(teacher, dataset.take(index_R[alone]), outputs_RN, alone, step)
    difference = max(difference, _check_again(teacher, dataset, index_R, outputs_RN, again, min(step, AGAIN_BATCH)))
    kind, warnings, refusals = _output_kind(teacher, outputs_RN)

    score = Score.of(outputs_RN, labels_R)
    order = _better_order(score, dataset.class_names)
    preprocessing, variant_rows = _better_preprocessing(teacher, dataset, index_R, score)
    refusals += _accuracy_refusal(score, order, preprocessing)
    warnings += _numeric_names(dataset.class_names)
    warnings += [f"classes that look alike: {found}" for found in differences(dataset.class_names)[:_ALIKE_MAX]]
    return PreflightReport(
        rows=len(index_R),
        forwards=1 + len(index_R) + len(alone) + len(again) + variant_rows,
        classes=outputs_RN.shape[1],
        output=teacher.graph.output,
        output_kind=kind,
        accuracy=score.accuracy,
        chance=score.chance,
        batch_difference=difference,
        batch_tolerance=tolerance,
        provider=teacher.provider,
        provider_reason=teacher.provider_reason,
        refusals=tuple(refusals),
        warnings=tuple(warnings),
    )


def check_views(
    teacher: TeacherSession, dataset: Dataset, plan: Views, plain: PreflightReport, rows: int = ROWS
) -> ViewsReport:
    """Run the teacher on views of the very pictures that ``check`` took, views in turn.

    Args:
        plan: of the teacher's views, see ``config.teacher_augmentation``.
        plain: what ``check`` said of the pictures as they are.
        rows: that ``check`` was asked for; those that it took may be more.

    Raises:
        InvalidTeacher, InvalidDataset: it does not run on views, or there are none of such pictures.
        NotFinite: NaN or infinite outputs.
    """
    index_R = slice_rows(dataset.labels_N, dataset.classes, rows)
    outputs, sides = [], []
    step = batch_rows(PART, teacher.preprocessing, dataset, plan.augmentation)  # so that many views have their turn
    for number, start in enumerate(range(0, len(index_R), step)):
        part = index_R[start : start + step]
        drawn = draw(plan.augmentation, plan.seed, number % plan.count, part, dataset.height, dataset.width)
        made = apply(torch.from_numpy(dataset.take(part)), plan.augmentation, drawn)
        outputs.append(teacher.outputs(made.numpy()))
        sides.append(np.stack([drawn.height, drawn.width]))
    outputs_RN = np.concatenate(outputs)
    _check_finite(outputs_RN, index_R)
    score = Score.of(outputs_RN, dataset.labels_N[index_R])
    misses, allowed = score.rows - score.hits, 1 - VIEWS_KEEP * plain.accuracy
    warnings = []
    if binomial_tail(misses, score.rows, allowed) <= ALPHA:
        height, width = np.median(np.concatenate(sides, axis=1), axis=1)
        warnings.append(
            f"the teacher is right on {score.accuracy:.1%} of {score.rows} training views, and on {plain.accuracy:.1%} "
            "of the same pictures as they are: students learn from its logits of the views. "
            + _why_views_are_harder(plan.augmentation, dataset, round(height), round(width))
        )
    return ViewsReport(rows=score.rows, accuracy=score.accuracy, warnings=tuple(warnings))


def _why_views_are_harder(recipe: Augmentation, dataset: Dataset, height: int, width: int) -> str:
    """What a recipe does to a picture, and how to ask for less; the median box is height x width pixels."""
    match recipe:
        case NoAugmentation():
            return ""
        case ResizedCrop():
            (least, most), (seen_h, seen_w) = recipe.scale, output_size(recipe, dataset.height, dataset.width)
            what = (
                f"Each is a box of {least:.0%} to {most:.0%} of the {dataset.height} x {dataset.width} pixels "
                f"(height x width), half of them below {height} x {width}, made {seen_h} x {seen_w} for the teacher"
            )
            less = "a larger first value of `scale`"
        case CropFlip():
            what, less = f"Each is moved by up to {recipe.pad} pixels, black beyond the edge", "a smaller `pad`"
    if not recipe.flip:
        return f"{what}: {less} makes them easier"
    return f'{what}, and half of them are mirrored: {less}, or `"flip": false`, makes them easier'


def batch_rows(most: int, preprocessing: Preprocessing, dataset: Dataset, recipe: Augmentation = _PLAIN) -> int:
    """Pictures to take at once: ``most``, or fewer of large ones, since memory grows with their pixels.

    Args:
        recipe: of the views that the teacher sees.
    """
    shape = dataset.height, dataset.width
    seen = output_size(recipe, *shape)
    pixels = max(math.prod(preprocessing.size or seen), math.prod(seen) // 4, math.prod(shape) // 4)
    return max(1, min(most, BATCH_PIXELS // pixels))


def slice_rows(labels_N: Rows, classes: int, rows: int) -> Rows:
    """Sample numbers, ascending, of a slice in which every class has its part.

    ``rows`` or ``ROWS_PER_CLASS`` for each class, if that is more, spread over the data set; then more of the classes
    that have fewer than ``ROWS_PER_CLASS``, the rarest first. Neither goes beyond ``ROWS_MAX``, unless ``rows`` does.
    """
    is_chosen = np.zeros(len(labels_N), dtype=bool)
    is_chosen[spread(len(labels_N), max(rows, min(ROWS_PER_CLASS * classes, ROWS_MAX)))] = True
    counts = np.bincount(labels_N[is_chosen], minlength=classes)
    room = ROWS_MAX - int(counts.sum())
    for k in np.argsort(counts, kind="stable"):
        missing = min(ROWS_PER_CLASS - int(counts[k]), room)
        if missing <= 0:
            break
        others = np.flatnonzero((labels_N == k) & np.logical_not(is_chosen))
        if len(others):
            more = others[spread(len(others), missing)]
            is_chosen[more] = True
            room -= len(more)
    return np.flatnonzero(is_chosen)


def spread(samples: int, rows: int) -> Rows:
    """``rows`` sample numbers (all, if there are fewer), one at random from each of as many equal parts.

    A sorted data set shows all its classes that way, and so does one whose classes take turns, of which equal
    distances could show a single one. The same numbers on every call.
    """
    edges = np.arange(min(rows, samples) + 1, dtype=np.int64) * samples // min(rows, samples)
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])


def _check_classes(classes: int | None, dataset: Dataset) -> None:
    wanted = len(dataset.class_names)
    if classes not in (None, wanted):
        raise ContractViolation(
            f"the teacher has {classes} classes, the data set has {wanted}: they do not belong together"
        )


def _check_finite(outputs_RN: Outputs, index_R: Rows) -> None:
    bad = np.logical_not(np.isfinite(outputs_RN).all(axis=1))
    if bad.any():
        raise NotFinite(
            f"the teacher's outputs are NaN or infinite for {bad.sum()} of {len(bad)} pictures, the first is sample "
            f"{index_R[bad.argmax()]}: check `scale`, `mean` and `std` of its preprocessing"
        )


def _check_alone(
    teacher: TeacherSession, images: Images, outputs_RN: Outputs, rows: Rows, batch: int
) -> tuple[float, float]:
    """(largest difference, largest allowed) between the pictures of ``rows`` alone and in their batch."""
    alone = np.concatenate([teacher.outputs(images[i : i + 1]) for i in range(len(rows))])
    difference, tolerance = float(np.abs(alone - outputs_RN[rows]).max()), _tolerance(teacher, outputs_RN)
    if not difference <= tolerance:
        raise InvalidTeacher(
            f"the same picture gives other outputs alone than in a batch of {min(batch, len(outputs_RN))} (difference "
            f"{difference:.3g}, {tolerance:.3g} is allowed). {teacher.graph.batch_hint or NO_HINT}"
        )
    return difference, tolerance


def _check_again(
    teacher: TeacherSession, dataset: Dataset, index_R: Rows, outputs_RN: Outputs, rows: Rows, batch: int
) -> float:
    """The largest difference of the pictures of ``rows``, in that order and so many at once, from the first time."""
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


def _output_kind(teacher: TeacherSession, outputs_RN: Outputs) -> tuple[OutputKind, list[str], list[str]]:
    """(what the outputs are taken for, warnings, refusals)."""
    tolerance = SUM_TOLERANCE[teacher.graph.output_dtype]
    z_RN = outputs_RN.astype(np.float64)
    sums_R = z_RN.sum(axis=1)
    if (z_RN >= 0).all():
        if np.abs(sums_R - 1).max() <= tolerance:
            return (
                "log_probabilities",
                [
                    "the teacher ends in a softmax: the log of its output is cached, at least -87.3. Logits without a "
                    "softmax keep more, and temperature methods that use their size (max, norm) mean those"
                ],
                [],
            )
        return "logits", [], _not_logits(teacher.graph.output, z_RN.max(), sums_R)
    if (z_RN <= 0).all() and np.abs(np.exp(z_RN).sum(axis=1) - 1).max() <= tolerance:
        return (
            "logits",
            [
                "the teacher ends in a log-softmax: its output is cached as it is. Temperature methods that use the "
                "logits' size (max, norm) mean logits without it"
            ],
            [],
        )
    return "logits", [], []


def _not_logits(output: str, largest: float, sums_R: NDArray[np.float64]) -> list[str]:
    """The refusal of outputs >= 0 that are probabilities of their own or scaled ones; none if they may be logits."""
    low, high = float(sums_R.min()), float(sums_R.max())
    if high > 0 and high - low <= SCALED_SUM_TOLERANCE * high and not 0.9 <= high <= 1.1:
        what = (
            f"are all >= 0 and each row sums to {high:.4g}: they are scaled probabilities (percent, where that is 100)"
        )
    elif largest <= 1:
        what = (
            f"are all between 0 and 1 and the rows sum to {low:.3g} .. {high:.3g}: they are what a sigmoid makes, or a "
            "rounded softmax (whose rows sum to 1)"
        )
    else:
        return []
    return [
        f"The teacher's outputs ({output!r}) {what}, not logits, and a softmax over them would be nearly flat or "
        "nearly hard. Export the logits, what goes into the last Sigmoid or Softmax, or name the output that holds "
        "them in the teacher's `output`."
    ]


# --------------------------------------------------------------------------------------------------------- accuracy


@dataclass(frozen=True, eq=False)
class Score:
    """Top-1 predictions [R] on rows with labels [R], of ``classes`` classes."""

    predicted_R: Rows
    labels_R: Rows
    classes: int

    @classmethod
    def of(cls, outputs_RN: Outputs, labels_R: Rows) -> "Score":
        """The score of outputs [R, N] against labels [R]."""
        return cls(outputs_RN.argmax(axis=1), labels_R, outputs_RN.shape[1])

    @property
    def rows(self) -> int:
        return len(self.labels_R)

    @property
    def is_right_R(self) -> NDArray[np.bool_]:
        return np.equal(self.predicted_R, self.labels_R)

    @functools.cached_property
    def hits(self) -> int:
        return int(self.is_right_R.sum())

    @property
    def accuracy(self) -> float:
        return self.hits / self.rows

    @property
    def chance(self) -> float:
        """Mean accuracy of the same predictions against the same labels in random order."""
        return self._hits_by_chance / self.rows

    @property
    def _hits_by_chance(self) -> float:
        predicted_N, labelled_N = self._counts
        return int(predicted_N @ labelled_N) / self.rows

    @property
    def _counts(self) -> tuple[Rows, Rows]:
        predicted_N, labelled_N = (np.bincount(v, minlength=self.classes) for v in (self.predicted_R, self.labels_R))
        return predicted_N, labelled_N

    @functools.cached_property
    def explained_by_chance(self) -> bool:
        """Would the same labels in random order give as many hits with probability above ``ALPHA``?

        So few rows, or so few of all classes but one, that not even the most hits that these counts allow would be
        unlikely cannot tell; then only a score at or below chance counts. Nothing more can be asked than that all are
        right.
        """
        if self.hits == self.rows:
            return False
        predicted_N, labelled_N = self._counts
        if self.hits * self.rows <= int(predicted_N @ labelled_N):
            return True
        rng, labels_R = np.random.default_rng(0), self.labels_R
        hits = np.array([(self.predicted_R == rng.permutation(labels_R)).sum() for _ in range(PERMUTATIONS)])

        def probability(least: int) -> float:
            return (1 + int((hits >= least).sum())) / (1 + PERMUTATIONS)

        if probability(int(np.minimum(predicted_N, labelled_N).sum())) > ALPHA:
            return False
        return probability(self.hits) > ALPHA

    def permuted(self, order_N: Rows) -> "Score":
        """The score if the teacher's class k were the data set's ``order_N[k]``."""
        return Score(order_N[self.predicted_R], self.labels_R, self.classes)

    def part(self, rows: Rows) -> "Score":
        """The score on some of the rows."""
        return Score(self.predicted_R[rows], self.labels_R[rows], self.classes)

    def p_value(self, other: "Score") -> float:
        """McNemar's exact test, one-sided: how likely so many more hits than ``other``'s are if neither is better."""
        mine = int((self.is_right_R & np.logical_not(other.is_right_R)).sum())
        others = int((other.is_right_R & np.logical_not(self.is_right_R)).sum())
        return binomial_tail(mine, mine + others, 0.5)


def binomial_tail(hits: int, rows: int, chance: float) -> float:
    """P(X >= hits) of X ~ Binomial(rows, chance), 0 <= chance <= 1."""
    if hits == 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0

    def log_term(k: int) -> float:
        ways = math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        return ways + k * math.log(chance) + (rows - k) * math.log1p(-chance)

    return min(1.0, math.fsum(math.exp(log_term(k)) for k in range(hits, rows + 1)))


@dataclass(frozen=True)
class Explanation:
    """Another way to read the slice that is right significantly more often, and a sentence about it."""

    score: Score
    sentence: str


def _accuracy_refusal(score: Score, *found: Explanation | None) -> list[str]:
    explanations = [one for one in found if one]
    # A wrong order makes many a preprocessing seem better, and the other way round: who is far behind explains nothing.
    hints = [a.sentence for a in explanations if all(b.score.p_value(a.score) > ALPHA for b in explanations)]
    right = f"The teacher is right on {score.hits} of {score.rows} labelled pictures ({score.accuracy:.1%}), "
    if score.explained_by_chance:
        refusal = (
            f"{right}guessing would be on {score.chance:.1%}: its label order or its preprocessing does not fit this "
            "data set."
        )
        return [" ".join([refusal, *(hints or ["No usual preprocessing does better."])])]
    return [" ".join([f"{right}and on significantly more if it is used otherwise.", *hints])] if hints else []


# ------------------------------------------------------------------------------------------------------- class orders


def _better_order(score: Score, names: tuple[str, ...]) -> Explanation | None:
    """The order of the classes that is right significantly more often than the data set's own."""
    best, best_order_N, described = score, np.arange(score.classes), ""
    orders = _usual_orders(names)
    alpha = ALPHA / (len(orders) + 1)
    if 0.5 ** (score.rows - score.hits) > alpha:  # not even one that is right on all rows
        return None
    for description, order_N in orders:
        candidate = score.permuted(order_N)
        if candidate.p_value(best) <= alpha:
            best, best_order_N, described = candidate, order_N, description
    fitted_R, tested_R = _halves(score.labels_R)
    order_N = _assignment(score.part(fitted_R), best_order_N)
    if score.part(tested_R).permuted(order_N).p_value(best.part(tested_R)) <= alpha:
        best, best_order_N, described = score.permuted(order_N), order_N, "its classes so matched"
    if not described:
        return None
    moved = [k for k in np.unique(score.predicted_R[best.is_right_R]) if best_order_N[k] != k]
    examples = ", ".join(
        f"its class {k} is mostly {names[best_order_N[k]]!r} (class {best_order_N[k]} here)" for k in moved[:3]
    )
    return Explanation(
        best,
        f"The label order seems to differ: {examples}; with {described}, {best.accuracy:.1%} of {best.rows} pictures "
        f"are right, with the data set's order ({_listed(names)}) {score.accuracy:.1%}. No setting states an order: "
        "rename the class folders (numbers with leading zeros) or renumber the labels to have the teacher's order "
        "here, or export the teacher with its outputs in the data set's order.",
    )


def _usual_orders(names: tuple[str, ...]) -> list[tuple[str, Rows]]:
    """(description, order [N]) of the class names as people's programs sort them, the data set's own left out."""
    keys: dict[str, Callable[[str], list[tuple[int, str]]]] = {
        "the class names in the order of their numbers": _natural,
        "the class names sorted as text": lambda name: [(0, name)],
        "the class names sorted as Unicode composes them": lambda name: [(0, unicodedata.normalize("NFC", name))],
        "the class names sorted as macOS spells them, decomposed": lambda name: [
            (0, unicodedata.normalize("NFD", name))
        ],
        "the class names sorted regardless of case": lambda name: [(0, name.casefold())],
        "the class names in the order of their numbers, regardless of case": lambda name: _natural(name.casefold()),
    }
    orders: list[tuple[str, Rows]] = []
    seen = [tuple(range(len(names)))]
    for description, key in keys.items():
        sorted_names = sorted((key(name), k) for k, name in enumerate(names))
        order = tuple(k for _, k in sorted_names)
        if order not in seen:
            seen.append(order)
            orders.append((f"{description} ({_listed([names[k] for k in order])})", np.array(order)))
    return orders


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts runs of digits as numbers: class2 before class10."""
    parts = re.split(r"(\d+)", name)  # text and digits take turns
    stripped = [part.lstrip("0") if i % 2 else part for i, part in enumerate(parts)]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(stripped)]


def _listed(names: Sequence[str]) -> str:
    """The first names, short enough for a message."""
    shown = ", ".join(repr(name if len(name) <= 24 else f"{name[:23]}…") for name in names[:4])
    return f"{shown}, ..." if len(names) > 4 else shown


def _halves(labels_R: Rows) -> tuple[Rows, Rows]:
    """Two halves of the rows that have every class alike, give or take one row."""
    order_R = np.lexsort((np.random.default_rng(0).random(len(labels_R)), labels_R))
    return order_R[::2], order_R[1::2]


def _assignment(score: Score, preferred_N: Rows) -> Rows:
    """The order [N] with the most hits; where they tell nothing, that of ``preferred_N``.

    Solved for the K outputs that occur, or whose preferred class does: at most two for each row, however many classes.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s, and few processes come here

    output_K = np.union1d(score.predicted_R, np.argsort(preferred_N)[score.labels_R])
    column_N = np.empty(score.classes, dtype=np.int64)  # of the matrix, for a class of the data set
    column_N[preferred_N[output_K]] = np.arange(len(output_K))
    together_KK = np.zeros((len(output_K), len(output_K)))
    np.add.at(together_KK, (np.searchsorted(output_K, score.predicted_R), column_N[score.labels_R]), 1)
    # All of it together is less than one hit.
    together_KK[np.diag_indices(len(output_K))] += 1 / (len(output_K) + 1)
    _, matched_K = linear_sum_assignment(together_KK, maximize=True)
    order_N = preferred_N.copy()
    order_N[output_K] = preferred_N[output_K[matched_K]]
    return order_N


def _numeric_names(names: tuple[str, ...]) -> list[str]:
    """A warning if the class names are numbers in another order than that of their values."""
    if not all(name.isdecimal() for name in names):
        return []
    by_number = sorted(names, key=_natural)
    if by_number == list(names):
        return []
    k = next(k for k, name in enumerate(names) if name != by_number[k])
    return [
        f"the class names are numbers, but not in their order ({_listed(names)}): class {k} is {names[k]!r}, and a "
        f"teacher that was trained on the numbers has {by_number[k]!r} there. Leading zeros make text sort as numbers"
    ]


# ----------------------------------------------------------------------------------------------- other preprocessings


def _better_preprocessing(
    teacher: TeacherSession, dataset: Dataset, index_R: Rows, given: Score
) -> tuple[Explanation | None, int]:
    """(the best usual preprocessing if it is right significantly more often than the given one, rows run for it)."""
    variants = list(_usual_preprocessings(teacher.preprocessing))
    alpha = ALPHA / len(variants)
    if 0.5 ** (given.rows - given.hits) > alpha:  # not even one that is right on all rows
        return None, 0
    step = batch_rows(PART, teacher.preprocessing, dataset)
    # Strides, so that the first part shows all classes of a sorted data set.
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
                predicted_VR[v, rows] = teacher.outputs(images, variants[v]).argmax(axis=1)
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


def _usual_preprocessings(given: Preprocessing) -> Iterator[Preprocessing]:
    """The given scaling and the usual ones, each with the given channel order and with red and blue swapped."""
    count = given.channel_count
    scalings = [
        (given.scale, given.mean, given.std),
        (1 / 255, (0.0,) * count, (1.0,) * count),
        (1 / 255, (0.5,) * count, (0.5,) * count),
        (1.0, (0.0,) * count, (1.0,) * count),
    ]
    if count == 3:
        scalings.append((1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
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
