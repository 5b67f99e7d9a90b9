"""Reading a cache in a training loop.

A reader opens only a finished cache of exactly the spec it was asked for, and says field by field
what differs otherwise. Opening checks that every file is there, has its size and is the one that
was committed, and loads and verifies all statistics (they are small). What it does not do when
opening is read the logits: a flipped bit in them is found by logits(), which checks what it loads,
and by Catalog.verify.

Three ways to the logits, by size:

- logits(view): one view copied into memory and verified. For what fits in memory or on the GPU.
- gather(view, rows): the rows of a batch, straight from the page cache, which all processes share.
- row_map(view, order).gather(start, stop): the same with the index arithmetic and bounds check of a
  whole epoch done once, which makes it as fast as np.memmap over one flat file. Its prefetch() is
  for logits that memory cannot hold.

Gather in the training process. Through a DataLoader worker the same rows cost 15 to 100 times as
much. Never index the zarr arrays per batch: zarr decodes a whole chunk for each row (700-5000x
slower).

Shapes: B rows of a batch, N samples, C classes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from . import layout
from .errors import (
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    InvalidArgument,
    ReaderClosed,
    RowOutOfRange,
    StoreError,
)
from .layout import BlockRecord
from .mapping import map_chunks, memory_bytes
from .schema import CacheSpec
from .statistics import STATISTICS, Float32

Rows = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating]


class CacheReader:
    """An open, complete cache. Pickles as its path: the process that unpickles it opens it again.

    Raises CacheNotFound (naming the closest cache there is), CacheMismatch, CacheIncomplete,
    CacheCorrupt (naming the file), AddressSpaceExhausted. Threads may share a reader, as long as
    none closes it under the others.
    """

    def __init__(self, root: Path | str, spec: CacheSpec) -> None:
        root = Path(root)
        if not layout.group_path(root, spec.key).is_dir():
            raise CacheNotFound(_describe_absence(root, spec))
        self._open(root, spec.key, spec)

    @classmethod
    def from_key(cls, root: Path | str, key: str) -> "CacheReader":
        """Open a cache by its key alone; raises what the constructor raises, and InvalidArgument."""
        reader = cls.__new__(cls)
        reader._open(Path(root), key, None)
        return reader

    def _open(self, root: Path, key: str, asked: CacheSpec | None) -> None:
        self._root = root
        self.path = layout.group_path(root, key)
        manifest = layout.read_manifest(self.path)
        check_identity(self.path, manifest, asked)
        self.spec = manifest.spec
        layout.check_arrays(self.path, self.spec)
        self._records, finishing = check_completion(self.path, self.spec)
        for record in self._records:
            layout.check_chunk_files(self.path, record)
        #: What the cache's creator and finisher wrote down: free JSON, no part of the identity.
        self.provenance: dict[str, JsonValue] = {**manifest.provenance, **finishing}
        self._statistics = {name: self._load_statistic(name) for name in STATISTICS}
        self._chunks = map_chunks(
            [self.path / layout.chunk_name("logits", self.spec, block) for block in range(self.spec.blocks)],
            self.spec.block_rows,
            self.spec.classes,
            self.spec.numpy_dtype,
        )
        #: A view's logits take more than half of the memory there is: see RowMap.prefetch.
        self.exceeds_memory = 2 * self.spec.samples * self.spec.row_bytes > memory_bytes()
        self._block_shift = self.spec.block_rows.bit_length() - 1  # block_rows is a power of two
        self._hole_rows = self._chunks.stride_rows - self.spec.block_rows
        self._closed = False

    def gather(self, view: int, rows: npt.NDArray[np.integer], out: Logits | None = None) -> Logits:
        """Logits [B, C] of samples `rows` [B] of one view, in the cache's dtype, in `out` if given.

        `out` must be C-contiguous, [B, C], of the cache's dtype. The bytes are not checked against
        their checksums.
        Raises RowOutOfRange, InvalidArgument (not one-dimensional integers, another `out`),
        ReaderClosed.
        """
        return self._take(self._physical_rows(view, rows), out)

    def row_map(self, view: int, rows: npt.NDArray[np.integer]) -> "RowMap":
        """Prepare to gather many batches: `rows` [M], e.g. an epoch's permutation, located once.

        Raises RowOutOfRange, InvalidArgument, ReaderClosed.
        """
        return RowMap(self, self._physical_rows(view, rows))

    def logits(self, view: int) -> Logits:
        """All logits [N, C] of one view, copied, in the cache's dtype; every byte is verified.

        Raises CacheCorrupt naming the file, RowOutOfRange.
        """
        self._check_view(view)
        loaded = np.empty((self.spec.samples, self.spec.classes), self.spec.numpy_dtype)
        self._load_view(loaded, "logits", view)
        return loaded

    def statistics(self, view: int) -> dict[str, Float32]:
        """The statistics of one view: read-only float32 arrays [N], by name (STATISTICS).

        They are of the logits before they were rounded to the cache's dtype. Raises RowOutOfRange.
        """
        self._check_view(view)
        return {name: values_VN[view] for name, values_VN in self._statistics.items()}

    def close(self) -> None:
        """Unmap the logits; statistics that were handed out stay valid. May be called twice."""
        self._closed = True
        self._chunks.release()

    def __enter__(self) -> "CacheReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Path, str], "CacheReader"], tuple[Path, str]]:
        return CacheReader.from_key, (self._root, self.spec.key)

    def __repr__(self) -> str:
        return f"CacheReader({str(self.path)!r})"

    def _physical_rows(self, view: int, rows: npt.NDArray[np.integer]) -> Rows:
        """Checked sample indices as row numbers of the mapped range."""
        self._check_view(view)
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InvalidArgument(f"rows must be integers in one dimension, not {rows.dtype} of shape {rows.shape}")
        rows_B = rows.astype(np.int64, copy=False)
        # Read as unsigned, a negative index is a huge one: a single pass checks both ends.
        if rows_B.size and int(rows_B.view(np.uint64).max()) >= self.spec.samples:
            wrong = rows[(rows_B < 0) | (rows_B >= self.spec.samples)][0]
            raise RowOutOfRange(f"sample {wrong} does not exist: there are {self.spec.samples}")
        first_block = view * self.spec.blocks_per_view
        physical_B = rows_B >> self._block_shift
        physical_B *= self._hole_rows
        physical_B += rows_B
        if first_block:
            physical_B += first_block * self._chunks.stride_rows
        return physical_B

    def _take(self, physical_B: Rows, out: Logits | None) -> Logits:
        self._check_open()
        shape, dtype = (len(physical_B), self.spec.classes), self.spec.numpy_dtype
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise InvalidArgument(
                f"out must be a C-contiguous {dtype.name} array of shape {shape}, not {out.dtype} of shape {out.shape}"
            )
        # The indices are checked; "clip" only spares numpy a second check and a buffered copy.
        return np.take(self._chunks.rows, physical_B, axis=0, out=out, mode="clip")

    def _prefetch(self, physical_B: Rows) -> None:
        self._check_open()
        self._chunks.prefetch(physical_B)

    def _check_open(self) -> None:
        if self._closed:
            raise ReaderClosed(f"{self!r} is closed")

    def _check_view(self, view: int) -> None:
        if not 0 <= view < self.spec.views:
            raise RowOutOfRange(f"view {view} does not exist: there are {self.spec.views}")

    def _load_view(self, into: Logits, array: str, view: int) -> None:
        for within in range(self.spec.blocks_per_view):
            block = view * self.spec.blocks_per_view + within
            _, start, stop = self.spec.block_range(block)
            record = self._records[block]
            layout.read_chunk(self.path, self.spec, array, block, record, into[start:stop])

    def _load_statistic(self, name: str) -> Float32:
        values_VN = np.empty((self.spec.views, self.spec.samples), np.float32)
        for view in range(self.spec.views):
            self._load_view(values_VN[view], name, view)
        values_VN.flags.writeable = False
        return values_VN


class RowMap:
    """Where an epoch's rows lie, in the order they will be asked for. See CacheReader.row_map."""

    def __init__(self, reader: CacheReader, physical_M: Rows) -> None:
        self._reader = reader
        self._physical_M = physical_M
        self._prefetched = 0

    def __len__(self) -> int:
        return len(self._physical_M)

    def gather(self, start: int, stop: int, out: Logits | None = None) -> Logits:
        """Logits [B, C] of positions start..stop (exclusive) of the order given to row_map.

        Raises InvalidArgument (for `out`), ReaderClosed. Positions beyond the end are cut off, as
        in a slice.
        """
        return self._reader._take(self._physical_M[start:stop], out)

    def prefetch(self, start: int, stop: int) -> None:
        """Have the rows of these positions read from the disk in the background.

        Before each gather(start, stop), prefetch(start, stop + 4 * (stop - start)): positions that
        were asked for before are passed over, those beyond the end cut off. Only where the reader
        exceeds_memory, so that every epoch finds its rows on the disk. From the first call on, the
        reader's page faults read single pages; logits that fit in memory get there sooner without.
        Raises ReaderClosed.
        """
        self._reader._prefetch(self._physical_M[max(start, self._prefetched) : stop])
        self._prefetched = max(stop, self._prefetched)


