"""Logits of the dataset's classes from a teacher's output: columns chosen, probabilities turned into logits.

| kind | logits | exact to |
|---|---|---|
| logits, and log-probabilities, which are logits less a number of each row | as they are | - |
| probabilities | log p, p at least 2^-126 | the rounding of p |
| percent | log (p / 100) | the rounding of p |
| sigmoid | log p - log (1 - p) | the rounding of 1 - p: float32 tells logits up to 16.6 apart |

A softmax over chosen logits is the softmax over all, renormalised; of probabilities the log of the chosen ones is
renormalised, so that it stays log-probabilities. Log-probabilities are stored as logits, so the chosen ones are not:
their softmax is the same, and they are log-probabilities less a number of each row.

Legend: B pictures, N columns of the output, K classes of the dataset.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from store.spec import StoredKind

# A probability that was rounded to 0 has no logarithm; the smallest normal float32 has -87.3.
LOG_FLOOR = float(np.finfo(np.float32).tiny)
# Of a sigmoid that was rounded to 1: the largest float32 below.
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def chosen(output_BN: NDArray[np.float32], columns: Sequence[int] | None) -> NDArray[np.float32]:
    """Columns [B, K] of an output, in the order of the dataset's classes; None takes all as they come."""
    return output_BN if columns is None else np.ascontiguousarray(output_BN[:, list(columns)])


def to_logits(
    output_BN: NDArray[np.float32], kind: StoredKind, columns: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """Logits [B, K] of an output [B, N] of that kind."""
    output_BK = chosen(output_BN, columns)
    if kind == "logits":
        return output_BK
    if kind == "sigmoid":
        p_BK = np.clip(output_BK.astype(np.float64), LOG_FLOOR, BELOW_ONE)
        return np.asarray(np.log(p_BK) - np.log1p(-p_BK), dtype=np.float32)
    if kind == "percent":
        output_BK = np.asarray(output_BK / 100, dtype=np.float32)
    z_BK = np.log(np.maximum(output_BK, LOG_FLOOR))
    if columns is not None:
        z_BK = z_BK - np.logaddexp.reduce(z_BK.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(z_BK, dtype=np.float32)
