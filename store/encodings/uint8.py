"""Encoding uint8: each row's logits as 256 even steps from its smallest to its largest.

value = code * scale + offset, in float32, with offset = min and scale = (max - min) / 255 of the row. The error is at
most half a step, the same for a row's largest logit as for its smallest.

Shapes: N rows, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.encodings.arrays import StoredRows
from store.statistics import Float32

STEPS = 255


def encode(logits_NC: Float32) -> dict[str, NDArray[Any]]:
    """Encode finite logits: codes uint8 [N, C], scale and offset float32 [N]."""
    offset_N = logits_NC.min(axis=1)
    range_N = logits_NC.max(axis=1).astype(np.float64) - offset_N
    scale_N = (range_N / STEPS).astype(np.float32)
    step_N1 = np.where(scale_N > 0, scale_N, 1).astype(np.float64)[:, None]
    codes_NC = np.rint((logits_NC - offset_N[:, None].astype(np.float64)) / step_N1)
    return {"logits": codes_NC.clip(0, STEPS).astype(np.uint8), "scale": scale_N, "offset": offset_N}


def decode(stored: StoredRows, out_NC: Float32) -> None:
    """Decode rows of ``encode`` to float32 logits."""
    np.multiply(stored["logits"], stored["scale"][:, None], out=out_NC)
    out_NC += stored["offset"][:, None]


def errors(stored: StoredRows) -> NDArray[np.float64]:
    """Bounds on the distance of a logit from its decoded value: [N].

    Half a step, and the rounding of scale (2**-24 of the range), product and sum to float32.
    """
    scale_N, offset_N = stored["scale"].astype(np.float64), stored["offset"].astype(np.float64)
    largest_N = np.abs(offset_N) + STEPS * np.abs(scale_N)
    result: NDArray[np.float64] = scale_N / 2 + largest_N * 2.0**-22 + np.finfo(np.float32).tiny
    return result
