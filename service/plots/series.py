"""Series over seeds: mean and standard deviation of a metric in each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.plots.data import RunData


@dataclass(frozen=True)
class Band:
    """A metric over epochs: mean over the seeds that have it, and their standard deviation.

    Attributes:
        epochs_E: int64 [E], those that any seed has.
        mean_E, std_E: float64 [E]; the deviation (n - 1) is 0 where one seed has the epoch.
        seeds: the most that an epoch has.
    """

    epochs_E: np.ndarray
    mean_E: np.ndarray
    std_E: np.ndarray
    seeds: int


def band(runs: Sequence[RunData], metric: str) -> Band | None:
    """The band of a metric over runs of several seeds; None where none of them has it."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for line in run.metrics:
            value = line.get(metric)
            if value is not None:
                values.setdefault(int(line["epoch"]), []).append(float(value))
    if not values:
        return None
    epochs = sorted(values)
    return Band(
        epochs_E=np.array(epochs),
        mean_E=np.array([np.mean(values[epoch]) for epoch in epochs]),
        std_E=np.array([np.std(values[epoch], ddof=1) if len(values[epoch]) > 1 else 0.0 for epoch in epochs]),
        seeds=max(map(len, values.values())),
    )


def metric_names(runs: Sequence[RunData]) -> list[str]:
    """Every metric that an epoch of any run has a number for, in the order of the lines."""
    found = {name: None for run in runs for line in run.metrics for name, value in line.items() if value is not None}
    return [name for name in found if name != "epoch"]
