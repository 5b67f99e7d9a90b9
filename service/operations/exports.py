"""Exports of caches as files: made when they are asked for first, removed an hour after they were asked for last."""

import fcntl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import NotInstalled
from service.paths import EXPORT_SUFFIXES
from store import CacheSpec
from store.export import ExportFormat, SampleFacts, export_cache
from workers.data.prepared import open_prepared
from workers.errors import InvalidDataset
from workers.files import file_sha256, replacing

KEPT_S = 3600.0
_DIGEST = ".sha256"
_LOCK = ".lock"
_PARTIAL = ".partial"


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
    facts: Callable[[], SampleFacts | None],
    check_room: Callable[[], None],
) -> ExportedCache:
    """Export a cache, or find the export that was made already; others wait while one makes it.

    Args:
        folder: of exports; it is made.
        facts: called where the export has to be made.
        check_room: likewise; it raises where the disk has no room for the file.

    Raises:
        NotInstalled: ``parquet`` without pyarrow.
        StoreError: see ``export_cache``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder)
    path = folder / f"{key}{EXPORT_SUFFIXES[format]}"
    digest = path.with_name(path.name + _DIGEST)
    with path.with_name(path.name + _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The digest is written last: without it the file may be half of one.
        if not digest.exists():
            check_room()
            partial = path.with_name(path.name + _PARTIAL)
            try:
                export_cache(caches_dir, key, format, partial, facts=facts())
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
    ids = opened.sample_ids
    return SampleFacts(list(map(str, range(opened.samples))) if ids is None else ids, opened.labels_N)


def remove_old(folder: Path) -> None:
    """Remove what nobody has asked for within ``KEPT_S``; a download that is under way keeps its open file."""
    newest = time.time() - KEPT_S
    for digest in folder.glob(f"*{_DIGEST}"):
        with suppress(FileNotFoundError):
            if digest.stat().st_mtime < newest:
                digest.unlink()
                digest.with_suffix("").unlink()
    # Left by a process that was killed.
    for path in (*folder.glob(f"*{_PARTIAL}"), *folder.glob(f"*{_LOCK}")):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < newest:
                path.unlink()
