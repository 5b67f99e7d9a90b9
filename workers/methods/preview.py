"""The temperatures that a method would give, from a cache's statistics alone: nothing is trained, no logit is read.

The policies are the functions of ``policies`` that training runs, here on NumPy arrays and in float32 as there.
What a policy may read of the student is not known before there is one: it is taken from another cache (a weaker
network's), or from the teacher itself.

Shapes: V views, N samples, R = V N rows in the order (view, sample), B rows of a chunk, C classes, 1 kept for
broadcasting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from workers.errors import InvalidMethod, NotFinite
from workers.methods.method import Method, Term
from workers.methods.policies.base import Temperatures
from workers.methods.policies.catalog import POLICIES
from workers.methods.policies.expression import Expression
from workers.methods.policies.learned import Learned
from workers.methods.policies.usable import Unusable, first_unusable

PERCENTS = (0, 1, 5, 25, 50, 75, 95, 99, 100)
EXTREMES = 5

_CHUNK_ROWS = 1 << 16
_CHUNK_CELLS = 1 << 20  # [B, C] in chunks of 4 MiB, where a temperature differs between classes

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]


class PreviewModel(BaseModel):
    """Base of what a preview consists of; the API sends it as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PreviewRow(PreviewModel):
    """A row of the cache with the value it is given."""

    view: int
    sample: int = Field(description="its place in the split, from 0")
    value: float
    teacher: dict[str, float] = Field(description="the teacher's statistics of this row")
    student: dict[str, float] | None = Field(
        description="those that stand for the student's; null if the policy reads none of them"
    )


class Histogram(PreviewModel):
    """Bins of equal width; a single one of no width if all values are equal."""

    # The last bin holds its upper edge too.
    counts: tuple[int, ...]
    edges: tuple[float, ...] = Field(description="one more than there are counts")


class Distribution(PreviewModel):
    """A temperature or weight over all rows of the cache."""

    mean: float
    std: float = Field(description="divides by the number of rows")
    # For each of PERCENTS, interpolated linearly.
    quantiles: dict[str, float] = Field(description="p0, p1, p5, p25, p50, p75, p95, p99, p100, in percent")
    histogram: Histogram
    # At most EXTREMES each.
    lowest: tuple[PreviewRow, ...] = Field(
        description="five rows, lowest first; of equal ones the first by view and sample"
    )
    highest: tuple[PreviewRow, ...] = Field(description="five rows, highest first; of equal ones the first likewise")


StudentIs = Literal["unread", "teacher", "student_cache"]


class PreviewTerm(PreviewModel):
    """What the temperature policy of one of the method's terms gives."""

    parts: tuple[str, ...] = Field(description="what metrics call the parts of its loss")
    policy: str
    loss: str
    student_is: StudentIs = Field(
        description="whose statistics stood for the student's: nobody's if the policy reads none of them"
    )
    notes: tuple[str, ...] = Field(description="what was assumed, in sentences")
    # The mean over classes where they differ.
    teacher: Distribution = Field(description="of the temperature that divides the teacher's logits")
    student: Distribution = Field(description="of the temperature that divides the student's logits")
    weight: Distribution = Field(description="of the policy's factor, T^2 or its like, without the term's own weight")


def preview(
    method: Method,
    teacher: Mapping[str, Float32],
    classes: int,
    *,
    student: Mapping[str, Float32] | None = None,
    epoch: int,
    epochs: int,
    bins: int = 32,
) -> tuple[PreviewTerm, ...]:
    """What each term's policy gives for every row; a learned temperature has its initial value.

    Args:
        method: cross-entropy alone has no terms.
        teacher: the cached statistics of every row, float32 [V, N] by name; all of them are shown of extreme rows.
        classes: C.
        student: the same of what stands for the student; None takes the teacher's.
        epoch: counted from 1.
        epochs: of the whole run.
        bins: of each histogram.

    Raises:
        InvalidMethod: a loss sets its temperature itself, from logits.
        NotFinite: a temperature or weight that would stop a run; ``sample`` is its place in the split.
        ValueError: the student's statistics have another shape than the teacher's.
    """
    for term in method.terms:
        if term.loss.own_temperature:
            raise InvalidMethod(
                f"method {method.name!r} cannot be previewed: its loss {term.loss.kind!r} sets the temperature of its "
                "divergence itself, from both networks' logits, and a preview reads cached statistics alone"
            )
    table = _Table(teacher, student)
    return tuple(_preview_term(method, term, table, classes, epoch, epochs, bins) for term in method.terms)


