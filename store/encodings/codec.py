"""Encode logits into the arrays that a cache stores, and decode them, by the encoding of the cache.

Shapes: N rows, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints
from store.encodings import sparse, uint8
from store.encodings.arrays import SparseEncoding, StoredRows
from store.errors import InvalidArgument
from store.spec import CacheSpec
from store.statistics import Float32


def encode(
    spec: CacheSpec, logits_NC: Float32, view: int, start: int, labels_N: NDArray[np.integer] | None
) -> dict[str, NDArray[Any]]:
    """Encode: the arrays ``spec.logit_arrays`` of a view's samples from ``start`` on.

    Raises InvalidArgument if the encoding needs labels and these are not those of the rows.
    """
    if isinstance(spec.encoding, SparseEncoding):
        samples_N = np.arange(start, start + len(logits_NC))
        return sparse.encode(
            spec.encoding, logits_NC, _checked_labels(spec, labels_N, len(logits_NC)), view=view, samples_N=samples_N
        )
    if spec.encoding == "uint8":
        return uint8.encode(logits_NC)
    return {"logits": logits_NC.astype(spec.numpy_dtype)}


def decode(spec: CacheSpec, stored: StoredRows, view: int, samples_N: Ints, out_NC: Float32) -> None:
    """Decode rows of a lossy cache to float32 logits: those of ``samples_N`` of ``view``, and no others."""
    if isinstance(spec.encoding, SparseEncoding):
        sparse.decode(spec.encoding, stored, view, samples_N, out_NC=out_NC)
    else:
        uint8.decode(stored, out_NC)


def _checked_labels(spec: CacheSpec, labels_N: NDArray[np.integer] | None, rows: int) -> NDArray[np.integer]:
    if labels_N is None:
        raise InvalidArgument("a sparse cache keeps the label's logit: give the labels of the block's rows")
    if labels_N.shape != (rows,) or labels_N.dtype.kind not in "iu":
        raise InvalidArgument(f"labels must be {rows} integers, not {labels_N.dtype} of shape {labels_N.shape}")
    if labels_N.min() < 0 or labels_N.max() >= spec.classes:
        wrong = labels_N[(labels_N < 0) | (labels_N >= spec.classes)][0]
        raise InvalidArgument(f"label {wrong} does not exist: there are {spec.classes} classes")
    return labels_N
