"""The caches under one root: what there is, how complete, how large, when used last; delete, verify.

The folder is the catalog: there is no index beside it that could disagree. Listing reads each
cache's manifest and commit records and looks at file sizes; verify() reads every byte.
"""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from . import layout
from .errors import (
    AmbiguousKey,
    CacheBusy,
    CacheCorrupt,
    CacheNotFound,
    InvalidArgument,
    StoreError,
)
from .files import disk_full_as_error, fsync, lock_byte, write_atomically
from .reader import check_completion, check_identity
from .schema import CacheSpec
from .verify import VerifyReport, verify_group
from .writer import GROUP_BYTE

MIN_PREFIX = 4  # hex digits, as in git
_ABANDONED_S = 3600.0  # creating a group takes milliseconds


@dataclass(frozen=True)
class CacheEntry:
    """One cache in a listing. A corrupt one has a `problem`, and perhaps no readable spec."""

    key: str
    spec: CacheSpec | None
    state: Literal["complete", "partial", "corrupt"]
    rows_committed: int  # over all views
    size_bytes: int
    created_at: datetime | None
    last_used_at: datetime | None
    provenance: dict[str, JsonValue]
    problem: str | None = None


CacheEntries = list[CacheEntry]  # inside Catalog, `list` is the method


class Catalog:
    """The caches under `root`, which need not exist yet."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def list(self) -> CacheEntries:
        """Every cache, sorted by key. Caches that are deleted meanwhile are left out."""
        entries = []
        for group in layout.group_paths(self.root):
            with contextlib.suppress(CacheNotFound):
                entries.append(_describe(group))
        return entries

    def get(self, key: str) -> CacheEntry:
        """One cache. Raises CacheNotFound, InvalidArgument."""
        return _describe(self._existing(key))

    def resolve(self, prefix: str) -> str:
        """The one key that starts with `prefix` (at least 4 hex digits).

        Raises InvalidArgument, CacheNotFound, AmbiguousKey.
        """
        if not (MIN_PREFIX <= len(prefix) <= 64 and set(prefix) <= set("0123456789abcdef")):
            raise InvalidArgument(f"{prefix!r} cannot start a key: give {MIN_PREFIX} to 64 lower-case hex digits")
        keys = [path.name for path in layout.group_paths(self.root) if path.name.startswith(prefix)]
        if not keys:
            raise CacheNotFound(f"no cache under {self.root} has a key that starts with {prefix}")
        if len(keys) > 1:
            raise AmbiguousKey(f"{prefix} starts {len(keys)} keys, give more of one: {', '.join(keys)}")
        return keys[0]

    def touch(self, key: str) -> None:
        """Note that the cache is in use now. Raises CacheNotFound, InvalidArgument, DiskFull."""
        group = self._existing(key)
        now = datetime.now(UTC).isoformat()
        try:
            with disk_full_as_error(group, len(now)):
                write_atomically(group / layout.LAST_USED_FILE, now.encode())
        except FileNotFoundError:
            raise CacheNotFound(f"{group} was deleted meanwhile") from None

    def delete(self, key: str) -> None:
        """Remove a cache: at once for everybody who looks for it, then its files one by one.

        A process that has it open keeps reading; one that is writing it is told at its next block.
        Raises CacheNotFound, InvalidArgument, CacheBusy while a block is being written.
        """
        group = self._existing(key)
        tombstone = self.root / f"{layout.DELETED_PREFIX}{key}-{uuid.uuid4().hex}"
        try:
            with _without_writers(group):
                group.rename(tombstone)
        except FileNotFoundError:
            raise CacheNotFound(f"{group} was deleted meanwhile") from None
        fsync(self.root)
        with contextlib.suppress(FileNotFoundError):  # somebody sweeps at the same time
            shutil.rmtree(tombstone)

    def sweep(self) -> int:
        """Remove what killed deletions and creations left under the root; returns how many."""
        swept = 0
        for path in self.root.iterdir() if self.root.is_dir() else ():
            deleted = path.name.startswith(layout.DELETED_PREFIX)
            if deleted or (path.name.startswith(layout.CREATING_PREFIX) and _is_abandoned(path)):
                shutil.rmtree(path, ignore_errors=True)
                swept += 1
        return swept

    def verify(self, key: str) -> VerifyReport:
        """Read every byte and recompute every statistic; does not stop at the first problem.

        Raises CacheNotFound, InvalidArgument; everything else is a problem in the report.
        """
        return verify_group(self._existing(key))

    def _existing(self, key: str) -> Path:
        group = layout.group_path(self.root, key)
        if not group.is_dir():
            raise CacheNotFound(f"there is no cache {key} under {self.root}")
        return group


def _describe(group: Path) -> CacheEntry:
    """What can be said about a cache without reading its logits. Raises CacheNotFound."""
    manifest: layout.Manifest | None = None
    rows_committed = 0
    problem = None
    provenance: dict[str, JsonValue] = {}
    complete = (group / layout.COMPLETE_FILE).exists()
    try:
        manifest = layout.read_manifest(group)
        provenance = manifest.provenance
        check_identity(group, manifest)
        layout.check_arrays(group, manifest.spec)
        rows_committed, damage = _count_rows(group, manifest.spec)
        if complete:
            _, finishing = check_completion(group, manifest.spec)
            provenance = {**provenance, **finishing}
            problem = damage
    except StoreError as error:
        problem = str(error)
    if not group.is_dir():
        raise CacheNotFound(f"{group} was deleted meanwhile")
    return CacheEntry(
        key=group.name,
        spec=manifest.spec if manifest else None,
        state="corrupt" if problem else "complete" if complete else "partial",
        rows_committed=rows_committed,
        size_bytes=layout.size_bytes(group),
        created_at=manifest.created_at if manifest else None,
        last_used_at=_last_used_at(group),
        provenance=provenance,
        problem=problem,
    )


def _count_rows(group: Path, spec: CacheSpec) -> tuple[int, str | None]:
    """Rows of the blocks whose files fit their record, and the first damage to the others."""
    rows, damage = 0, None
    for block in range(spec.blocks):
        try:
            record = layout.load_record(group, spec, block)
            if record is not None:
                layout.check_chunk_files(group, record)
                rows += record.rows
        except CacheCorrupt as error:
            damage = damage or str(error)
    return rows, damage


def _last_used_at(group: Path) -> datetime | None:
    try:
        return datetime.fromisoformat((group / layout.LAST_USED_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None  # never touched, or not by us: nothing depends on it


@contextlib.contextmanager
def _without_writers(group: Path) -> Iterator[None]:
    """Keep writers out of a group. Raises CacheBusy if one is at work."""
    try:
        descriptor = os.open(group / layout.GROUP_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # no manifest: nobody can be writing it
        return
    try:
        lock_byte(descriptor, GROUP_BYTE, wait=False)
        yield
    except CacheBusy as error:
        raise CacheBusy(f"{group} is being written: stop its job, then delete it") from error
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_S
    except FileNotFoundError:
        return False
