"""Reference rows of a lossy cache: logits kept exactly, beside the decoded ones.

Shapes: R rows, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from store import chunk_files, documents, layout
from store.errors import CacheIncomplete, InvalidArgument
from store.identity import check_identity
from store.lossy_rows import load_block
from store.spec import CacheSpec
from store.statistics import STATISTICS, Float32


@dataclass(frozen=True)
class Reference:
    """First rows of view 0: ``exact`` and ``decoded`` logits, float32 [R, C], and statistics [R] of the exact ones."""

    exact: Float32
    decoded: Float32
    statistics: dict[str, Float32]


def read_reference(root: Path | str, spec: CacheSpec) -> Reference:
    """Read the reference rows, every byte checked, of a cache whose block 0 is committed, complete or not.

    Raises InvalidArgument (a dense cache has none), CacheNotFound, CacheMismatch, CacheIncomplete, CacheCorrupt.
    """
    if not spec.is_lossy:
        raise InvalidArgument("a dense cache has no reference: its rows are what the teacher said")
    group = layout.group_path(Path(root), spec.key)
    check_identity(group, documents.read_manifest(group), spec)
    record = documents.load_record(group, spec, 0)
    if record is None:
        raise CacheIncomplete(f"{group}: block 0 is not committed, and the reference comes with it: write it first")
    exact_RC = chunk_files.read_chunk(group, spec, "reference", 0, record=record)
    decoded_NC = np.empty((record.rows, spec.classes), np.float32)
    load_block(group, spec, 0, record, out_NC=decoded_NC)
    rows = slice(len(exact_RC))
    statistics = {name: chunk_files.read_chunk(group, spec, name, 0, record=record)[rows] for name in STATISTICS}
    return Reference(exact_RC, decoded_NC[rows], statistics)