@dataclass(frozen=True)
class CachedBatch:
    """``temperature.PolicyBatch`` of ``rows`` rows whose labels are not known."""

    rows: int
    classes: int
    epoch: int
    epochs: int

    @property
    def xp(self) -> ModuleType:
        return np

    def full(self, value: float) -> Float32:
        return np.full((self.rows, 1), value, np.float32)

    def is_label(self) -> npt.NDArray[np.bool_]:
        # Any class will do: only the mean over classes is shown.
        label_BC = np.zeros((self.rows, self.classes), np.bool_)
        label_BC[:, 0] = True
        return label_BC

    def detached(self, values: Float32) -> Float32:
        return values

    def detached_statistics(self, statistics: Mapping[str, Float32]) -> Mapping[str, Float32]:
        return statistics

    def with_slope(self, values: Float32, by: Float32, slope: Float32) -> Float32:
        return values

    def theta(self, config: Learned, gradient_scale: float) -> np.float32:
        return np.float32(config.theta)


class _Table:
    """The statistics of both networks, row by row.

    Attributes:
        teacher: [R] by name.
        student: likewise, the teacher's own where no other is given.
        student_is: whose they are.
        samples: N.
        rows: R.
    """

    def __init__(self, teacher: Mapping[str, Float32], student: Mapping[str, Float32] | None) -> None:
        self.student_is: StudentIs = "teacher" if student is None else "student_cache"
        student = teacher if student is None else student
        shape: tuple[int, ...] = next(iter(teacher.values())).shape
        if wrong := {values.shape for values in (*teacher.values(), *student.values())} - {shape}:
            raise ValueError(f"statistics are {shape} and {wrong.pop()}; all must be [views, samples] of the same rows")
        views, self.samples = shape
        self.rows = views * self.samples
        self.teacher = {name: values_VN.reshape(-1) for name, values_VN in teacher.items()}
        self.student = {name: values_VN.reshape(-1) for name, values_VN in student.items()}

    def place(self, row: int) -> tuple[int, int]:
        """(view, sample) of a row."""
        return divmod(row, self.samples)


def _preview_term(
    method: Method, term: Term, table: _Table, classes: int, epoch: int, epochs: int, bins: int
) -> PreviewTerm:
    reads_student = bool(term.policy.reads_of_student)
    given = _temperatures(method, term, table, classes, epoch, epochs)
    return PreviewTerm(
        parts=term.part_names,
        policy=term.policy.kind,
        loss=term.loss.kind,
        student_is=table.student_is if reads_student else "unread",
        notes=tuple(_notes(term, table)),
        teacher=_distribution(given.teacher, table, reads_student, bins),
        student=_distribution(given.student, table, reads_student, bins),
        weight=_distribution(given.weight, table, reads_student, bins),
    )


def _notes(term: Term, table: _Table) -> list[str]:
    notes = []
    if term.policy.reads_of_student and table.student_is == "teacher":
        notes.append(
            "the student's statistics are taken to equal the teacher's, as of a student that has become its teacher; "
            "name another network's cache as student_cache"
        )
    if isinstance(term.policy, Learned):
        notes.append("the temperature is learned: shown is the one that training begins with")
    if term.policy.gives_label_its_own:
        notes.append("the label's class has its own teacher temperature: shown is the mean over classes")
    return notes


