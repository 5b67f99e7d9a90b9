"""Errors of the store.

    StoreError (Exception)
    +-- InvalidArgument        (ValueError)       a key, block, shape or dtype that cannot be
    +-- RowOutOfRange          (IndexError)       a view or sample that the cache does not have
    +-- NotStorable            (ValueError)       logits not finite, or too large for float16
    +-- CacheNotFound          (LookupError)      no such cache, or deleted under its writer
    +-- AmbiguousKey           (LookupError)      a prefix that several keys share
    +-- CacheMismatch          (ValueError)       a cache of another spec lies there
    +-- CacheIncomplete        (RuntimeError)     blocks are missing, or it was never finished
    +-- CacheCorrupt           (ValueError)       a file is damaged, missing, foreign, misplaced
    +-- CacheBusy              (BlockingIOError)  a block is being written at this moment
    +-- CachePinned            (PermissionError)  a pinned cache was to be deleted
    +-- QuotaExceeded          (RuntimeError)     no room within the quota, whatever is evicted
    +-- ReaderClosed           (ValueError)       a reader was used after close()
    +-- AddressSpaceExhausted  (MemoryError)      chunk files can be neither mapped nor loaded
    +-- DiskFull               (OSError)          no room left; nothing was committed

Each also inherits from the builtin in brackets, the one that a caller would catch without reading
this page. Messages carry the offending value, what is allowed, and the next step. All of them
survive pickling, because they travel from Ray actors to the service.

Mistakes of the machine other than a full disk (EACCES, EIO, ...) stay plain OSError: the store has
nothing to add.
"""

import errno


class StoreError(Exception):
    """Base of every error that store/ raises on purpose."""


class InvalidArgument(StoreError, ValueError):
    """An argument that can never be right: a malformed key, a block number, a shape, a dtype."""


class RowOutOfRange(StoreError, IndexError):
    """A view or sample index outside the cache."""


class NotStorable(StoreError, ValueError):
    """Logits that are not finite, or beyond the range of float16 in a float16 cache."""


class CacheNotFound(StoreError, LookupError):
    """There is no cache of this key (or spec) under this root."""


class AmbiguousKey(StoreError, LookupError):
    """A key prefix that more than one cache shares."""


class CacheMismatch(StoreError, ValueError):
    """The cache that lies there is of another spec; the message compares them field by field."""


class CacheIncomplete(StoreError, RuntimeError):
    """Not every block is committed, or the COMPLETE marker was never written."""


class CacheCorrupt(StoreError, ValueError):
    """A file of the cache is damaged, missing, foreign or out of place; the message names it."""


class CacheBusy(StoreError, BlockingIOError):
    """A writer is in the middle of a block of this cache."""


class CachePinned(StoreError, PermissionError):
    """The cache is pinned; it can be deleted after it is unpinned."""


class QuotaExceeded(StoreError, RuntimeError):
    """The caches that must stay and the new ones are more than the quota; the message has the figures."""


class ReaderClosed(StoreError, ValueError):
    """A reader was used after close()."""


class AddressSpaceExhausted(StoreError, MemoryError):
    """The chunk files can neither be mapped into the address space nor be loaded into memory."""


class DiskFull(StoreError, OSError):
    """The file system (or the quota on it) has no room for the next file; nothing was committed.

    Attributes: ``needed_bytes``, what the refused operation was to write; ``free_bytes``, what the file
    system said it had left afterwards; ``errno``, always ENOSPC.
    """

    def __init__(self, message: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(errno.ENOSPC, message)
        self.message = message
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type["DiskFull"], tuple[str, int, int]]:
        return type(self), (self.message, self.needed_bytes, self.free_bytes)
