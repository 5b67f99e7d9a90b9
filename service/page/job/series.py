"""Series over seeds: smoothing, and the mean with its band. Plain functions, without anything of the page."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

Spread = Literal["range", "std"]
# Points of a drawn line; of more epochs, every n-th and the last.
POINTS_MAX = 400
Row = tuple[float, float, float, float]
"""Epoch, mean over seeds, lower and upper end of the band."""


def smooth(values: Mapping[int, float], weight: float) -> dict[int, float]:
    """Exponential moving average over epochs, without the bias to 0 at the beginning (Kingma and Ba 2015, section 3).

    Args:
        weight: of what came before, 0 (nothing is smoothed) to below 1.
    """
    smoothed: dict[int, float] = {}
    average, whole = 0.0, 0.0
    for epoch in sorted(values):
        average = weight * average + (1.0 - weight) * values[epoch]
        whole = weight * whole + (1.0 - weight)
        smoothed[epoch] = average / whole
    return smoothed


def over_seeds(curves: Sequence[Mapping[int, float]], spread: Spread) -> list[Row]:
    """Mean and band in each epoch, over the seeds that have it; of one seed the band has no width.

    Args:
        spread: ``range`` from the least to the greatest, or ``std``: the deviation of a sample (n - 1) either side.
    """
    rows: list[Row] = []
    for epoch in sorted({epoch for curve in curves for epoch in curve}):
        found = [curve[epoch] for curve in curves if epoch in curve]
        mean = statistics.fmean(found)
        if spread == "range":
            rows.append((epoch, mean, min(found), max(found)))
        else:
            deviation = statistics.stdev(found) if len(found) > 1 else 0.0
            rows.append((epoch, mean, mean - deviation, mean + deviation))
    return thinned(rows)


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Every n-th row and the last, at most ``POINTS_MAX`` and one."""
    step = math.ceil(len(rows) / POINTS_MAX)
    return list(rows) if step < 2 else [*rows[:-1:step], rows[-1]]


def scaled(row: Row, factor: float) -> Row:
    """Row in another unit, to 6 significant digits."""
    epoch, *values = row
    mean, lower, upper = (float(f"{value * factor:.6g}") for value in values)
    return epoch, mean, lower, upper
