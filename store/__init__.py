"""Caches of teacher logits on disk: identified by their inputs, written in blocks, read like one file.

    spec = CacheSpec(teacher_sha256=..., dataset_fingerprint=..., ...)
    writer = CacheWriter(root, spec)
    for block in writer.pending_blocks():
        view, start, stop = spec.block_range(block)
        writer.write_block(block, logits_of(view, start, stop))
    writer.finish()

    reader = CacheReader(root, spec)
    reader.gather(view, rows), reader.statistics(view)

Independent of torch, Ray and HTTP. ``store.layout`` has the format on disk.
"""

from store.catalog import Catalog
from store.encodings.arrays import Encoding, SparseEncoding
from store.errors import (
    AddressSpaceExhausted,
    AmbiguousKey,
    CacheBusy,
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    CachePinned,
    DiskFull,
    InvalidArgument,
    NotStorable,
    QuotaExceeded,
    ReaderClosed,
    RowOutOfRange,
    StoreError,
)
from store.eviction import Reservation, chunks_bytes, full_bytes
from store.exact_rows import Reference, read_reference
from store.locks import CacheLease
from store.reader import CacheReader
from store.spec import CacheSpec
from store.view_statistics import read_view_statistics
from store.writer import CacheWriter

__all__ = [
    "AddressSpaceExhausted",
    "AmbiguousKey",
    "CacheBusy",
    "CacheCorrupt",
    "CacheIncomplete",
    "CacheLease",
    "CacheMismatch",
    "CacheNotFound",
    "CachePinned",
    "CacheReader",
    "CacheSpec",
    "CacheWriter",
    "Catalog",
    "DiskFull",
    "Encoding",
    "InvalidArgument",
    "NotStorable",
    "QuotaExceeded",
    "ReaderClosed",
    "Reference",
    "Reservation",
    "RowOutOfRange",
    "SparseEncoding",
    "StoreError",
    "chunks_bytes",
    "full_bytes",
    "read_reference",
    "read_view_statistics",
]
