"""Exports of caches as files: made when they are asked for first, removed an hour after they were asked for last."""

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import NotInstalled
from service.paths import EXPORT_SUFFIXES
from store import CacheSpec
from store.export import ExportFormat, SampleFacts, export_cache
from store.statistics import STATISTICS
from workers.data.preparation.prepared import open_prepared, row_ids
from workers.errors import InvalidDataset
from workers.files import file_sha256, replacing

KEPT_S = 3600.0
_DIGEST = ".sha256"
_LOCK = ".lock"
_PARTIAL = ".partial"
# View, number and label of a row, or quotes and commas of JSON, at most.
_ROW_BYTES = 32


@dataclass(frozen=True)
class ExportedCache:
    """File of an exported cache.

    Attributes:
        sha256: of its bytes, 64 hex digits.
    """

    path: Path
    sha256: str


def export_once(
    folder: Path,
    caches_dir: Path,
    key: str,
    format: ExportFormat,
    *,
    facts: SampleFacts | None,
    check_room: Callable[[], None],
) -> ExportedCache:
    """Export a cache, or find the export that was made already; others wait while one makes it.

    Args:
        folder: of exports; it is made.
        facts: about its samples, where they are known; without them it is another file.
        check_room: called where the export has to be made; it raises where the disk has no room for the file.

    Raises:
        NotInstalled: ``parquet`` without pyarrow.
        StoreError: see ``export_cache``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder)
    path = folder / f"{key}{'' if facts is None else '-samples'}{EXPORT_SUFFIXES[format]}"
    digest = path.with_name(path.name + _DIGEST)
    with _locked(path):
        # The digest is written last: without it the file may be half of one.
        if not digest.exists():
            check_room()
            partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
            try:
                export_cache(caches_dir, key, format, partial, facts=facts)
                partial.replace(path)
            except ModuleNotFoundError as error:
                raise NotInstalled("Parquet files need", str(error.name), "datasets") from error
            finally:
                partial.unlink(missing_ok=True)
            with replacing(digest, "the digest of an export") as file:
                file.write(file_sha256(path).encode())
        digest.touch()
        return ExportedCache(path, digest.read_text())


def facts_of(datasets_dir: Path, spec: CacheSpec) -> SampleFacts | None:
    """Ids and labels of a cache's samples; None where its dataset is not decoded here."""
    try:
        opened = open_prepared(datasets_dir, spec.dataset_fingerprint)
    except InvalidDataset:
        return None
    return SampleFacts(row_ids(opened), opened.labels_N)


def export_bytes(spec: CacheSpec, format: ExportFormat, stored_bytes: int, facts: SampleFacts | None) -> int:
    """Bytes that an export may take.

    Args:
        stored_bytes: of the cache, which ``zarr`` copies as it is; the other formats hold decoded rows.
    """
    id_length = 0 if facts is None else max(map(len, facts.ids), default=0)
    if format == "zarr":
        return stored_bytes + spec.samples * (id_length + _ROW_BYTES)
    row_bytes = spec.classes * spec.numpy_dtype.itemsize + len(STATISTICS) * 4
    if format == "parquet":
        # A dictionary of values that hardly repeat, and 16 bits for each to find it there.
        row_bytes += row_bytes // 2
    # Of npz an id is UTF-32, once for a sample; of parquet text, in each of its rows.
    ids = spec.samples * id_length * 4 if format == "npz" else spec.views * spec.samples * id_length
    return spec.views * spec.samples * (row_bytes + _ROW_BYTES) + ids


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of an export, whoever else makes or removes it."""
    name = path.with_name(path.name + _LOCK)
    while True:
        with name.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # One that was removed while this waited for it locks nobody out.
            if os.fstat(lock.fileno()).st_nlink:
                yield
                return


def remove_old(folder: Path) -> None:
    """Remove what nobody has asked for within ``KEPT_S``; a download that is under way keeps its open file.

    What is being made, however long that takes, is locked and left alone.
    """
    newest = time.time() - KEPT_S
    names = {path.name.removesuffix(end) for end in (_DIGEST, _LOCK) for path in folder.glob(f"*{end}")}
    for path in (folder / name for name in names):
        digest, lock = (path.with_name(path.name + end) for end in (_DIGEST, _LOCK))
        if not _is_old(digest if digest.exists() else lock, newest):
            continue
        with lock.open("ab") as held, suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Asked again under the lock: it may have been made anew meanwhile.
            if not digest.exists() or _is_old(digest, newest):
                for each in (digest, path, lock):
                    each.unlink(missing_ok=True)
    # Left by a process that was killed.
    for partial in folder.glob(f"*{_PARTIAL}"):
        if _is_old(partial, newest):
            partial.unlink(missing_ok=True)


def _is_old(path: Path, newest: float) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime < newest
    return False
