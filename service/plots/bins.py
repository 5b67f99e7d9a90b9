"""Bins of confidence, as a run's evaluation.json has them: ``workers.measures`` has counted them.

Guo et al. 2017 (arXiv 1706.04599): predictions fall into 15 equal bins of confidence, right-closed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.client.transport import Document


@dataclass(frozen=True)
class Reliability:
    """Bins of confidence, B of them.

    Attributes:
        share_B: float64, the part of all rows in each bin.
        confidence_B, accuracy_B: float64, means of the rows of a bin; NaN in an empty one.
        ece: expected calibration error, 0..1.
    """

    share_B: np.ndarray
    confidence_B: np.ndarray
    accuracy_B: np.ndarray
    ece: float


@dataclass(frozen=True)
class Calibration:
    """Reliability as trained, and with logits divided by the run's temperature; None where it has fitted none."""

    plain: Reliability
    calibrated: Reliability | None


def calibrations_of(evaluation: Document) -> Mapping[str, Calibration]:
    """Bins of each split of evaluation.json; of none where an earlier version has written it."""
    return {
        split: Calibration(_reliability(found), _reliability(after) if (after := found.get("calibrated")) else None)
        for split, found in (evaluation.get("splits") or {}).items()
        # Of a split without labels no bin has a row.
        if found.get("reliability") and sum(found["reliability"]["rows"])
    }


def _reliability(found: Document) -> Reliability:
    bins = found["reliability"]
    rows_B = np.array(bins["rows"], float)
    # An empty bin has null, which is NaN as a float.
    confidence_B, accuracy_B = (np.array(bins[name], float) for name in ("confidence", "accuracy"))
    return Reliability(rows_B / rows_B.sum(), confidence_B, accuracy_B, float(found["ece"]))
