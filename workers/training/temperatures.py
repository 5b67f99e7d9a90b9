"""Histograms and quantiles of an epoch's temperatures, counted on the device in logarithmic bins that never change.

Bins are sixteenths of an octave from 2^-10 to 2^14, 4.4 % wide, so that runs, epochs and attempts can be added up, and
a temperature of any size is told to a few percent. Each series of counts has a cell more at either end, for what lies
outside. Counts are whole numbers: the order in which steps and threads add to them does not matter.

A *divisor* is what divides the logits; ``paper`` is what the method's paper calls the temperature, see
``methods.policies.base.Temperatures``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST_EXPONENT, GREATEST_EXPONENT, BINS_PER_OCTAVE = -10, 14, 16
BINS = (GREATEST_EXPONENT - LEAST_EXPONENT) * BINS_PER_OCTAVE
# Below all bins, the bins, above all.
CELLS = BINS + 2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_EDGES = np.exp2(LEAST_EXPONENT + np.arange(BINS + 1) / BINS_PER_OCTAVE)


def bin_edges(device: torch.device) -> Tensor:
    """Edges of the bins, float32 [BINS + 1], ascending."""
    return torch.from_numpy(_EDGES.astype(np.float32)).to(device)


def count_cells(cells_RX: Tensor, tau_RB: Tensor, edges: Tensor, one: Tensor) -> None:
    """Add 1 to each temperature's cell: two launches, whatever R.

    Args:
        cells_RX: float64 [R, CELLS], changed in place.
        tau_RB: float32 [R, B], contiguous.
        edges: ``bin_edges``.
        one: [] on the same device, in the dtype of the cells: 1.
    """
    cell_RB = torch.bucketize(tau_RB, edges, right=True)
    cells_RX.scatter_add_(1, cell_RB, one.expand(cell_RB.shape))


@dataclass(frozen=True)
class Distribution:
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


@dataclass(frozen=True)
class NetworkTemperatures:
    """One network's temperatures in an epoch; the two are one object where the divisor is the paper's temperature."""

    divisor: Distribution
    paper: Distribution


EpochTemperatures = Mapping[str, NetworkTemperatures]
"""By network, ``student`` and ``teacher``; empty for a method without temperatures."""


def metrics_of(temperatures: EpochTemperatures) -> dict[str, float | None]:
    """Temperatures as a line of metrics.jsonl has them; nothing of them for a method without."""
    metrics: dict[str, float | None] = {}
    for network, found in temperatures.items():
        metrics |= {f"{network}_temperature_mean": found.divisor.mean, f"{network}_temperature_std": found.divisor.std}
    for network, found in temperatures.items():
        name, paper = f"{network}_paper_temperature", found.paper
        metrics |= {f"{name}_mean": paper.mean, f"{name}_std": paper.std}
        metrics |= {f"{name}_{quantile}": value for quantile, value in paper.quantiles().items()}
    return metrics


def epoch_document(epoch: int, temperatures: EpochTemperatures) -> dict[str, object]:
    """One item of ``epochs`` in ``temperatures.json``; ``epoch`` is counted from 1."""
    return {
        "epoch": epoch,
        **{
            network: {"divisor": found.divisor.document(), "paper": found.paper.document()}
            for network, found in temperatures.items()
        },
    }


def document(epochs: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """``temperatures.json``: bin i begins at 2^(``least_exponent`` + i / ``bins_per_octave``)."""
    bins = {"least_exponent": LEAST_EXPONENT, "bins_per_octave": BINS_PER_OCTAVE, "count": BINS}
    return {"bins": bins, "epochs": list(epochs)}
