"""Verification of a cache: read every byte and recompute every statistic, which takes too long for a reader.

A problem is one line that starts with its file. Finding one does not end the search.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from store import chunk_files, documents, layout
from store.block_checks import findings
from store.documents import BlockRecord
from store.errors import CacheCorrupt, StoreError
from store.identity import check_completion, check_identity
from store.locks import CacheLease
from store.spec import CacheSpec


@dataclass(frozen=True)
class VerifyReport:
    """Report on one cache; no problem means that every byte is the one that was committed.

    ``blocks_checked`` and ``rows_checked`` count those that are committed, undamaged and have the right
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
    """Verify the cache in one folder. Raises CacheNotFound; all else is a problem in the report.

    A recomputed statistic may differ from the stored one by the loss of the encoding alone, see
    statistic_tolerances. Where most logits are lost, the statistic has to be possible with those that
    are kept. Holds one block in memory at a time, and the cache against
    eviction.
    """
    try:
        manifest = documents.read_manifest(group)
    except CacheCorrupt as error:
        return VerifyReport(group.name, [str(error)], 0, 0)
    with CacheLease(group):
        return _verify(group, manifest)


def _verify(group: Path, manifest: documents.CacheManifest) -> VerifyReport:
    spec = manifest.spec
    problems = [
        *_problem(lambda: check_identity(group, manifest)),
        *_problem(lambda: documents.check_arrays(group, spec)),
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
    """Yield the commit records of blocks that this cache does not have."""
    expected = {layout.record_name(spec, block) for block in range(spec.blocks)}
    for path in layout.record_paths(group):
        if f"{layout.COMMITS_FOLDER}/{path.name}" not in expected:
            yield f"{path}: a stale or foreign commit record: this cache has no such block"


def _check_block(group: Path, spec: CacheSpec, block: int, finished: bool) -> tuple[BlockRecord | None, list[str]]:
    try:
        record = documents.load_record(group, spec, block)
    except CacheCorrupt as error:
        return None, [str(error)]
    if record is None:
        path = group / layout.record_name(spec, block)
        return None, [f"{path}: the commit record is missing from a finished cache"] if finished else []
    problems: list[str] = []
    chunks = {}
    for array in spec.arrays_of(block):
        try:
            chunks[array.name] = chunk_files.read_chunk(group, spec, array.name, block, record=record)
        except CacheCorrupt as error:
            problems.append(str(error))
    for name, wrong in findings(spec, chunks):
        problems.append(f"{group / layout.chunk_name(name, spec, block)}: {wrong}")
    return record, problems
