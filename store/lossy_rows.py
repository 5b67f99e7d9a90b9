"""Rows of a lossy cache, gathered as they are stored and decoded.

Shapes: B rows of a batch, N samples, V views, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store import chunk_files
from store.chunk_map import ChunkRows
from store.counter_rng import Ints
from store.documents import BlockRecord
from store.encodings import codec
from store.spec import CacheSpec
from store.statistics import Float32


@dataclass(frozen=True)
class LossyRows:
    """Encoded rows by array: those with several values a row are ``mapped``, those with one ``loaded``, [V, N]."""

    spec: CacheSpec
    mapped: Mapping[str, ChunkRows]
    loaded: Mapping[str, Float32]

    def gather(self, view: int, samples_B: Ints, out_BC: Float32) -> None:
        """Gather and decode these samples' rows; neither indices nor checksums are checked."""
        stored: dict[str, NDArray[Any]] = {name: values[view][samples_B] for name, values in self.loaded.items()}
        for name, chunks in self.mapped.items():
            stored[name] = np.empty((len(samples_B), chunks.rows.shape[1]), chunks.rows.dtype)
            located_B = self._located(chunks, view, samples_B)
            chunks.touch(located_B)
            chunks.rows.take(located_B, axis=0, out=stored[name], mode="clip")
        codec.decode(self.spec, stored, view, samples_B, out_NC=out_BC)

    def prefetch(self, view: int, samples_B: Ints) -> None:
        """Start to read these samples' rows in the background; see ChunkRows.prefetch."""
        for chunks in self.mapped.values():
            chunks.prefetch(self._located(chunks, view, samples_B))

    def _located(self, chunks: ChunkRows, view: int, samples_B: Ints) -> Ints:
        """Indices of these samples in chunks.rows."""
        within_B, row_B = np.divmod(samples_B, self.spec.block_rows)
        return (view * self.spec.blocks_per_view + within_B) * chunks.stride_rows + row_B


def load_block(group: Path, spec: CacheSpec, block: int, record: BlockRecord, out_NC: Float32) -> None:
    """Decode a whole block into out_NC, every byte checked. Raises CacheCorrupt naming the file."""
    view, start, stop = spec.block_range(block)
    stored = {name: chunk_files.read_chunk(group, spec, name, block, record=record) for name in spec.logit_arrays}
    codec.decode(spec, stored, view, np.arange(start, stop), out_NC=out_NC)
