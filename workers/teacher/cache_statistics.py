"""Statistics over a complete cache, read from its files: see ``methods.cache_statistics``."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from store import CacheReader
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.cache_values import Values, compute_cache_statistics

# Rows that stand for all of them in an estimate.
_SOME_ROWS = 1 << 14
# Logits that are looked at together: 8 MiB of float64. A constant, since sums depend on it in the last digits.
_CELLS = 1 << 20


def read_cache_statistics(reader: CacheReader, wanted: Collection[CacheStatistic]) -> dict[CacheStatistic, Values]:
    """The values of these statistics over all rows of a cache, as its readers get them; the same at every call."""
    views = [reader.statistics(view) for view in range(reader.spec.views)] if wanted else []
    statistics = {name: np.stack([view[name] for view in views]) for name in views[0]} if views else {}
    return compute_cache_statistics(wanted, statistics, _pieces(reader), reader.spec.classes)


def _pieces(reader: CacheReader) -> Iterator[npt.NDArray[np.floating]]:
    samples, step = reader.spec.samples, max(1, _CELLS // reader.spec.classes)
    for view in range(reader.spec.views):
        rows = reader.row_map(view, np.arange(samples))
        for start in range(0, samples, step):
            stop = min(start + step, samples)
            rows.prefetch(start, stop)
            yield rows.gather(start, stop)


def some_rows(statistics: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """Statistics of 16,384 rows at most of those of one view ([N] by name), at equal distances: [1, R] by name."""
    return {name: values_N[np.newaxis, :: -(-len(values_N) // _SOME_ROWS)] for name, values_N in statistics.items()}
