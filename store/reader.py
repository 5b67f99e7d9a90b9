"""Reader of a cache in a training loop.

A reader opens only a finished cache of exactly the spec it was asked for, and names every field that differs
otherwise. Opening checks every file's presence, size and commit, and loads and verifies all statistics. It does not
read the logits: a flipped bit in them is found by logits(), which checks every byte, and by Catalog.verify.

Three ways to the logits, by size:
- logits(view): one view copied into memory and verified, for views that fit in memory or on the GPU.
- gather(view, rows): the rows of a batch, straight from the page cache, which all processes share.
- row_map(view, order).gather(start, stop): the same with the index arithmetic and bounds check of an epoch done once,
  as fast as np.memmap over one flat file. Its prefetch() is for logits that are not in memory yet.

A lossy cache hands out the same, decoded to float32 (see ``store.encodings``); only logits() decodes all at once.
Gather in the training process: through a DataLoader worker the same rows cost 15 to 100 times as much, and indexing the
zarr arrays 700 to 5,000 times, for zarr decodes a whole chunk for each row.

Shapes: B rows of a batch, N samples, C classes.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from store import chunk_files, documents, layout
from store.chunk_map import ChunkRows, map_chunks
from store.errors import CacheNotFound, InvalidArgument, ReaderClosed, RowOutOfRange
from store.identity import check_completion, check_identity, describe_absence
from store.locks import CacheLease
from store.lossy_rows import LossyRows, load_block
from store.memory_limit import memory_bytes
from store.read_ahead import ReadAhead
from store.spec import CacheSpec
from store.statistics import STATISTICS, Float32

_LOADERS = 4  # threads that load a view

RowIndices = npt.NDArray[np.int64]
LogitRows = npt.NDArray[np.floating]


class CacheReader:
    """An open, complete cache. Pickles as its path: the process that unpickles it opens it again.

    Raises CacheNotFound (naming the closest cache there is), CacheMismatch, CacheIncomplete, CacheCorrupt (naming the
    file), AddressSpaceExhausted. While it is open the cache is not evicted. Threads may share a reader, as long as none
    closes it under the others.
    """

    def __init__(self, root: Path | str, spec: CacheSpec) -> None:
        root = Path(root)
        if not layout.group_path(root, spec.key).is_dir():
            raise CacheNotFound(describe_absence(root, spec))
        self._open(root, spec.key, spec)

    @classmethod
    def from_key(cls, root: Path | str, key: str) -> "CacheReader":
        """Open a cache by its key; of the folder ``root / key``. Raises the constructor's errors, InvalidArgument."""
        reader = cls.__new__(cls)
        reader._open(Path(root), key, None)
        return reader

    def _open(self, root: Path, key: str, asked: CacheSpec | None) -> None:
        self._root = root
        self.path = layout.group_path(root, key)
        manifest = documents.read_manifest(self.path)
        self._lease = CacheLease(self.path)
        try:
            self._load(manifest, asked)
        except BaseException:
            self._lease.release()  # the error's traceback refers to it for as long as the error is kept
            raise

    def _load(self, manifest: documents.CacheManifest, asked: CacheSpec | None) -> None:
        check_identity(self.path, manifest, asked)
        self.spec = manifest.spec
        documents.check_arrays(self.path, self.spec)
        self._records, finishing = check_completion(self.path, self.spec)
        #: SHA-256 of the commit records, as COMPLETE has it: other bytes of any chunk have another one.
        self.commits_sha256 = documents.commits_sha256(iter(self._records))
        for record in self._records:
            chunk_files.check_chunk_files(self.path, record)
        #: Provenance, see CacheWriter.add_provenance: free JSON, no part of the identity.
        self.provenance = documents.read_provenance(self.path, manifest.provenance, finishing)
        self._statistics = {name: self._load_statistic(name) for name in STATISTICS}
        self._mapped = {
            array.name: self._map(array.name, array.columns, array.numpy_dtype)
            for array in self.spec.logit_arrays.values()
            if array.columns is not None
        }
        self._chunks = self._mapped["logits"]
        #: None where rows are stored as they are handed out: nothing is decoded then.
        self._encoded: LossyRows | None = None
        if self.spec.is_lossy:
            single = [name for name in self.spec.logit_arrays if name not in self._mapped]
            self._encoded = LossyRows(self.spec, self._mapped, {name: self._load_statistic(name) for name in single})
        self._view_bytes = self.spec.samples * self.spec.stored_row_bytes
        #: A view's logits take more than half of the memory there is: see ``store.read_ahead``.
        self.exceeds_memory = 2 * self._view_bytes > memory_bytes()
        self._block_shift = self.spec.block_rows.bit_length() - 1  # block_rows is a power of two
        self._hole_rows = self._chunks.stride_rows - self.spec.block_rows
        self._closed = False

    def gather(self, view: int, rows: npt.NDArray[np.integer], out: LogitRows | None = None) -> LogitRows:
        """Logits [B, C] of samples ``rows`` [B] of one view, in the cache's dtype, in ``out`` if given.

        ``out`` must be C-contiguous, [B, C], of the cache's dtype. The bytes are not checked against their checksums.
        Raises RowOutOfRange, InvalidArgument (not one-dimensional integers, another ``out``), ReaderClosed.
        """
        if self._encoded is not None:
            return self._decode(view, self._checked_rows(view, rows), out)
        return self._take(self._physical_rows(view, rows), out)

    def row_map(self, view: int, rows: npt.NDArray[np.integer]) -> "RowMap":
        """Prepare to gather many batches: ``rows`` [M], e.g. an epoch's permutation, located once.

        Raises RowOutOfRange, InvalidArgument, ReaderClosed.
        """
        if self._encoded is not None:
            samples_M = self._checked_rows(view, rows).copy()
            ahead = self._read_ahead(view, partial(self._encoded.prefetch, view))
            return RowMap(samples_M, partial(self._decode, view), partial(self._prefetch, ahead))
        ahead = self._read_ahead(view, self._chunks.prefetch)
        return RowMap(self._physical_rows(view, rows), self._take, partial(self._prefetch, ahead))

    def logits(self, view: int) -> LogitRows:
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
        for chunks in self._mapped.values():
            chunks.release()
        self._lease.release()

    def __enter__(self) -> "CacheReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Path, str], "CacheReader"], tuple[Path, str]]:
        return CacheReader.from_key, (self._root, self.spec.key)

    def __repr__(self) -> str:
        return f"CacheReader({str(self.path)!r})"

    def _checked_rows(self, view: int, rows: npt.NDArray[np.integer]) -> RowIndices:
        """Check sample indices; returns them as int64, perhaps the given array itself."""
        self._check_view(view)
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InvalidArgument(f"rows must be integers in one dimension, not {rows.dtype} of shape {rows.shape}")
        rows_B = rows.astype(np.int64, copy=False)
        # Read as unsigned, a negative index is a huge one: a single pass checks both ends.
        if rows_B.size and int(rows_B.view(np.uint64).max()) >= self.spec.samples:
            wrong = rows[(rows_B < 0) | (rows_B >= self.spec.samples)][0]
            raise RowOutOfRange(f"sample {wrong} does not exist: there are {self.spec.samples}")
        return rows_B

    def _physical_rows(self, view: int, rows: npt.NDArray[np.integer]) -> RowIndices:
        """Check sample indices and turn them into row numbers of the mapped range."""
        rows_B = self._checked_rows(view, rows)
        first_block = view * self.spec.blocks_per_view
        physical_B = rows_B >> self._block_shift
        physical_B *= self._hole_rows
        physical_B += rows_B
        if first_block:
            physical_B += first_block * self._chunks.stride_rows
        return physical_B

    def _take(self, physical_B: RowIndices, out: LogitRows | None) -> LogitRows:
        out = self._checked_out(len(physical_B), out)
        self._chunks.touch(physical_B)
        self._chunks.rows.take(physical_B, axis=0, out=out, mode="clip")
        return out

    def _decode(self, view: int, samples_B: RowIndices, out: LogitRows | None) -> LogitRows:
        assert self._encoded is not None
        out = self._checked_out(len(samples_B), out)
        self._encoded.gather(view, samples_B, out)
        return out

    def _checked_out(self, rows: int, out: LogitRows | None) -> LogitRows:
        self._check_open()
        shape, dtype = (rows, self.spec.classes), self.spec.numpy_dtype
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise InvalidArgument(
                f"out must be a C-contiguous {dtype.name} array of shape {shape}, not {out.dtype} of shape {out.shape}"
            )
        return out

    def _read_ahead(self, view: int, prefetch: Callable[[RowIndices], None]) -> ReadAhead:
        first = view * self.spec.blocks_per_view
        blocks = range(first, first + self.spec.blocks_per_view)
        arrays = list(self._mapped.values())
        return ReadAhead(arrays, blocks, self._view_bytes, prefetch, fits=not self.exceeds_memory)

    def _prefetch(self, ahead: ReadAhead, rows_B: RowIndices) -> None:
        self._check_open()
        ahead.read(rows_B)

    def _check_open(self) -> None:
        if self._closed:
            raise ReaderClosed(f"{self!r} is closed")

    def _check_view(self, view: int) -> None:
        if not 0 <= view < self.spec.views:
            raise RowOutOfRange(f"view {view} does not exist: there are {self.spec.views}")

    def _load_view(self, into: LogitRows, array: str, view: int) -> None:
        def load(block: int) -> None:
            _, start, stop = self.spec.block_range(block)
            record = self._records[block]
            if array == "logits" and self.spec.is_lossy:
                load_block(self.path, self.spec, block, record, out_NC=into[start:stop])
            else:
                chunk_files.read_chunk(self.path, self.spec, array, block, record=record, out=into[start:stop])

        first = view * self.spec.blocks_per_view
        blocks = range(first, first + self.spec.blocks_per_view)
        if array != "logits":  # too small to be worth threads
            for block in blocks:
                load(block)
            return
        # Reading and the first touch of new memory leave the interpreter to the others. An error cancels the rest.
        with ThreadPoolExecutor(_LOADERS) as pool:
            deque(pool.map(load, blocks), maxlen=0)

    def _map(self, array: str, columns: int, dtype: np.dtype[np.generic]) -> ChunkRows:
        paths = [self.path / layout.chunk_name(array, self.spec, block) for block in range(self.spec.blocks)]
        return map_chunks(paths, self.spec.block_rows, columns, dtype)

    def _load_statistic(self, name: str) -> Float32:
        values_VN = np.empty((self.spec.views, self.spec.samples), np.float32)
        for view in range(self.spec.views):
            self._load_view(values_VN[view], name, view)
        values_VN.flags.writeable = False
        return values_VN


