"""Report of a preview: models of what it consists of, and the distribution of a value over a cache's rows.

Shapes: V views, N samples, R = V N rows in the order (view, sample).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

PERCENTS = (0, 1, 5, 25, 50, 75, 95, 99, 100)
EXTREMES = 5

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
    """Temperatures and weight that the policy of one of the method's terms gives."""

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


class StatisticsTable:
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


def distribution(values_R: Float32, table: StatisticsTable, reads_student: bool, bins: int) -> Distribution:
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
        lowest=show(lowest(values_R, EXTREMES)),
        highest=show(lowest(-values_R, EXTREMES)),
    )


def lowest(values_R: Float32, count: int) -> Rows:
    """Find the rows of the lowest values, lowest first, of equal ones the earlier: at most ``count``."""
    count = min(count, len(values_R))
    limit = np.partition(values_R, count - 1)[count - 1]
    below = np.flatnonzero(values_R < limit)
    below = below[np.argsort(values_R[below], kind="stable")]
    level = np.flatnonzero(values_R == limit)[: count - len(below)]
    return np.concatenate([below, level])


def _row(row: int, values_R: Float32, table: StatisticsTable, reads_student: bool) -> PreviewRow:
    view, sample = table.place(row)
    return PreviewRow(
        view=view,
        sample=sample,
        value=float(values_R[row]),
        teacher={name: float(known_R[row]) for name, known_R in table.teacher.items()},
        student={name: float(known_R[row]) for name, known_R in table.student.items()} if reads_student else None,
    )
