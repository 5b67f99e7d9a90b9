"""Cached teacher logits on disk: known by what made them, written in blocks, read like one file.

    spec = CacheSpec(teacher_sha256=..., dataset_fingerprint=..., ...)
    writer = CacheWriter(root, spec)
    for block in writer.pending_blocks():
        view, start, stop = spec.block_range(block)
        writer.write_block(block, logits_of(view, start, stop))
    writer.finish()

    reader = CacheReader(root, spec)
    reader.gather(view, rows), reader.statistics(view)

Knows nothing of torch, Ray or HTTP. See layout.py for the format on disk.
"""

from .catalog import Catalog
from .encoding import Encoding, SparseEncoding
from .errors import (
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
from .reader import CacheReader
from .reference import Reference, read_reference
from .room import Hold, Reservation
from .schema import CacheSpec
from .writer import CacheWriter

__all__ = [
    "AddressSpaceExhausted",
    "AmbiguousKey",
    "CacheBusy",
    "CacheCorrupt",
    "CacheIncomplete",
    "CacheMismatch",
    "CacheNotFound",
    "CachePinned",
    "CacheReader",
    "CacheSpec",
    "CacheWriter",
    "Catalog",
    "DiskFull",
    "Encoding",
    "Hold",
    "InvalidArgument",
    "NotStorable",
    "QuotaExceeded",
    "ReaderClosed",
    "Reference",
    "Reservation",
    "RowOutOfRange",
    "SparseEncoding",
    "StoreError",
    "read_reference",
]