class RowMap:
    """Map of an epoch's rows to their places, in the order of their use. See CacheReader.row_map."""

    def __init__(
        self,
        rows_M: RowIndices,
        take: Callable[[RowIndices, LogitRows | None], LogitRows],
        prefetch: Callable[[RowIndices], None],
    ) -> None:
        """Keep the reader's ``take`` and ``prefetch``, which are called with some of ``rows_M``."""
        self._rows_M = rows_M
        self._take = take
        self._prefetch = prefetch
        self._prefetched = 0

    def __len__(self) -> int:
        return len(self._rows_M)

    def gather(self, start: int, stop: int, out: LogitRows | None = None) -> LogitRows:
        """Logits [B, C] of positions start..stop (exclusive) of the order given to row_map.

        Raises InvalidArgument (for ``out``), ReaderClosed. Positions beyond the end are cut off, as in a slice.
        """
        return self._take(self._rows_M[start:stop], out)

    def prefetch(self, start: int, stop: int) -> None:
        """Start to read the rows of these positions in the background, and more than those where it helps.

        Before each gather(start, stop), prefetch(start, stop + 4 * (stop - start)): positions that
        were asked for before are passed over, those beyond the end cut off. A view that fits in
        memory is read whole after the first of them (see ``store.read_ahead``), and left alone if it is
        there. One that does not is read row by row: from the first call on, the reader's page
        faults read single pages.
        Raises ReaderClosed.
        """
        self._prefetch(self._rows_M[max(start, self._prefetched) : stop])
        self._prefetched = max(stop, self._prefetched)
