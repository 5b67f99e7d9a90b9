"""Indexes of WebDataset shards on disk: what one process has read of a shard's headers, the next one finds.

An index lies in ``<work_dir>/indexes``, named by the shard's path, size and time of modification and by the options it
was read with, so that a changed shard has another. It is arrays and JSON, checked when it is read; one that is damaged
is made anew. Which folder holds them is told by ``kept_in`` for the time of an examination. Light.

Legend: N samples of a shard.
"""

import contextlib
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workers.data.shard import Shard
from workers.errors import DiskLow
from workers.files import replacing

FOLDER = "indexes"
# Increased when the meaning of an index changes.
_RULES = 1
# Shards below this are read again as fast.
_SAMPLES_MIN = 256
_UNUSED_S = 30 * 24 * 3600.0
_folder: ContextVar[Path | None] = ContextVar("folder of kept indexes", default=None)


class Key(NamedTuple):
    """Shard and options by which an index is known."""

    path: Path
    size_bytes: int
    modified_ns: int
    image: str | None
    label: str | None


@contextlib.contextmanager
def kept_in(work_dir: Path | None) -> Iterator[None]:
    """Keep and find indexes below this folder meanwhile; None keeps none."""
    token = _folder.set(None if work_dir is None else work_dir / FOLDER)
    try:
        yield
    finally:
        _folder.reset(token)


def read(key: Key) -> Shard | None:
    """Index of a shard that was kept; None if there is none, or none that holds."""
    path = _path(key)
    if path is None:
        return None
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            found = json.loads(bytes(file["facts"]))
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


def write(key: Key, shard: Shard) -> None:
    """Keep the index of a shard, if that saves anything; a full disk is no reason to fail."""
    path = _path(key)
    if path is None or len(shard) < _SAMPLES_MIN:
        return
    facts = {
        "labels": shard.labels,
        "ignored": shard.ignored,
        "unlabelled": shard.unlabelled,
        "has_more": shard.has_more,
    }
    with contextlib.suppress(OSError, DiskLow):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "an index") as file:
            np.savez(
                file,
                allow_pickle=False,
                offsets=shard.offsets_N,
                sizes=shard.sizes_N,
                labels=shard.labels_N,
                keys=np.frombuffer(shard.keys, np.uint8),
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            )


def remove_unused(work_dir: Path) -> int:
    """Remove indexes that nobody has read for thirty days; returns how many."""
    removed = 0
    for path in (work_dir / FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _UNUSED_S:
                path.unlink()
                removed += 1
    return removed


def _path(key: Key) -> Path | None:
    folder = _folder.get()
    if folder is None:
        return None
    described = [_RULES, os.fsencode(key.path).hex(), *key[1:]]
    return folder / f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()}.npz"


def _holds(shard: Shard, key: Key) -> bool:
    """Whether an index is whole and fits its shard: every picture lies in the file, every label is one of the list."""
    lengths = {len(shard.offsets_N), len(shard.sizes_N), len(shard.labels_N), shard.keys.count(b"\n")}
    if len(lengths) != 1 or shard.offsets_N.ndim != 1:
        return False
    within = (shard.offsets_N >= 0) & (shard.sizes_N >= 0) & (shard.offsets_N + shard.sizes_N <= key.size_bytes)
    known = (shard.labels_N >= -1) & (shard.labels_N < len(shard.labels))
    return bool(within.all() and known.all())
