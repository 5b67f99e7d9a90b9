"""Statistics of rows of logits, which every temperature policy needs of its teacher.

They are computed once, from the unrounded float32 logits, because a logsumexp taken from float16
logits is off by up to 4e-3. Sums run in float64, in slabs that stay in the CPU's cache; results are
float32.

Shapes: N rows, C classes.
"""

import numpy as np
import numpy.typing as npt

STATISTICS = ("max", "min", "mean", "std", "sharpness")

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_SLAB_ROWS = 64  # 64 x 1000 float64 = 512 kB: fits in L2, 2.3x faster than a whole block at once


def row_statistics(logits_NC: Float32) -> dict[str, Float32]:
    """Statistics of each row of finite logits [N, C], C >= 2: float32 [N], named by STATISTICS.

    max, min, mean: of the row. std: with C - 1 in the denominator (torch's default; logit
    standardization of Sun et al., CVPR 2024, divides by it). sharpness: log(sum(exp(z))), natural
    log, at temperature 1 (the "sharpness" of DTKD, Wei & Bai 2024).
    """
    rows = len(logits_NC)
    result = {name: np.empty(rows, np.float32) for name in STATISTICS}
    for start in range(0, rows, _SLAB_ROWS):
        slab = slice(start, start + _SLAB_ROWS)
        for name, values in _slab_statistics(logits_NC[slab].astype(np.float64)).items():
            result[name][slab] = values
    return result


def _slab_statistics(z_NC: Float64) -> dict[str, Float64]:
    highest_N1 = z_NC.max(axis=1, keepdims=True)
    mean_N1 = z_NC.mean(axis=1, keepdims=True)
    centred_NC = z_NC - mean_N1
    variance_N = np.einsum("nc,nc->n", centred_NC, centred_NC) / (z_NC.shape[1] - 1)
    return {
        "max": highest_N1[:, 0],
        "min": z_NC.min(axis=1),
        "mean": mean_N1[:, 0],
        "std": np.sqrt(variance_N),
        "sharpness": highest_N1[:, 0] + np.log(np.exp(z_NC - highest_N1).sum(axis=1)),
    }


def rounding_errors(stored_NC: npt.NDArray[np.floating]) -> Float64:
    """Bounds on the rounding errors of logits [N, C] in float16: [N]. float32 is exact.

    d = max_C(2^-11 |z| + 2^-25), half a unit in the last place.
    """
    if stored_NC.dtype != np.float16:
        return np.zeros(len(stored_NC))
    errors_N: Float64 = np.abs(stored_NC).max(axis=1).astype(np.float64) * 2.0**-11 + 2.0**-25
    return errors_N


def statistic_tolerances(logits_NC: npt.NDArray[np.floating], error_N: Float64, name: str, value_N: Float32) -> Float64:
    """Tolerances of a statistic [N] that is recomputed from logits [N, C] which are off by up to error_N.

    The order of summation (1e-12 of the largest |z|) and two units in the last place of the float32
    result are allowed to exact logits, too. max, min, mean and sharpness move by at most d when every
    logit does (1-Lipschitz in the sup norm); std by at most d * sqrt(C / (C - 1)).
    """
    classes = logits_NC.shape[1]
    magnitude_N = np.abs(logits_NC).max(axis=1).astype(np.float64)
    tolerance_N = 2 * np.spacing(np.abs(value_N)).astype(np.float64) + 1e-12 * magnitude_N
    factor = np.sqrt(classes / (classes - 1)) if name == "std" else 1.0
    result: Float64 = tolerance_N + factor * error_N
    return result
