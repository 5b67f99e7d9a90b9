"""Catalog of the caches under one root: list (state, size, last use), delete, pin, evict, reserve, verify.

The folder is the catalog: there is no index beside it that could disagree. Listing reads each
cache's manifest and commit records and looks at file sizes; verify() reads every byte. The rules of
eviction, and the locks that keep it from caches in use, are in ``store.eviction`` and ``store.locks``.
"""

import contextlib
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from store import chunk_files, documents, eviction, layout
from store.errors import AmbiguousKey, CacheCorrupt, CacheNotFound, InvalidArgument, StoreError
from store.eviction import Evicted, Reservation
from store.filesystem import disk_full_as_error, write_atomically
from store.identity import check_completion, check_identity
from store.locks import CacheLease
from store.spec import CacheSpec
from store.verify import VerifyReport, verify_group

MIN_PREFIX = 4  # hex digits, as in git
_ABANDONED_S = 3600.0  # creating a group takes milliseconds


@dataclass(frozen=True)
class CacheEntry:
    """One cache in a listing. A corrupt one has a ``problem``, and perhaps no readable spec."""

    key: str
    spec: CacheSpec | None
    state: Literal["complete", "partial", "corrupt"]
    rows_committed: int  # over all views
    size_bytes: int
    created_at: datetime | None
    last_used_at: datetime | None
    pinned: bool
    provenance: dict[str, JsonValue]
    problem: str | None = None


CacheEntries = list[CacheEntry]  # inside Catalog, `list` is the method
Evictions = list[Evicted]


class Catalog:
    """The caches under ``root``, which need not exist yet."""

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

    def spec(self, key: str) -> CacheSpec:
        """Read what a cache is of, from its manifest alone. Raises CacheNotFound, InvalidArgument, CacheCorrupt."""
        return documents.read_manifest(layout.group_path(self.root, key)).spec

    def resolve(self, prefix: str) -> str:
        """The one key that starts with ``prefix`` (at least 4 hex digits).

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
        """Record that the cache is in use now. Raises CacheNotFound, InvalidArgument, DiskFull."""
        group = self._existing(key)
        now = datetime.now(UTC).isoformat()
        try:
            with disk_full_as_error(group, len(now)):
                write_atomically(group / layout.LAST_USED_FILE, now.encode())
        except FileNotFoundError:
            raise CacheNotFound(f"{group} was deleted meanwhile") from None

    def delete(self, key: str) -> None:
        """Delete a cache: its name at once, then its files one by one.

        A process that has it open keeps reading; one that is writing it gets CacheNotFound at its next block.
        Raises CacheNotFound, InvalidArgument, CachePinned, CacheBusy while a block is being written.
        """
        eviction.remove(self._existing(key), even_if_held=True)

    def pin(self, key: str) -> None:
        """Keep a cache from eviction and deletion until unpin(), across restarts. May be called twice.

        Raises CacheNotFound, InvalidArgument, DiskFull.
        """
        eviction.pin(self._existing(key))

    def unpin(self, key: str) -> None:
        """Remove the pin, if there is one. Raises CacheNotFound, InvalidArgument."""
        eviction.unpin(self._existing(key))

    def hold(self, key: str) -> CacheLease:
        """Keep a cache from eviction while this process needs it. Raises CacheNotFound, InvalidArgument."""
        return CacheLease(layout.group_path(self.root, key))

    def make_room(self, needed_bytes: int, quota_bytes: int, in_use: Collection[str] = ()) -> Evictions:
        """Evict caches, the least recently used first, until ``needed_bytes`` more fit into the quota.

        Complete, partial and corrupt ones alike; never one that is pinned, held, being written or
        named by ``in_use``. Those in use count as large as they will be when they are complete.
        Raises QuotaExceeded, having evicted nothing (unless a cache was pinned or taken into use at
        that moment).
        """
        with eviction.exclusive(self.root):
            return eviction.make_room(self.root, needed_bytes, quota_bytes, in_use)

    def evictable(self, in_use: Collection[str] = ()) -> tuple[int, int]:
        """Count the caches that make_room() could evict, and their bytes."""
        return eviction.evictable(self.root, in_use)

    def reserve(
        self, specs: Sequence[CacheSpec], quota_bytes: int = 0, provenance: Mapping[str, JsonValue] | None = None
    ) -> Reservation:
        """Reserve caches: hold them, and create those that do not exist, empty, once there is room for them.

        ``quota_bytes`` is for all caches under the root together; 0 is no quota. Nothing is evicted
        for caches that are complete already. ``provenance`` is as of CacheWriter.
        Raises QuotaExceeded as make_room does, and the errors of CacheWriter.
        """
        with eviction.exclusive(self.root):
            self.sweep()
            return eviction.reserve(self.root, specs, quota_bytes, provenance or {})

    def sweep(self) -> int:
        """Remove leftovers of killed deletions and creations under the root; returns their number."""
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
    """Describe a cache without reading its logits. Raises CacheNotFound."""
    manifest: documents.CacheManifest | None = None
    rows_committed = 0
    problem = None
    provenance: dict[str, JsonValue] = {}
    complete = (group / layout.COMPLETE_FILE).exists()
    try:
        manifest = documents.read_manifest(group)
        provenance = documents.read_provenance(group, manifest.provenance)
        check_identity(group, manifest)
        documents.check_arrays(group, manifest.spec)
        rows_committed, damage = _count_rows(group, manifest.spec)
        if complete:
            _, finishing = check_completion(group, manifest.spec)
            provenance |= finishing
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
        last_used_at=eviction.last_used_at(group),
        pinned=eviction.is_pinned(group),
        provenance=provenance,
        problem=problem,
    )


def _count_rows(group: Path, spec: CacheSpec) -> tuple[int, str | None]:
    """Count the rows of the blocks whose files fit their record; with the first damage to the others."""
    rows, damage = 0, None
    for block in range(spec.blocks):
        try:
            record = documents.load_record(group, spec, block)
            if record is not None:
                chunk_files.check_chunk_files(group, record)
                rows += record.rows
        except CacheCorrupt as error:
            damage = damage or str(error)
    return rows, damage


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_S
    except FileNotFoundError:
        return False
