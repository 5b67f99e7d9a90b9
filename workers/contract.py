"""The contract check: do this teacher and this data set belong together? Asked before any long work, on a few rows.

In the order in which a mistake would spoil the rest:

1. the class count that the graph declares, and that it really has, is the data set's;
2. one picture runs through in reasonable time; the outputs are finite;
3. the same pictures alone and in a batch give the same outputs (else: training mode, or a graph that mixes the batch);
4. rows that are >= 0 and sum to 1 are probabilities: their log is cached, and the fact is part of the cache's key;
5. the teacher is right more often than predictions that know nothing of the picture. If not, label order or
   preprocessing is wrong; both are tried out, and the message says which one it seems to be.

Chance is the accuracy of the same predictions against independent labels, sum over classes of P(predicted) P(label):
it suits unbalanced data and constant predictions. It explains the hits if a binomial variable of that mean reaches
them with probability above ``ALPHA``.

What it does not do: judge how good a teacher is. A weak one passes.

Legend: R rows of the slice, N classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from workers.config import Preprocessing
from workers.datasets import Dataset
from workers.errors import ContractViolation, InvalidTeacher, NotFinite
from workers.onnx_check import TeacherGraph
from workers.smoke import BATCH_TOLERANCE

OutputKind = Literal["logits", "log_probabilities"]
Rows = NDArray[np.int64]
Images = NDArray[np.uint8]
Outputs = NDArray[np.float32]

ALPHA = 0.01  # the chance that a teacher which only guesses gets through
BATCH = 64
FIRST_TIMEOUT_S = 120.0  # for one picture: a hostile graph may loop for ever
ALONE_ROWS = 4  # pictures compared alone and in a batch

# Probabilities of a row sum to 1 up to their own rounding.
SUM_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2}

# Another preprocessing or label order is mentioned if its accuracy is higher by so much (a fraction of the rows).
MARGIN = 0.2
VARIANT_ROWS = 64
ROWS_PER_CLASS = 20  # with fewer, the best matching of two label orders is mostly noise


class ContractReport(BaseModel):
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
    warnings: tuple[str, ...] = ()


class Session(Protocol):
    """What the check needs of a ``workers.teacher.Teacher``."""

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


def check(teacher: Session, dataset: Dataset, rows: int) -> ContractReport:
    """Run the check on ``rows`` pictures, spread evenly over ``dataset``.

    Raises:
        InvalidTeacher: it does not run, or a picture's outputs depend on the batch.
        NotFinite: NaN or infinite outputs.
        ContractViolation: wrong class count, or no better than chance.
    """
    index_R = spread(len(dataset.labels_N), rows)
    images, labels_R = dataset.take(index_R), dataset.labels_N[index_R]
    _check_classes(teacher.graph.classes, dataset)
    first = teacher.outputs(images[:1], timeout_s=FIRST_TIMEOUT_S)
    _check_classes(first.shape[1], dataset)

    outputs_RN = np.concatenate([teacher.outputs(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
    _check_finite(outputs_RN, index_R)
    alone = spread(len(images), ALONE_ROWS)
    difference, tolerance = _check_alone(teacher, images, outputs_RN, alone)
    kind, warnings = _output_kind(teacher, outputs_RN)

    score = Score.of(outputs_RN, labels_R)
    suggestion, variant_rows = _better_preprocessing(teacher, images, labels_R, outputs_RN)
    if score.explained_by_chance:
        hints = (_other_label_order(outputs_RN, labels_R, dataset.class_names, score), suggestion)
        raise ContractViolation(_refusal(score, [hint for hint in hints if hint]))
    if suggestion:
        warnings.append(f"{suggestion} The given preprocessing is used all the same.")
    return ContractReport(
        rows=len(index_R),
        forwards=1 + len(index_R) + len(alone) + variant_rows,
        classes=outputs_RN.shape[1],
        output=teacher.graph.output,
        output_kind=kind,
        accuracy=score.accuracy,
        chance=score.chance,
        batch_difference=difference,
        batch_tolerance=tolerance,
        provider=teacher.provider,
        provider_reason=teacher.provider_reason,
        warnings=tuple(warnings),
    )


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


def _check_alone(teacher: Session, images: Images, outputs_RN: Outputs, rows: Rows) -> tuple[float, float]:
    """(largest difference, largest allowed) between ``rows`` alone and in their batch."""
    alone = np.concatenate([teacher.outputs(images[row : row + 1]) for row in rows])
    difference = float(np.abs(alone - outputs_RN[rows]).max())
    tolerance = BATCH_TOLERANCE[teacher.graph.output_dtype] * float(np.abs(outputs_RN).max())
    if not difference <= tolerance:
        raise InvalidTeacher(
            f"the same picture gives other outputs alone than in a batch of {min(BATCH, len(images))} (difference "
            f"{difference:.3g}, {tolerance:.3g} is allowed): batch normalisation or dropout is in training mode, or "
            "the graph mixes the pictures of a batch. Export it in eval mode"
        )
    return difference, tolerance


def _output_kind(teacher: Session, outputs_RN: Outputs) -> tuple[OutputKind, list[str]]:
    tolerance = SUM_TOLERANCE[teacher.graph.output_dtype]
    z_RN = outputs_RN.astype(np.float64)
    if (z_RN >= 0).all() and np.abs(z_RN.sum(axis=1) - 1).max() <= tolerance:
        return "log_probabilities", [
            "the teacher ends in a softmax: the log of its output is cached, at least -87.3. Logits without a softmax "
            "keep more, and temperature methods that use their size (max, norm) mean those"
        ]
    if (z_RN <= 0).all() and np.abs(np.exp(z_RN).sum(axis=1) - 1).max() <= tolerance:
        return "logits", [
            "the teacher ends in a log-softmax: its output is cached as it is. Temperature methods that use the "
            "logits' size (max, norm) mean logits without it"
        ]
    return "logits", []


# --------------------------------------------------------------------------------------------------------- accuracy


@dataclass(frozen=True)
class Score:
    """Top-1 hits on labelled rows, and the accuracy that chance would give."""

    hits: int
    rows: int
    chance: float

    @classmethod
    def of(cls, outputs_RN: Outputs, labels_R: Rows) -> "Score":
        """The score of outputs [R, N] against labels [R]."""
        rows, classes = outputs_RN.shape
        predicted_R = outputs_RN.argmax(axis=1)
        shares = [np.bincount(values, minlength=classes) / rows for values in (predicted_R, labels_R)]
        return cls(int((predicted_R == labels_R).sum()), rows, float(shares[0] @ shares[1]))

    @property
    def accuracy(self) -> float:
        return self.hits / self.rows

    @property
    def explained_by_chance(self) -> bool:
        """Would guessing reach as many hits with probability above ``ALPHA``?

        So few rows that not even all of them right would be unlikely cannot tell; then only a score at or below
        chance counts. Nothing more can be asked than that all are right.
        """
        if self.hits == self.rows:
            return False
        if self.chance**self.rows > ALPHA:
            return self.accuracy <= self.chance
        return binomial_tail(self.hits, self.rows, self.chance) > ALPHA


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


def _refusal(score: Score, hints: list[str]) -> str:
    found = (
        f"the teacher is right on {score.hits} of {score.rows} labelled pictures ({score.accuracy:.1%}), guessing "
        f"would be on {score.chance:.1%}: its label order or its preprocessing does not fit this data set."
    )
    return " ".join([found, *hints]) if hints else f"{found} No usual preprocessing does better."


def _other_label_order(outputs_RN: Outputs, labels_R: Rows, names: tuple[str, ...], score: Score) -> str | None:
    """A sentence if each class of the teacher goes with one of the data set, but not the one of its number."""
    rows, classes = outputs_RN.shape
    if rows < ROWS_PER_CLASS * classes:
        return None
    together = np.zeros((classes, classes), dtype=np.int64)  # [predicted, label]
    np.add.at(together, (outputs_RN.argmax(axis=1), labels_R), 1)
    accuracy = float(together.max(axis=1).sum()) / rows
    if accuracy - score.accuracy < MARGIN:
        return None
    match = together.argmax(axis=1)
    moved = [k for k in range(classes) if match[k] != k and together[k].any()]
    examples = ", ".join(f"its class {k} is mostly {names[match[k]]!r} (class {match[k]} here)" for k in moved[:3])
    return f"The label order seems to differ: {examples}; so matched, {accuracy:.1%} would be right."


# ----------------------------------------------------------------------------------------------- other preprocessings


def _better_preprocessing(
    teacher: Session, images: Images, labels_R: Rows, outputs_RN: Outputs
) -> tuple[str | None, int]:
    """(a sentence about the best usual preprocessing if it beats the given one by ``MARGIN``, rows run for it)."""
    part = spread(len(images), VARIANT_ROWS)
    given = Score.of(outputs_RN[part], labels_R[part])
    if given.accuracy > 1 - MARGIN:
        return None, 0
    variants = list(_usual_preprocessings(teacher.preprocessing))
    scores = [Score.of(teacher.outputs(images[part], variant), labels_R[part]) for variant in variants]
    forwards = len(part) * len(variants)
    best, variant = max(zip(scores, variants, strict=True), key=lambda pair: pair[0].hits)
    if best.accuracy - given.accuracy < MARGIN or best.explained_by_chance:
        return None, forwards
    return (
        f"The preprocessing seems to be another: with {_changes(teacher.preprocessing, variant)}, {best.accuracy:.1%} "
        f"of {len(part)} pictures are right, with the given one {given.accuracy:.1%}.",
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
