"""Histograms and quantiles of an epoch's temperatures, counted on the device in the bins of ``temperature_bins``.

Counts are whole numbers: the order in which steps and threads add to them does not matter.

A *divisor* is what divides the logits; ``paper`` is what the method's paper calls the temperature, see
``methods.policies.base.Temperatures``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.methods.temperature_bins import BINS, BINS_PER_OCTAVE, EDGES, LEAST_EXPONENT, TemperatureDistribution


def bin_edges(device: torch.device) -> Tensor:
    """Edges of the bins, float32 [BINS + 1], ascending."""
    return torch.from_numpy(EDGES.astype(np.float32)).to(device)


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
class NetworkTemperatures:
    """One network's temperatures in an epoch; the two are one object where the divisor is the paper's temperature."""

    divisor: TemperatureDistribution
    paper: TemperatureDistribution


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
