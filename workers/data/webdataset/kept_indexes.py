"""Indexes of WebDataset shards on disk: what one process has read of a shard's headers, the next one finds.

An index lies in ``<work_dir>/indexes``, named by the shard's path: a shard has one, the newest, which says for which
size, time of modification and options it holds. It is arrays and JSON, checked when it is read; one that is damaged is
made anew. Which folder holds them is told by ``kept_in`` for the time of an examination; one that is refused leaves
nothing there, and the folder is bounded, for whoever may ask for examinations could fill the disk. Light.

Legend: N samples of a shard.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.data.webdataset.shard import Shard
from workers.errors import DiskLow
from workers.files import MARGIN_BYTES, replacing

FOLDER = "indexes"
# Increased when the meaning of an index changes.
_RULES = 2
# Shards below this are read again as fast.
_SAMPLES_MIN = 256
_UNUSED_S = 30 * 24 * 3600.0
# Of all indexes, and of those that one examination writes before older ones are removed.
_FOLDER_MAX_BYTES = 2 << 30


class Key(NamedTuple):
    """Shard and options by which an index is known."""

    path: Path
    size_bytes: int
    modified_ns: int
    image: str | None
    label: str | None


@dataclass(frozen=True)
class _Keeping:
    folder: Path
    made: dict[Key, Shard] = field(default_factory=dict)


_keeping: ContextVar[_Keeping | None] = ContextVar("kept indexes of an examination", default=None)


@contextlib.contextmanager
def kept_in(work_dir: Path | None) -> Iterator[None]:
    """Find indexes below this folder meanwhile, and write those made, unless it ends in an error; None keeps none."""
    keeping = None if work_dir is None else _Keeping(work_dir / FOLDER)
    token = _keeping.set(keeping)
    try:
        yield
    finally:
        _keeping.reset(token)
    if keeping is not None and keeping.made:
        # A full disk is no reason to fail.
        with contextlib.suppress(OSError, DiskLow):
            _write(keeping.folder, keeping.made)


def read(key: Key) -> Shard | None:
    """Index of a shard that was kept; None if there is none, or none that holds."""
    keeping = _keeping.get()
    if keeping is None:
        return None
    path = _path(keeping.folder, key)
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            found = json.loads(bytes(file["facts"]))
            if found["of"] != _of(key):
                return None
            shard = Shard(
                path=key.path,
                offsets_N=file["offsets"].astype(np.int64, copy=False),
                sizes_N=file["sizes"].astype(np.int64, copy=False),
                labels=tuple(map(str, found["labels"])),
                labels_N=file["labels"].astype(np.int32, copy=False),
                keys=bytes(file["keys"]),
                ignored=int(found["ignored"]),
                unlabelled=str(found["unlabelled"]),
                has_more=bool(found["has_more"]),
            )
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return shard if _holds(shard, key) else None


def keep(key: Key, shard: Shard) -> None:
    """Have the index of a shard written at the end of the examination, if that saves anything."""
    keeping = _keeping.get()
    if keeping is not None and len(shard) >= _SAMPLES_MIN:
        keeping.made[key] = shard


def _write(folder: Path, made: Mapping[Key, Shard]) -> None:
    """Write indexes in the place of older ones of their shards, as many as there is room for. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written_bytes = 0
    for key, shard in made.items():
        arrays = _arrays(key, shard)
        size_bytes = sum(array.nbytes for array in arrays.values())
        written_bytes += size_bytes
        if written_bytes > _FOLDER_MAX_BYTES or shutil.disk_usage(folder).free < size_bytes + MARGIN_BYTES:
            break
        with replacing(_path(folder, key), "an index") as file:
            np.savez(file, allow_pickle=False, **arrays)
    _remove_beyond(folder)


def _arrays(key: Key, shard: Shard) -> dict[str, NDArray[Any]]:
    facts = {
        "of": _of(key),
        "labels": shard.labels,
        "ignored": shard.ignored,
        "unlabelled": shard.unlabelled,
        "has_more": shard.has_more,
    }
    return {
        "offsets": shard.offsets_N,
        "sizes": shard.sizes_N,
        "labels": shard.labels_N,
        "keys": np.frombuffer(shard.keys, np.uint8),
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
    }


def _remove_beyond(folder: Path) -> None:
    """Remove the indexes that were not read for longest, until the others fit into the folder's bytes."""
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total_bytes = sum(size_bytes for _, size_bytes, _ in found)
    for _, size_bytes, path in sorted(found):
        if total_bytes <= _FOLDER_MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total_bytes -= size_bytes


def remove_unused(work_dir: Path) -> int:
    """Remove indexes that nobody has read for thirty days; returns how many."""
    removed = 0
    for path in (work_dir / FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _UNUSED_S:
                path.unlink()
                removed += 1
    return removed


def _path(folder: Path, key: Key) -> Path:
    return folder / f"{hashlib.sha256(os.fsencode(key.path)).hexdigest()}.npz"


def _of(key: Key) -> list[object]:
    """Facts by which an index is known, beside its shard's path."""
    return [_RULES, *key[1:]]


def _holds(shard: Shard, key: Key) -> bool:
    """Whether an index is whole and fits its shard: every picture lies in the file, every label is one of the list."""
    lengths = {len(shard.offsets_N), len(shard.sizes_N), len(shard.labels_N), shard.keys.count(b"\n")}
    if len(lengths) != 1 or shard.offsets_N.ndim != 1:
        return False
    within = (shard.offsets_N >= 0) & (shard.sizes_N >= 0) & (shard.offsets_N + shard.sizes_N <= key.size_bytes)
    known = (shard.labels_N >= -1) & (shard.labels_N < len(shard.labels))
    return bool(within.all() and known.all())