def check_identity(group: Path, manifest: layout.Manifest, asked: CacheSpec | None = None) -> None:
    """Raise CacheMismatch unless the group's name, its manifest and the spec asked for agree."""
    found = manifest.spec
    if asked is not None and found != asked:
        raise CacheMismatch(
            f"{group} holds another cache than its name says: "
            f"{'; '.join(asked.differences(found))}: delete it and compute it again"
        )
    if not group.name == found.key == manifest.key:
        raise CacheMismatch(
            f"{group / layout.GROUP_FILE}: its key is {manifest.key}, its spec has key {found.key}, and "
            "both must be the folder's name: a foreign or edited cache; delete it"
        )


def check_completion(group: Path, spec: CacheSpec) -> tuple[list[BlockRecord], dict[str, JsonValue]]:
    """Every block's commit record, and the provenance in COMPLETE.

    Raises CacheIncomplete without COMPLETE, CacheCorrupt if a record is missing or not the one it
    vouches for: naming the record if its files tell which, COMPLETE otherwise.
    """
    completion = layout.read_completion(group)
    found = [layout.load_record(group, spec, block) for block in range(spec.blocks)]
    records = [record for record in found if record is not None]
    if completion is None:
        raise CacheIncomplete(
            f"{group} is not complete: {len(records)} of {spec.blocks} blocks are committed and there "
            f"is no {layout.COMPLETE_FILE} marker: let a CacheWriter write the pending blocks and finish"
        )
    if len(records) < spec.blocks:
        missing = group / layout.record_name(spec, found.index(None))
        raise CacheCorrupt(f"{missing}: the commit record is missing from a finished cache")
    marker = group / layout.COMPLETE_FILE
    if completion.key != spec.key or completion.blocks != spec.blocks:
        raise CacheCorrupt(f"{marker}: written for another cache, {completion.key}")
    if completion.commits_sha256 != layout.commits_sha256(iter(records)):
        for block, record in enumerate(records):
            try:
                layout.check_chunk_files(group, record)
            except CacheCorrupt as error:
                path = group / layout.record_name(spec, block)
                raise CacheCorrupt(f"{path}: a stale or foreign commit record: {error}") from error
        raise CacheCorrupt(f"{marker}: the commit records are not those that it was written for")
    return records, completion.provenance


def _describe_absence(root: Path, spec: CacheSpec) -> str:
    """Say that there is none, and which comes closest: same teacher or dataset, few differences."""
    related = []
    groups = layout.group_paths(root)
    for group in groups:
        try:
            found = layout.read_manifest(group).spec
        except StoreError:
            continue  # it cannot be the one that was meant
        same_teacher = found.teacher_sha256 == spec.teacher_sha256
        same_dataset = found.dataset_fingerprint == spec.dataset_fingerprint
        if same_teacher or same_dataset:
            differences = spec.differences(found)
            rank = (not (same_teacher and same_dataset), len(differences), group.name)
            related.append((rank, group.name, differences))
    absent = f"there is no cache {spec.key} under {root}"
    if not related:
        return f"{absent}, nor any of this teacher or dataset among the {len(groups)} that are there"
    _, name, differences = min(related)
    return f"{absent}; the closest is {name}, which differs in {'; '.join(differences)}"
