"""Logarithmic bins of temperatures that never change, and the distribution of temperatures in them. No torch.

Bins are sixteenths of an octave from 2^-10 to 2^14, 4.4 % wide, so that runs, epochs, attempts and methods can be added
up and compared, and a temperature of any size is told to a few percent. Each series of counts has a cell more at either
end, for what lies outside.

Shapes: N temperatures, X cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_EXPONENT, GREATEST_EXPONENT, BINS_PER_OCTAVE = -10, 14, 16
BINS = (GREATEST_EXPONENT - LEAST_EXPONENT) * BINS_PER_OCTAVE
# Below all bins, the bins, above all.
CELLS = BINS + 2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

EDGES = np.exp2(LEAST_EXPONENT + np.arange(BINS + 1) / BINS_PER_OCTAVE)
"""Edges of the bins, float64 [BINS + 1], ascending."""


@dataclass(frozen=True)
class TemperatureDistribution:
    """Temperatures of all samples that an epoch has trained on.

    Attributes:
        mean, std: exact, up to rounding.
        cells_X: int64 [CELLS], how many lie in each; None where all are the mean.
    """

    mean: float
    std: float
    cells_X: NDArray[np.int64] | None = None

    def quantiles(self) -> dict[str, float | None]:
        """``q05`` to ``q95``, interpolated within bins: to 4.4 % at worst. None where nothing was counted."""
        names = [f"q{round(100 * share):02d}" for share in QUANTILES]
        if self.cells_X is None:
            return dict.fromkeys(names, self.mean)
        return dict(zip(names, _quantiles(self.cells_X), strict=True))

    def document(self) -> dict[str, object]:
        """As ``temperatures.json`` has it: counts from the first bin that is not empty to the last one."""
        known: dict[str, object] = {"mean": self.mean, "std": self.std, **self.quantiles()}
        if self.cells_X is None:
            return known
        below, *counts, above = self.cells_X.tolist()
        filled = np.flatnonzero(counts)
        first, stop = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
        return {**known, "first_bin": first, "counts": counts[first:stop], "below": below, "above": above}


def _quantiles(cells_X: NDArray[np.int64]) -> Sequence[float | None]:
    total = int(cells_X.sum())
    if total == 0:
        return [None] * len(QUANTILES)
    # Up to the end of each cell; within a bin, a temperature's logarithm is taken to be uniform.
    reached_X = np.cumsum(cells_X)
    found = []
    for share in QUANTILES:
        rank = share * total
        cell = int(np.searchsorted(reached_X, rank))
        place = min(max(cell - 1, 0), BINS - 1)
        within = (rank - (reached_X[cell] - cells_X[cell])) / cells_X[cell]
        within = 0.0 if cell == 0 else 1.0 if cell == CELLS - 1 else within
        found.append(float(2.0 ** (LEAST_EXPONENT + (place + within) / BINS_PER_OCTAVE)))
    return found


def count(values_N: NDArray[np.float32]) -> TemperatureDistribution:
    """Count temperatures, one at least, in cells."""
    cell_N = np.searchsorted(EDGES.astype(np.float32), values_N, side="right")
    cells_X = np.bincount(cell_N, minlength=CELLS).astype(np.int64)
    return TemperatureDistribution(
        float(values_N.mean(dtype=np.float64)), float(values_N.std(dtype=np.float64)), cells_X
    )
