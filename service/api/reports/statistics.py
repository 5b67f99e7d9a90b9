"""Statistics over seeds: mean and deviation, differences paired by seed with a t interval, McNemar's exact test.

Pure functions of numbers. Two runs of one seed begin with the same weights and see the same batches, so what a seed
does to both cancels in their difference: the interval is of the mean of differences, not of the difference of means.
Scipy gives the distributions; it is imported on first use, for that takes half a second and 70 MiB.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key", bound=Hashable)
# Differences of fractions that are equal on paper differ by so much in floating point.
_EQUAL = 1e-12


@dataclass(frozen=True, slots=True)
class MeanOfSample:
    """Mean of some values, their standard deviation (of a sample, divided by n - 1), and how many there are.

    Attributes:
        std: None of a single value, which says nothing about spread.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Interval:
    """Confidence interval of a mean, and the p-value of the mean being 0, two-sided, by Student's t distribution."""

    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Extremes:
    """Index and value of the smallest and of the largest of some numbers; of equals the first."""

    worst: tuple[int, float]
    best: tuple[int, float]


def estimate(values: Iterable[float | None]) -> MeanOfSample | None:
    """Estimate of the values that are finite numbers; None where there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return MeanOfSample(mean, None, 1)
    squares = math.fsum((value - mean) ** 2 for value in known)
    return MeanOfSample(mean, math.sqrt(squares / (len(known) - 1)), len(known))


def paired_differences(values: Mapping[Key, float], baseline: Mapping[Key, float]) -> dict[Key, float]:
    """Value less baseline of every key that both have, in the order of ``values``."""
    return {key: value - baseline[key] for key, value in values.items() if key in baseline}


def t_intervals(means: Sequence[MeanOfSample | None], confidence: float) -> list[Interval | None]:
    """Intervals of means of differences by Student's t distribution with n - 1 degrees of freedom.

    Args:
        means: of differences, each of its own sample.
        confidence: between 0 and 1, such as 0.95.

    Returns:
        For each mean its interval; None for fewer than two differences, and for differences that are all equal: their
        deviation is 0, so the formula gives an interval without width, however few they are.
    """
    spread = [index for index, mean in enumerate(means) if mean is not None and _varies(mean)]
    intervals: list[Interval | None] = [None] * len(means)
    if not spread:
        return intervals
    from scipy import stats

    found = [mean for mean in means if mean is not None and _varies(mean)]
    mean_G = np.array([mean.mean for mean in found])
    error_G = np.array([(mean.std or 0.0) / math.sqrt(mean.n) for mean in found])
    freedom_G = np.array([mean.n - 1 for mean in found])
    low_G, high_G = stats.t.interval(confidence, freedom_G, loc=mean_G, scale=error_G)
    p_G = 2 * stats.t.sf(np.abs(mean_G) / error_G, freedom_G)
    for place, index in enumerate(spread):
        intervals[index] = Interval(float(low_G[place]), float(high_G[place]), float(p_G[place]))
    return intervals


def _varies(mean: MeanOfSample) -> bool:
    return mean.std is not None and mean.std > _EQUAL * max(1.0, abs(mean.mean))


def mcnemar(only_baseline: int, only_method: int) -> float:
    """P-value of McNemar's exact test (McNemar 1947), two-sided, of two classifiers on the same rows.

    Rows on which both are right, or both wrong, say nothing; under the null hypothesis each of the others is as likely
    one way as the other, so their count is binomial with probability 1/2.

    Args:
        only_baseline: rows on which the baseline alone is right.
        only_method: rows on which the method alone is right.

    Returns:
        1 where there are no such rows.
    """
    if only_baseline + only_method == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(only_method, only_baseline + only_method, 0.5).pvalue)


def discordant(baseline_N: npt.NDArray[np.bool_], method_N: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Counts of rows on which the baseline alone is right, and on which the method alone is.

    Args:
        baseline_N, method_N: bool [rows], whether the class of each row was found.

    Raises:
        ValueError: they have different shapes.
    """
    if baseline_N.shape != method_N.shape:
        raise ValueError(f"correctness of {baseline_N.shape} and of {method_N.shape} rows: it has to be the same rows")
    return int((baseline_N & ~method_N).sum()), int((method_N & ~baseline_N).sum())


def class_means(accuracies: Sequence[Sequence[float | None]]) -> npt.NDArray[np.float64]:
    """Mean accuracy of each class over runs, float64 [classes]; NaN of a class that a run has no row of.

    Args:
        accuracies: of each run, by class; None where the split has no row of the class.

    Raises:
        ValueError: runs have different numbers of classes.
    """
    table: npt.NDArray[np.float64] = np.array(accuracies, dtype=np.float64)
    mean_C: npt.NDArray[np.float64] = table.mean(axis=0)
    return mean_C


def extremes(values: npt.NDArray[Any]) -> Extremes | None:
    """Worst and best of the numbers [classes] that are not NaN; None where all are."""
    if not len(values) or np.isnan(values).all():
        return None
    worst, best = int(np.nanargmin(values)), int(np.nanargmax(values))
    return Extremes((worst, float(values[worst])), (best, float(values[best])))
