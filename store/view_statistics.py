"""Statistics of a single view of a cache, without those of the others and without its logits."""

from pathlib import Path

import numpy as np

from store import chunk_files, documents, layout
from store.errors import RowOutOfRange
from store.identity import check_completion, check_identity
from store.locks import CacheLease
from store.spec import CacheSpec
from store.statistics import STATISTICS, Float32


def read_view_statistics(root: Path | str, key: str, view: int) -> tuple[CacheSpec, dict[str, Float32]]:
    """Read the statistics of one view of a complete cache: float32 arrays [N], by name (STATISTICS); verified.

    ``CacheReader`` loads those of all views. While they are read the cache is not evicted.

    Returns:
        The cache's spec and the statistics.

    Raises:
        StoreError: CacheNotFound, CacheIncomplete, CacheCorrupt (naming the file), RowOutOfRange (no such view).
    """
    path = layout.group_path(Path(root), key)
    manifest = documents.read_manifest(path)
    lease = CacheLease(path)
    try:
        check_identity(path, manifest, None)
        spec = manifest.spec
        if not 0 <= view < spec.views:
            raise RowOutOfRange(f"view {view} does not exist: there are {spec.views}")
        documents.check_arrays(path, spec)
        records, _ = check_completion(path, spec)
        found = {name: np.empty(spec.samples, np.float32) for name in STATISTICS}
        first = view * spec.blocks_per_view
        for block in range(first, first + spec.blocks_per_view):
            _, start, stop = spec.block_range(block)
            for name, values_N in found.items():
                into = values_N[start:stop]
                chunk_files.read_chunk(path, spec, name, block, record=records[block], out=into)
        return spec, found
    finally:
        lease.release()
