"""Eviction of caches to make room for new ones: which may go, in which order; pins, reservations, the quota.

Least recently used first. A cache stays if

- it is pinned: a file in its own folder says so, which every process sees and a restart leaves alone;
- it is held: a process that needs it has the shared lock of one byte of its zarr.json, which the kernel releases when
  that process dies;
- a block of it is being written at this moment.

Evicting takes the exclusive locks, so no process can begin to use a cache that is being evicted. A process that has
opened a cache without holding it loses nothing that it has mapped or open: an unlinked file lives until its last user
lets go.

A reservation creates and holds caches before they are written. While a cache is held and not complete it counts with
the size that it will have, so what was promised to one job is not promised to another.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import JsonValue

from store import documents, layout
from store.errors import CacheBusy, CacheNotFound, CachePinned, QuotaExceeded, StoreError
from store.filesystem import disk_full_as_error, fsync, lock_byte, write_atomically
from store.locks import GROUP_BYTE, USE_BYTE, CacheLease, exclusive_lock, lock_shared
from store.spec import CacheSpec
from store.writer import CacheWriter

# Upper bounds of the files beside the chunks: per chunk file its part of a commit record, about 55 bytes; and the
# descriptions of a cache and of each of its arrays, about 1,000 and 700 bytes beside 3,000 of provenance.
_RECORD_BYTES = 85
_GROUP_BYTES, _ARRAY_BYTES = 4096, 768
_KEYS_SHOWN = 4


@dataclass(frozen=True)
class Evicted:
    """Evicted cache; ``used_at`` is the time of its last use."""

    key: str
    size_bytes: int
    used_at: datetime


@dataclass(frozen=True)
class Reservation:
    """Reservation of caches: they exist, complete or not, and are held; and the caches evicted for them."""

    evicted: list[Evicted]
    leases: list[CacheLease] = field(default_factory=list)

    def release(self) -> None:
        """Let the caches be evicted again. May be called twice."""
        for lease in self.leases:
            lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def chunks_bytes(spec: CacheSpec) -> int:
    """Bytes of all chunk files of a complete cache, padding and checksums included: exact for every encoding."""
    every, first = (
        sum(layout.chunk_bytes(array.name, spec) for array in arrays)
        for arrays in (spec.arrays_of(1), spec.arrays_of(0))
    )
    return (spec.blocks - 1) * every + first


def full_bytes(spec: CacheSpec) -> int:
    """Size of a cache when it is complete, at most (its provenance has to stay below some 3,000 bytes)."""
    records = (spec.blocks - 1) * len(spec.arrays_of(1)) + len(spec.arrays_of(0))
    return _GROUP_BYTES + _ARRAY_BYTES * len(spec.arrays) + chunks_bytes(spec) + _RECORD_BYTES * records


def pin(group: Path) -> None:
    """Write the pin. Raises CacheNotFound, DiskFull."""
    descriptor = lock_shared(group, GROUP_BYTE)
    try:
        now = datetime.now(UTC).isoformat()
        with disk_full_as_error(group, len(now)):
            write_atomically(group / layout.PINNED_FILE, now.encode())
    finally:
        os.close(descriptor)


def unpin(group: Path) -> None:
    """Remove the pin, if there is one. Raises CacheNotFound."""
    (group / layout.PINNED_FILE).unlink(missing_ok=True)
    try:
        fsync(group)
    except FileNotFoundError:
        raise CacheNotFound(f"{group} was deleted meanwhile") from None


def is_pinned(group: Path) -> bool:
    """Whether the cache is pinned."""
    return (group / layout.PINNED_FILE).exists()


def last_used_at(group: Path) -> datetime | None:
    """Time of the last Catalog.touch; None for a cache that was never used."""
    try:
        return datetime.fromisoformat((group / layout.LAST_USED_FILE).read_text()).astimezone(UTC)
    except (FileNotFoundError, ValueError):
        return None  # or not written by us: nothing depends on it


def remove(group: Path, *, even_if_held: bool = False) -> None:
    """Remove a cache: its name at once, then its files one by one.

    Raises CacheNotFound; CachePinned; CacheBusy while a block is being written, and, unless ``even_if_held``, while
    any process holds the cache.
    """
    tombstone = group.with_name(f"{layout.DELETED_PREFIX}{group.name}-{uuid.uuid4().hex}")
    try:
        with exclusive_lock(group, [GROUP_BYTE] if even_if_held else [GROUP_BYTE, USE_BYTE]):
            if is_pinned(group):
                raise CachePinned(f"{group} is pinned: unpin it first, then delete it")
            group.rename(tombstone)
    except FileNotFoundError:
        raise CacheNotFound(f"{group} was deleted meanwhile") from None
    fsync(group.parent)
    with contextlib.suppress(FileNotFoundError):  # another process sweeps at the same time
        shutil.rmtree(tombstone)


def make_room(root: Path, needed_bytes: int, quota_bytes: int, in_use: Collection[str] = ()) -> list[Evicted]:
    """Evict until ``needed_bytes`` more fit into the quota; see Catalog.make_room. The caller holds exclusive()."""
    found = sorted((_look(group, in_use) for group in layout.group_paths(root)), key=lambda item: item.lru_key)
    excess = needed_bytes + sum(item.promised_bytes for item in found) - quota_bytes
    if excess <= 0:
        return []
    free = [item for item in found if item.kept is None]
    if excess > sum(item.size_bytes for item in free):
        raise QuotaExceeded(_refusal(needed_bytes, quota_bytes, found))
    evicted = []
    for item in free:
        try:
            remove(item.group)
            evicted.append(Evicted(item.group.name, item.size_bytes, item.used_at))
        except (CacheBusy, CachePinned):
            continue  # since it was looked at
        except CacheNotFound:
            pass  # its room is free all the same
        excess -= item.size_bytes
        if excess <= 0:
            return evicted
    raise QuotaExceeded(_refusal(needed_bytes, quota_bytes, [_look(item.group, in_use) for item in found]))


def evictable(root: Path, in_use: Collection[str] = ()) -> tuple[int, int]:
    """Count the caches that could be evicted now, and their bytes. Those that are deleted meanwhile are left out."""
    sizes = []
    for group in layout.group_paths(root):
        with contextlib.suppress(FileNotFoundError):
            item = _look(group, in_use)
            sizes += [item.size_bytes] if item.kept is None else []
    return len(sizes), sum(sizes)


def reserve(
    root: Path, specs: Sequence[CacheSpec], quota_bytes: int, provenance: Mapping[str, JsonValue]
) -> Reservation:
    """Make room for caches, create and hold them; see Catalog.reserve. The caller holds exclusive()."""
    groups = [layout.group_path(root, spec.key) for spec in specs]
    evicted: list[Evicted] = []
    # A complete cache needs no room, even if the quota was lowered since it was made.
    if quota_bytes and not all((group / layout.COMPLETE_FILE).exists() for group in groups):
        needed_bytes = sum(full_bytes(spec) for spec, group in zip(specs, groups, strict=True) if not group.exists())
        evicted = make_room(root, needed_bytes, quota_bytes, [spec.key for spec in specs])
    for spec in specs:
        CacheWriter(root, spec, provenance)
    return Reservation(evicted, [CacheLease(group) for group in groups])


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Lock the root for one process at a time: the bytes counted must not grow by another's reservation meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / layout.TURN_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        lock_byte(descriptor, 0)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _CacheUse:
    """A cache as an eviction sees it. ``promised_bytes`` is more than its size while it is in use and not complete."""

    group: Path
    size_bytes: int
    promised_bytes: int
    used_at: datetime
    kept: Literal["pinned", "in use"] | None

    @property
    def lru_key(self) -> tuple[datetime, str]:
        """Sort key: least recently used first."""
        return self.used_at, self.group.name


def _look(group: Path, in_use: Collection[str]) -> _CacheUse:
    used = group.name in in_use or _is_used(group)
    size_bytes = promised_bytes = layout.size_bytes(group)
    if used and not (group / layout.COMPLETE_FILE).exists():
        with contextlib.suppress(StoreError):
            promised_bytes = max(size_bytes, full_bytes(documents.read_manifest(group).spec))
    kept: Literal["pinned", "in use"] | None = "in use" if used else "pinned" if is_pinned(group) else None
    return _CacheUse(group, size_bytes=size_bytes, promised_bytes=promised_bytes, used_at=_used_at(group), kept=kept)


def _is_used(group: Path) -> bool:
    try:
        with exclusive_lock(group, [GROUP_BYTE, USE_BYTE]):
            return False
    except CacheBusy:
        return True


def _used_at(group: Path) -> datetime:
    """Time of the last use; before the first one, of the last commit of a block."""
    used_at = last_used_at(group)
    if used_at is not None:
        return used_at
    for path in (group / layout.COMMITS_FOLDER, group):
        with contextlib.suppress(FileNotFoundError):
            return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return datetime.fromtimestamp(0, UTC)  # deleted meanwhile


def _refusal(needed_bytes: int, quota_bytes: int, found: Sequence[_CacheUse]) -> str:
    kept = {why: [item for item in found if item.kept == why] for why in ("pinned", "in use")}
    pinned, used = (
        f"{sum(item.promised_bytes for item in items)} bytes {why}{_names(items)}" for why, items in kept.items()
    )
    return (
        f"the quota of {quota_bytes} bytes has no room for new caches of {needed_bytes} bytes: there are {pinned} and "
        f"{used}, and to evict all others is not enough: unpin a cache, wait for the jobs that use them, or raise the "
        "quota"
    )


def _names(items: Sequence[_CacheUse]) -> str:
    if not items:
        return ""
    shown = ", ".join(item.group.name[:12] for item in items[:_KEYS_SHOWN])
    return f" ({shown}{', ...' if len(items) > _KEYS_SHOWN else ''})"
