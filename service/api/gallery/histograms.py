"""Histograms of temperatures over common bins: of methods on a training cache, and of runs as they were measured.

Shapes: X cells of ``workers.methods.temperature_bins``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.api.schemas.temperatures import TemperatureHistogram
from service.errors import Conflict
from workers.methods import temperature_bins
from workers.methods.temperature_bins import BINS, CELLS, EDGES, TemperatureDistribution

FILE = "temperatures.json"
NETWORKS = ("teacher", "student")


@dataclass(frozen=True)
class Shares:
    """A distribution as shares of all rows, [CELLS], with mean, std and quantiles as they are shown."""

    mean: float
    std: float
    quantiles: Mapping[str, float | None]
    shares_X: npt.NDArray[np.float64]

    @classmethod
    def of(cls, values_N: npt.NDArray[np.float32]) -> "Shares":
        """Of the temperatures of rows."""
        counted = temperature_bins.count(values_N)
        assert counted.cells_X is not None
        return cls(counted.mean, counted.std, counted.quantiles(), counted.cells_X / len(values_N))

    @classmethod
    def of_document(cls, known: Mapping[str, Any]) -> "Shares":
        """Of a network's entry in ``temperatures.json``."""
        cells_X = np.zeros(CELLS, np.int64)
        if "counts" in known:
            first = 1 + int(known["first_bin"])
            cells_X[first : first + len(known["counts"])] = known["counts"]
            cells_X[0], cells_X[-1] = known["below"], known["above"]
        else:
            # All are the mean.
            cells_X[np.searchsorted(EDGES.astype(np.float32), np.float32(known["mean"]), side="right")] = 1
        found = TemperatureDistribution(float(known["mean"]), float(known["std"]), cells_X)
        quantiles = {name: known.get(name) for name in found.quantiles()}
        return cls(found.mean, found.std, quantiles, cells_X / max(1, int(cells_X.sum())))


def common_bins(all_shares: Iterable[Shares]) -> range:
    """Numbers of the bins from the first to the last that one of several distributions needs; empty if none does."""
    filled_X = np.zeros(CELLS, np.bool_)
    for each in all_shares:
        filled_X |= each.shares_X > 0
    bins = np.flatnonzero(filled_X[1:-1])
    return range(int(bins[0]), int(bins[-1]) + 1) if len(bins) else range(0)


def edges_of(bins: range) -> list[float]:
    """Edges of these bins, one more than there are; none of none."""
    return [float(f"{edge:.9g}") for edge in EDGES[bins.start : bins.stop + 1]] if bins else []


def show(shares: Shares, bins: range) -> TemperatureHistogram:
    """Document of a distribution over these bins."""
    return TemperatureHistogram(
        mean=shares.mean,
        std=shares.std,
        quantiles=dict(shares.quantiles),
        shares=[float(f"{share:.6g}") for share in shares.shares_X[1 + bins.start : 1 + bins.stop]],
        below=float(shares.shares_X[0]),
        above=float(shares.shares_X[-1]),
    )


@lru_cache(maxsize=1024)
def measured(path: Path, sha256: str, epoch: int | None, kind: str) -> tuple[int, dict[str, Shares]]:
    """Temperatures by network that a run has measured in one epoch: the last one if it is None.

    Args:
        sha256: of the file, which never changes under its digest.

    Returns:
        The epoch, and the distributions by network.

    Raises:
        Conflict: the file has no such epoch, or other bins.
    """
    document = json.loads(path.read_bytes())
    bins = document["bins"]
    if (bins["least_exponent"], bins["bins_per_octave"], bins["count"]) != (
        temperature_bins.LEAST_EXPONENT,
        temperature_bins.BINS_PER_OCTAVE,
        BINS,
    ):
        raise Conflict("another version has measured it, in other bins")
    by_epoch = {int(line["epoch"]): line for line in document["epochs"]}
    number = max(by_epoch, default=0) if epoch is None else epoch
    if number not in by_epoch:
        raise Conflict(f"it has no epoch {epoch}" if epoch is not None else "it has trained no epoch")
    line = by_epoch[number]
    return number, {network: Shares.of_document(line[network][kind]) for network in NETWORKS if network in line}
