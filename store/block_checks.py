"""Consistency checks between the arrays of one block, beyond each file being the one that was committed.

A finding is (array, sentence on the fault). Shapes: N rows of the block, C classes, R rows of the reference.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.encodings import sparse, uint8
from store.encodings.arrays import SparseEncoding
from store.spec import CacheSpec
from store.statistics import STATISTICS, Float32, Float64, rounding_errors, row_statistics, statistic_tolerances

BlockFinding = tuple[str, str]
Arrays = Mapping[str, NDArray[Any]]


def findings(spec: CacheSpec, arrays: Arrays) -> Iterator[BlockFinding]:
    """Yield every inconsistency. Arrays that could not be read are missing, and checks that need them are left out."""
    if not spec.logit_arrays.keys() <= arrays.keys():
        return
    if isinstance(spec.encoding, SparseEncoding):
        yield from _sparse(spec.encoding, spec.classes, arrays)
    else:
        yield from _dense(spec, arrays)
    if "reference" in arrays:
        yield from _reference(spec, arrays)


def _dense(spec: CacheSpec, arrays: Arrays) -> Iterator[BlockFinding]:
    """Compare every statistic with the one recomputed from the logits."""
    if spec.encoding == "uint8":
        logits_NC: NDArray[np.floating] = np.empty(arrays["logits"].shape, np.float32)
        uint8.decode(arrays, logits_NC)
        errors_N = uint8.errors(arrays)
    else:
        logits_NC = arrays["logits"]
        errors_N = rounding_errors(logits_NC)
    yield from _statistics(logits_NC, errors_N, arrays)


def _statistics(logits_NC: NDArray[np.floating], errors_N: Float64, arrays: Arrays) -> Iterator[BlockFinding]:
    recomputed = row_statistics(logits_NC.astype(np.float32))
    for name in STATISTICS:
        if name in arrays:
            tolerance_N = statistic_tolerances(logits_NC, errors_N, name, recomputed[name])
            wrong = _first_wrong(arrays[name][: len(logits_NC)], recomputed[name], tolerance_N)
            if wrong:
                yield name, wrong


def _first_wrong(stored_N: np.ndarray, recomputed_N: Float32, tolerance_N: np.ndarray) -> str | None:
    apart_N = np.abs(stored_N.astype(np.float64) - recomputed_N)
    right_N = apart_N <= tolerance_N  # false for NaN
    if right_N.all():
        return None
    row = int(np.argmin(right_N))
    return (
        f"{np.count_nonzero(~right_N)} values do not belong to the logits; row {row} of this block "
        f"has {stored_N[row]}, recomputed {recomputed_N[row]}; rounding explains "
        f"{tolerance_N[row]:.3g}"
    )


def _sparse(encoding: SparseEncoding, classes: int, arrays: Arrays) -> Iterator[BlockFinding]:
    """Check that the classes differ, and that each number lies within the bounds that the kept logits leave."""
    own_NX = arrays["classes"].astype(np.int64)
    if own_NX.max() >= classes:
        yield "classes", f"class {own_NX.max()} does not exist: there are {classes}"
        return
    top, twice_N = encoding.top, sparse.label_is_among_largest(own_NX)
    sorted_NX = np.sort(np.delete(own_NX, top, axis=1), axis=1)
    if (sorted_NX[:, 1:] == sorted_NX[:, :-1]).any() or (own_NX[:, top] == own_NX[:, -1]).any():
        yield "classes", "a class is among a row's largest or its sample twice"
    z_NK = arrays["logits"].astype(np.float64)
    if (np.diff(z_NK[:, :top], axis=1) > 0).any():
        yield "logits", "the largest logits of a row are not in descending order"
    slack_N = rounding_errors(arrays["logits"]) + 1e-6 * np.abs(z_NK).max(axis=1)
    least_N, left_N = z_NK[:, top - 1], np.log(classes - own_NX.shape[1] + 1 + twice_N)
    # At temperature 1, and with the label's logit left out where it is there already.
    kept_NK = z_NK.copy()
    kept_NK[twice_N, top] = -np.inf
    own_mass_N = sparse.logsumexp(kept_NK[:, : top + 1])
    bounds: dict[str, tuple[Float64, Float64]] = {
        "max": (z_NK[:, 0], z_NK[:, 0]),
        "min": (np.full(len(z_NK), -np.inf), z_NK.min(axis=1)),
        "sharpness": (sparse.logsumexp(kept_NK), np.logaddexp(own_mass_N, least_N + left_N)),
    }
    if encoding.temperature == 1:
        exact_N = np.logaddexp(own_mass_N, arrays["tail_logsumexp"])
        bounds["sharpness"] = (exact_N, exact_N)
    # No tail class is above the least of the largest.
    at_T = sparse.logsumexp(z_NK[:, top + 1 :] / encoding.temperature)
    bounds["tail_logsumexp"] = (at_T, least_N / encoding.temperature + left_N)
    for name, (low_N, high_N) in bounds.items():
        if name in arrays:
            slack = slack_N / (encoding.temperature if name == "tail_logsumexp" else 1.0)
            right_N = (low_N - slack <= arrays[name]) & (arrays[name] <= high_N + slack)
            if not right_N.all():
                row = int(np.argmin(right_N))
                yield (
                    name,
                    f"{np.count_nonzero(~right_N)} values do not belong to the logits; row {row} of this block has "
                    f"{arrays[name][row]}, and must lie between {low_N[row]:.6g} and {high_N[row]:.6g}",
                )


def _reference(spec: CacheSpec, arrays: Arrays) -> Iterator[BlockFinding]:
    """Check the first rows' exact logits against their statistics and against the stored rows."""
    exact_RC = arrays["reference"]
    rows = len(exact_RC)
    for name, wrong in _statistics(exact_RC, np.zeros(rows), arrays):
        yield "reference", f"{name}: {wrong}"
    if isinstance(spec.encoding, SparseEncoding):
        own_RX = arrays["classes"][:rows].astype(np.int64)
        own_RX = np.minimum(own_RX, spec.classes - 1)  # one that does not exist is reported elsewhere
        kept_RX = np.take_along_axis(exact_RC, own_RX, axis=1).astype(np.float16)
        fits = (kept_RX == arrays["logits"][:rows, : own_RX.shape[1]]).all()
    else:
        stored = {name: arrays[name][:rows] for name in spec.logit_arrays}
        decoded_RC = np.empty(exact_RC.shape, np.float32)
        uint8.decode(stored, decoded_RC)
        fits = (np.abs(decoded_RC.astype(np.float64) - exact_RC) <= uint8.errors(stored)[:, None]).all()
    if not fits:
        yield "reference", "the rows that are stored are not these"
