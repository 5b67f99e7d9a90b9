"""Values of statistics over a cache, computed from its rows with NumPy: see ``cache_statistics.py``.

Shapes: V views, N samples, r rows of a piece, C classes.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.methods.cache_statistics import CONFIDENCE, CacheStatistic

Values = npt.NDArray[Any]


class ClassConfidence:
    """Mean of the teacher's largest probability over the rows that it assigns to a class, piece by piece of the rows.

    Args:
        temperature: of the probabilities.
    """

    def __init__(self, classes: int, temperature: float) -> None:
        self._temperature = temperature
        self._sums_C, self._counts_C = np.zeros(classes), np.zeros(classes, np.int64)

    def add(self, logits_rC: npt.NDArray[np.floating]) -> None:
        """Take rows in; in float64, so that one order of pieces is as good as another up to the last digits."""
        z_rC = logits_rC.astype(np.float64)
        # One pass: of equal largest ones the first is the class, as everywhere.
        places_r = z_rC.argmax(axis=1)
        z_rC -= z_rC.max(axis=1, keepdims=True)
        peaks_r = 1.0 / np.exp(z_rC / self._temperature).sum(axis=1)
        self._sums_C += np.bincount(places_r, weights=peaks_r, minlength=len(self._sums_C))
        self._counts_C += np.bincount(places_r, minlength=len(self._counts_C))

    @property
    def values_C(self) -> npt.NDArray[np.float32]:
        """float32 [C]; 0 for a class to which no row is assigned."""
        return (self._sums_C / np.maximum(self._counts_C, 1)).astype(np.float32)


def compute_cache_statistics(
    wanted: Collection[CacheStatistic],
    statistics: Mapping[str, npt.NDArray[np.float32]],
    logits: Iterable[npt.NDArray[np.floating]],
    classes: int,
    kept: Mapping[CacheStatistic, Values] = MappingProxyType({}),
) -> dict[CacheStatistic, Values]:
    """The values of some statistics over a cache: float32, but ``confident_classes``, which is int64.

    Args:
        statistics: of every row by name, [V, N].
        logits: of every row in pieces [r, C], always in the same ones; read only if one of ``wanted`` needs them.
        classes: C.
        kept: ``class_confidence`` at some temperatures, which is not computed again.
    """
    known = {each.temperature: values_C for each, values_C in kept.items()}
    missing = {each.temperature for each in wanted if each.reads_logits} - known.keys()
    confidence = {temperature: ClassConfidence(classes, temperature) for temperature in missing}
    if confidence:
        for piece_rC in logits:
            for of_temperature in confidence.values():
                of_temperature.add(piece_rC)
    known |= {temperature: each.values_C for temperature, each in confidence.items()}
    values: dict[CacheStatistic, Values] = {}
    for each in sorted(wanted):
        if each.reads_logits:
            values_C = known[each.temperature]
            is_confident_C = values_C >= np.median(values_C)
            values[each] = values_C if each.name == CONFIDENCE else np.flatnonzero(is_confident_C).astype(np.int64)
        elif each.is_per_sample:
            values_VN = statistics[each.name.removeprefix("sample_")]
            values[each] = values_VN.mean(axis=0, dtype=np.float64).astype(np.float32)
        else:
            values_VN = statistics[each.name.removesuffix("_mean")]
            values[each] = np.array(values_VN.mean(dtype=np.float64), np.float32)
    return values


def record(values: Mapping[CacheStatistic, Values]) -> dict[str, object]:
    """JSON of the values, for config.json; one value a sample is too much there, and so is named by its digest."""
    return {
        str(each): {"samples": len(given), "sha256": hashlib.sha256(given.tobytes()).hexdigest()}
        if each.is_per_sample
        else given.tolist()
        for each, given in values.items()
    }
