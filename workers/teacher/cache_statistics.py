"""Statistics over a complete cache, read from its files: see ``methods.cache_statistics``.

Those that take the logits are kept beside them, in ``class_confidence-T.json``: a cache never changes, and each process
that trains would read all of it again. The file is no part of the cache, and made anew where it cannot be used: the
same cache inferred again on another device has other last digits.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from store import CacheReader
from workers.errors import DiskLow
from workers.files import replacing
from workers.methods.cache_statistics import CONFIDENCE, CacheStatistic
from workers.methods.cache_values import Values, compute_cache_statistics

# Rows that stand for all of them in an estimate.
_SOME_ROWS = 1 << 14
# Logits that are looked at together: 8 MiB of float64. A constant, since sums depend on it in the last digits.
_CELLS = 1 << 20
# Of the kept file; one of another format is made anew.
_FORMAT = 2


def read_cache_statistics(
    reader: CacheReader, wanted: Collection[CacheStatistic], check: Callable[[], None] = lambda: None
) -> dict[CacheStatistic, Values]:
    """The values of these statistics over all rows of a cache, as its readers get them; the same at every call.

    Args:
        check: called between pieces of the logits, of which a large cache takes minutes; raises to end the reading.
    """
    views = [reader.statistics(view) for view in range(reader.spec.views)] if wanted else []
    statistics = {name: np.stack([view[name] for view in views]) for name in views[0]} if views else {}
    confidences = {CacheStatistic(CONFIDENCE, each.temperature) for each in wanted if each.reads_logits}
    kept = {each: found for each in confidences if (found := _read_kept(reader, each)) is not None}
    values = compute_cache_statistics(
        {*wanted, *confidences}, statistics, _pieces(reader, check), classes=reader.spec.classes, kept=kept
    )
    for each in confidences - kept.keys():
        _keep(reader, each, values[each])
    return {each: values[each] for each in wanted}


def _pieces(reader: CacheReader, check: Callable[[], None]) -> Iterator[npt.NDArray[np.floating]]:
    samples, step = reader.spec.samples, max(1, _CELLS // reader.spec.classes)
    for view in range(reader.spec.views):
        rows = reader.row_map(view, np.arange(samples))
        for start in range(0, samples, step):
            check()
            stop = min(start + step, samples)
            rows.prefetch(start, stop)
            yield rows.gather(start, stop)


def kept_path(reader: CacheReader, statistic: CacheStatistic) -> Path:
    """Path of the file that keeps the confidence of each class at a temperature."""
    return reader.path / f"{CONFIDENCE}-{statistic.temperature!r}.json"


def _keep(reader: CacheReader, statistic: CacheStatistic, values_C: Values) -> None:
    """Keep values for the next process, which computes them itself where that fails."""
    digest = hashlib.sha256(values_C.tobytes()).hexdigest()
    known = {"format": _FORMAT, "commits_sha256": reader.commits_sha256, "sha256": digest}
    text = json.dumps({**known, "values": values_C.tolist()})
    with (
        contextlib.suppress(OSError, DiskLow),
        replacing(kept_path(reader, statistic), "statistics over a cache") as file,
    ):
        file.write(text.encode())


def _read_kept(reader: CacheReader, statistic: CacheStatistic) -> Values | None:
    """Values that an earlier process has kept, float32 [C]; None if there are none, or
    they are damaged or of other chunks."""
    try:
        found = json.loads(kept_path(reader, statistic).read_bytes())
        values_C = np.array(found["values"], np.float32)
        digest = hashlib.sha256(values_C.tobytes()).hexdigest()
        known = (_FORMAT, reader.commits_sha256, digest)
        is_whole = tuple(found[name] for name in ("format", "commits_sha256", "sha256")) == known
        is_whole &= len(values_C) == reader.spec.classes
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return values_C if is_whole else None


def some_rows(statistics: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """Statistics of 16,384 rows at most of those of one view ([N] by name), at equal distances: [1, R] by name."""
    return {name: values_N[np.newaxis, :: -(-len(values_N) // _SOME_ROWS)] for name, values_N in statistics.items()}
