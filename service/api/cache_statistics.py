"""Histograms of the statistics of a teacher's logits.

Shapes: N rows of a view.
"""

from collections.abc import Mapping

import numpy as np

from service.api.schemas.caches import StatisticSummary
from store.statistics import Float32
from workers.methods.preview_report import Histogram


def summarise_statistics(statistics: Mapping[str, Float32], bins: int) -> dict[str, StatisticSummary]:
    """Summarise each statistic, [N] by name, and the confidence that follows from two of them."""
    confidence_N = np.exp(statistics["max"].astype(np.float64) - statistics["sharpness"]).astype(np.float32)
    return {name: _summary(values_N, bins) for name, values_N in {**statistics, "confidence": confidence_N}.items()}


def _summary(values_N: Float32, bins: int) -> StatisticSummary:
    # In float64: float32 cannot cut neighbouring numbers into bins.
    least, greatest = float(values_N.min()), float(values_N.max())
    if least == greatest:
        counts, edges = [len(values_N)], [least, greatest]
    else:
        counted, cut = np.histogram(values_N.astype(np.float64), bins, range=(least, greatest))
        counts, edges = counted.tolist(), cut.tolist()
    return StatisticSummary(
        mean=float(values_N.mean(dtype=np.float64)),
        std=float(values_N.std(dtype=np.float64)),
        least=least,
        greatest=greatest,
        histogram=Histogram(counts=tuple(counts), edges=tuple(edges)),
    )
