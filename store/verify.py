"""Reading every byte of a cache and recomputing every statistic: what a reader has no time for.

A problem is one line that starts with the file it is about. Finding one does not end the search.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import layout
from .errors import CacheCorrupt, StoreError
from .files import PARTIAL
from .layout import BlockRecord
from .reader import check_completion, check_identity
from .schema import CacheSpec
from .statistics import STATISTICS, Float32, row_statistics, statistic_tolerances


@dataclass(frozen=True)
class VerifyReport:
    """What was found in one cache; no problem means that every byte is the one that was committed.

    `blocks_checked` and `rows_checked` count what is whole: committed, undamaged, with the right
    statistics.
    """

    key: str
    problems: list[str]
    blocks_checked: int
    rows_checked: int

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify_group(group: Path) -> VerifyReport:
    """Check the cache in one folder. Raises CacheNotFound; all else is a problem in the report.

    A recomputed statistic may differ from the stored one only as statistic_tolerances says: by
    rounding, where the logits are float16. Holds one block in memory at a time.
    """
    try:
        manifest = layout.read_manifest(group)
    except CacheCorrupt as error:
        return VerifyReport(group.name, [str(error)], 0, 0)
    spec = manifest.spec
    problems = [
        *_problem(lambda: check_identity(group, manifest)),
        *_problem(lambda: layout.check_arrays(group, spec)),
        *_problem(lambda: check_completion(group, spec)),
        *_strangers(group, spec),
    ]
    finished = (group / layout.COMPLETE_FILE).exists()
    blocks = rows = 0
    for block in range(spec.blocks):
        record, found = _check_block(group, spec, block, finished)
        problems.extend(found)
        if record is not None and not found:
            blocks += 1
            rows += record.rows
    return VerifyReport(group.name, list(dict.fromkeys(problems)), blocks, rows)


def _problem(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except StoreError as error:
        return [str(error)]
    return []


def _strangers(group: Path, spec: CacheSpec) -> Iterator[str]:
    """Commit records of blocks that this cache does not have."""
    expected = {layout.record_name(spec, block) for block in range(spec.blocks)}
    for path in sorted((group / layout.COMMITS_FOLDER).glob("*")):
        if path.suffix != PARTIAL and f"{layout.COMMITS_FOLDER}/{path.name}" not in expected:
            yield f"{path}: a stale or foreign commit record: this cache has no such block"


def _check_block(group: Path, spec: CacheSpec, block: int, finished: bool) -> tuple[BlockRecord | None, list[str]]:
    try:
        record = layout.load_record(group, spec, block)
    except CacheCorrupt as error:
        return None, [str(error)]
    if record is None:
        path = group / layout.record_name(spec, block)
        return None, [f"{path}: the commit record is missing from a finished cache"] if finished else []
    problems: list[str] = []
    chunks = {}
    for array in layout.ARRAYS:
        try:
            chunks[array] = layout.read_chunk(group, spec, array, block, record)
        except CacheCorrupt as error:
            problems.append(str(error))
    if "logits" in chunks:
        logits_NC = chunks.pop("logits")
        recomputed = row_statistics(logits_NC.astype(np.float32))
        for name in STATISTICS:
            if name in chunks:
                tolerance_N = statistic_tolerances(logits_NC, name, recomputed[name])
                wrong = _first_wrong(chunks[name], recomputed[name], tolerance_N)
                if wrong:
                    problems.append(f"{group / layout.chunk_name(name, spec, block)}: {wrong}")
    return record, problems


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
