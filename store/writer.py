"""Writer of a cache: block by block, by any number of processes, through any number of crashes.

A block is one chunk's rows of every array, and write_block takes a whole one: two writers never
share a chunk. For each block:

1. lock the block (a byte-range lock on the group's zarr.json, which the kernel drops when a process
   dies);
2. if its commit record is there and its files fit it, it is done;
3. otherwise delete the leftovers of an earlier attempt: chunk files and *.partial files of this
   block only, so a writer never touches the files that another one is writing;
4. write the chunks through zarr's LocalStore (atomic rename), fsync files and folders;
5. write the commit record, by temporary file, fsync and rename.

So a restart needs no flag and no cleaning: open the cache, write pending_blocks(), finish(). A
block that two processes were given (a task that Ray retried while its first actor lived on) is
written once: the second waits and gets the first one's record, even if its logits differ. There is
no per-batch writing, on purpose: it is 25-140x slower in zarr, and not safe with two writers.

Shapes: N rows of the block, C classes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import JsonValue
from zarr.storage import LocalStore

from store import chunk_files, documents, layout
from store.documents import BlockRecord, Completion, FileRecord
from store.encodings import codec
from store.errors import (
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    DiskFull,
    InvalidArgument,
    NotStorable,
)
from store.filesystem import (
    PARTIAL,
    crc32c,
    disk_full_as_error,
    fsync,
    read_trailer,
    write_atomically,
)
from store.locks import FINISH_BYTE, write_lock
from store.new_group import create_group
from store.spec import CacheSpec, canonical_json
from store.statistics import row_statistics

FLOAT16_MAX = 65504.0


class CacheWriter:
    """Writer of the cache of ``spec`` under ``root``, which is created if need be; it holds no lock between calls.

    ``provenance`` is free JSON kept beside the spec (device, versions, batch size); it is written when
    the cache is created and ignored when it is found. Creation is atomic: of several processes
    that create the same cache at once, one wins and all open the same one.
    Raises CacheMismatch or CacheCorrupt if anything else lies at ``<root>/<key>``, DiskFull.
    """

    def __init__(self, root: Path | str, spec: CacheSpec, provenance: Mapping[str, JsonValue] | None = None) -> None:
        self.root = Path(root)
        self.spec = spec
        self.path = layout.group_path(self.root, spec.key)
        if not self.path.exists():
            with disk_full_as_error(_existing_parent(self.root), needed_bytes=1 << 16):
                create_group(self.root, spec, dict(provenance or {}))
        found = documents.read_manifest(self.path).spec
        if found != spec:
            raise CacheMismatch(f"{self.path} holds another cache: {'; '.join(spec.differences(found))}")
        documents.check_arrays(self.path, spec)
        store = LocalStore(self.path)
        self._arrays = {
            name: zarr.open_array(store, path=name, mode="r+").with_config({"write_empty_chunks": True})
            for name in spec.arrays
        }

    def pending_blocks(self) -> list[int]:
        """Numbers of the blocks that are still to be written, in order.

        A committed block whose files are missing, cut or swapped counts as pending: writing it
        repairs it.
        """
        return [block for block in range(self.spec.blocks) if self._committed(block) is None]

    @property
    def is_complete(self) -> bool:
        """Whether the cache is finished and no block of it is pending."""
        return (self.path / layout.COMPLETE_FILE).exists() and not self.pending_blocks()

    def write_block(
        self,
        block: int,
        logits_NC: npt.NDArray[np.float32],
        labels_N: npt.NDArray[np.integer] | None = None,
        *,
        origin: Mapping[str, JsonValue] | None = None,
    ) -> BlockRecord:
        """Store float32 logits [rows, classes] of one whole block, with their statistics, durably.

        Rows are those of spec.block_range(block); ``labels_N`` are their classes, which a sparse cache
        needs and others ignore; ``origin`` is recorded as ``add_provenance`` does. If the block is committed
        already, its record is returned and nothing of it is written. Waits while another process writes it.
        Raises InvalidArgument (block number, shape, dtype, labels), NotStorable (NaN, infinite, beyond
        float16), DiskFull (nothing of this block stays), CacheNotFound (deleted meanwhile).
        """
        view, start, stop = self.spec.block_range(block)
        self._check_logits(logits_NC, view, start, stop)
        if origin is not None:
            # Before the block, so that a crash in between leaves no block whose origin is not known.
            self.add_provenance(origin)
        with write_lock(self.path, block):
            record = self._committed(block)
            if record is not None:
                return record
            self._clear(block)
            values = self._values(block, logits_NC, labels_N)
            needed_bytes = sum(layout.chunk_bytes(array, self.spec) for array in values)
            try:
                with disk_full_as_error(self.path, needed_bytes):
                    return self._write_and_commit(block, values)
            except DiskFull:
                self._clear(block)
                raise

    def add_provenance(self, origin: Mapping[str, JsonValue]) -> None:
        """Record the origin of blocks (device, versions) before they are written; the same origin is kept once.

        A cache can be filled by many processes over many attempts: all their origins are listed in
        ``computed_on`` of its provenance, and none of them is a part of the cache's key.
        Raises CacheNotFound (deleted meanwhile), DiskFull.
        """
        content = canonical_json(dict(origin))
        path = self.path / layout.provenance_name(content)
        if path.exists():
            return
        with write_lock(self.path, FINISH_BYTE), disk_full_as_error(self.path, needed_bytes=1 << 12):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
            fsync(self.path)

    def finish(self, provenance: Mapping[str, JsonValue] | None = None) -> None:
        """Mark the cache complete, so that readers accept it; does nothing if it is already.

        ``provenance`` joins that of the creator, e.g. the hours it took.
        Raises CacheIncomplete with the number of missing blocks, DiskFull.
        """
        with write_lock(self.path, FINISH_BYTE), disk_full_as_error(self.path, needed_bytes=1 << 12):
            pending = self.pending_blocks()
            if pending:
                raise CacheIncomplete(
                    f"{self.path}: {len(pending)} of {self.spec.blocks} blocks are not committed, "
                    f"the first is block {pending[0]}: write pending_blocks() and finish again"
                )
            if (self.path / layout.COMPLETE_FILE).exists():
                return
            for partial in self.path.glob(f"{layout.COMPLETE_FILE}.*{PARTIAL}"):
                partial.unlink()
            completion = Completion(
                key=self.spec.key,
                blocks=self.spec.blocks,
                commits_sha256=documents.commits_sha256(self._records()),
                provenance=dict(provenance or {}),
            )
            content = canonical_json(completion.model_dump(mode="json"))
            write_atomically(self.path / layout.COMPLETE_FILE, content)

    def _records(self) -> Iterator[BlockRecord]:
        for block in range(self.spec.blocks):
            record = documents.load_record(self.path, self.spec, block)
            if record is not None:
                yield record

    def _committed(self, block: int) -> BlockRecord | None:
        try:
            record = documents.load_record(self.path, self.spec, block)
            if record is not None:
                chunk_files.check_chunk_files(self.path, record)
        except CacheCorrupt:
            return None
        return record

    def _check_logits(self, logits_NC: npt.NDArray[np.float32], view: int, start: int, stop: int) -> None:
        shape = (stop - start, self.spec.classes)
        if logits_NC.shape != shape or logits_NC.dtype != np.float32:
            raise InvalidArgument(
                f"rows {start} to {stop} of view {view} take float32 logits of shape {shape}, "
                f"not {logits_NC.dtype} of shape {logits_NC.shape}"
            )
        largest_N = np.abs(logits_NC).max(axis=1)  # NaN wins over every number, so one pass sees both
        if not np.isfinite(largest_N).all():
            row = start + int(np.argmin(np.isfinite(largest_N)))
            raise NotStorable(
                f"sample {row} of view {view} has NaN or infinite logits: no method can use them; "
                "check the teacher and its preprocessing (a softmax output of exactly 0 has an "
                "infinite log: export the logits instead)"
            )
        if (self.spec.dtype == "float16" or self.spec.is_lossy) and largest_N.max() > FLOAT16_MAX:
            row = start + int(np.argmax(largest_N > FLOAT16_MAX))
            raise NotStorable(
                f"sample {row} of view {view} has a logit of magnitude {largest_N[row - start]:g}, "
                f'but float16 ends at {FLOAT16_MAX:g}: use a dense cache with dtype "float32"'
            )

    def _clear(self, block: int) -> None:
        """Delete the leftovers of a block that is not committed; the caller holds its lock."""
        arrays = self.spec.arrays_of(block)
        chunks = [self.path / layout.chunk_name(array.name, self.spec, block) for array in arrays]
        record = self.path / layout.record_name(self.spec, block)
        if not chunks[0].parent.exists() and not record.exists():
            return  # this block was never begun: the logits' folder is the first thing made of it
        complete = self.path / layout.COMPLETE_FILE
        for path in (complete, record, *chunks):
            path.unlink(missing_ok=True)
            # In this order on the disk too: never a marker or record without the files that it vouches for.
            if path in (complete, record):
                fsync(path.parent)
        for path in (record, *chunks):
            for partial in path.parent.glob(f"{path.name}.*{PARTIAL}"):
                partial.unlink()

    def _values(
        self, block: int, logits_NC: npt.NDArray[np.float32], labels_N: npt.NDArray[np.integer] | None
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Values of the block's part of every array, in the order of writing."""
        view, start, _ = self.spec.block_range(block)
        stored = {**codec.encode(self.spec, logits_NC, view, start, labels_N=labels_N), **row_statistics(logits_NC)}
        if self.spec.is_lossy:
            stored["reference"] = logits_NC[: self.spec.arrays["reference"].rows]
        return {array.name: stored[array.name] for array in self.spec.arrays_of(block)}

    def _write_and_commit(self, block: int, values: Mapping[str, npt.NDArray[np.generic]]) -> BlockRecord:
        view, start, stop = self.spec.block_range(block)
        files: dict[str, FileRecord] = {}
        for array, part in values.items():
            whole = self.spec.arrays[array].rows is not None
            self._arrays[array][... if whole else (view, slice(start, stop))] = part
            name = layout.chunk_name(array, self.spec, block)
            padded = _padded(part, layout.chunk_rows(array, self.spec))
            files[name] = self._settle(name, layout.chunk_bytes(array, self.spec), padded)
        record = BlockRecord(rows=stop - start, files=files)
        write_atomically(self.path / layout.record_name(self.spec, block), record.to_bytes())
        return record

    def _settle(self, name: str, size: int, padded: npt.NDArray[np.generic]) -> FileRecord:
        """Make one chunk file and its folders durable, and check that zarr wrote what the format demands."""
        path = self.path / name
        checksum = crc32c(padded)
        fsync(path)
        for folder in path.parents[: len(Path(name).parts) - 3]:  # up to <array>/c/<view>
            fsync(folder)
        if read_trailer(path, size) != checksum:
            raise CacheCorrupt(f"{path}: what was written is not what was given")
        return FileRecord(size=size, crc32c=checksum)


def _padded(values: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
    if len(values) == rows:
        return values
    whole = np.full((rows, *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0, values.dtype)
    whole[: len(values)] = values
    return whole


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