def _temperatures(method: Method, term: Term, table: _Table, classes: int, epoch: int, epochs: int) -> Temperatures:
    """Of every row: float32 [R] each."""
    policy = term.policy
    chunk_rows = max(1, _CHUNK_CELLS // classes) if policy.gives_label_its_own else _CHUNK_ROWS
    whole = {side: np.empty(table.rows, np.float32) for side in ("student", "teacher", "weight")}
    for start in range(0, table.rows, chunk_rows):
        part = slice(start, min(start + chunk_rows, table.rows))
        student = {name: table.student[name][part, np.newaxis] for name in policy.reads_of_student}
        teacher = {name: table.teacher[name][part, np.newaxis] for name in policy.reads}
        # What leaves its domain becomes NaN or infinite, and is refused below.
        with np.errstate(all="ignore"):
            batch = CachedBatch(part.stop - start, classes, epoch, epochs)
            given = POLICIES[policy.kind](student, teacher, policy, batch).as_arrays(batch)
            given = replace(given, teacher=given.teacher.mean(axis=1, keepdims=True))
            unusable = first_unusable(given, np)
        if unusable is not None:
            raise _refusal(method, term, unusable, *table.place(start + unusable.sample))
        for side, values_R in whole.items():
            values_R[part] = getattr(given, side)[:, 0]
    return Temperatures(whole["student"], whole["teacher"], whole["weight"])


def _refusal(method: Method, term: Term, unusable: Unusable, view: int, sample: int) -> NotFinite:
    if isinstance(term.policy, Expression):
        reason = unusable.explain(term.policy, f"sample {sample}")
    else:
        what = "weight" if unusable.side == "weight" else f"{unusable.side} temperature"
        reason = (
            f"policy {term.policy.kind!r} gives sample {sample} the {what} {unusable.value:g}, because its statistics "
            "are too large or too small for float32: verify the cache"
        )
    return NotFinite(f"method {method.name!r}, view {view} of the cache: {reason}", sample)


def _distribution(values_R: Float32, table: _Table, reads_student: bool, bins: int) -> Distribution:
    low, high = np.float64(values_R.min()), np.float64(values_R.max())
    if low == high:
        # Rounding would leave a mean beside the value, and a std above 0.
        mean, std = low, np.float64(0.0)
        counts, edges = np.array([len(values_R)]), np.array([low, high])
    else:
        mean, std = values_R.mean(dtype=np.float64), values_R.std(dtype=np.float64)
        # The range in float64: float32 cannot cut neighbouring numbers into bins.
        counts, edges = np.histogram(values_R, bins, range=(low, high))
    quantiles = np.quantile(values_R, np.array(PERCENTS) / 100)

    def show(rows: Rows) -> tuple[PreviewRow, ...]:
        return tuple(_row(row, values_R, table, reads_student) for row in rows.tolist())

    return Distribution(
        mean=float(mean),
        std=float(std),
        quantiles={f"p{percent}": float(value) for percent, value in zip(PERCENTS, quantiles, strict=True)},
        histogram=Histogram(counts=tuple(counts.tolist()), edges=tuple(edges.tolist())),
        lowest=show(_lowest(values_R)),
        highest=show(_lowest(-values_R)),
    )


def _lowest(values_R: Float32) -> Rows:
    """The rows of the lowest values, lowest first, of equal ones the earlier: at most ``EXTREMES``."""
    count = min(EXTREMES, len(values_R))
    limit = np.partition(values_R, count - 1)[count - 1]
    below = np.flatnonzero(values_R < limit)
    below = below[np.argsort(values_R[below], kind="stable")]
    level = np.flatnonzero(values_R == limit)[: count - len(below)]
    return np.concatenate([below, level])


def _row(row: int, values_R: Float32, table: _Table, reads_student: bool) -> PreviewRow:
    view, sample = table.place(row)
    return PreviewRow(
        view=view,
        sample=sample,
        value=float(values_R[row]),
        teacher={name: float(known_R[row]) for name, known_R in table.teacher.items()},
        student={name: float(known_R[row]) for name, known_R in table.student.items()} if reads_student else None,
    )
