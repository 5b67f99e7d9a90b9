"""Decoded copies of datasets on disk: their sizes and last uses, which of them a quota removes, and their removal.

Light: the API process loads this. ``workers.data.preparation.prepare`` makes the copies, and makes one again when a job
needs it. The last use of a copy is the modification time of its ``meta.json``, which every process that opens it sets.
A removal takes the lock under which copies are published and found again: a process that is just beginning to use one
either comes first, and the copy stays, or finds none and decodes it anew. A process that has it open keeps its mapping.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from workers.data.dataset_kind import DatasetKind
from workers.data.webdataset.kept_indexes import remove_unused
from workers.events import never
from workers.files import alone, sync_folder

SOURCES = "sources"
META = "meta.json"
PARTIAL_PREFIX = ".partial-"
# Of the folder of a split whose pictures stay files, and of one that is rows of another.
FILES_SUFFIX, ROWS_SUFFIX = ".files", ".rows"
# In the place of a note's own suffix: the report of bad pictures of the same source.
REPORT_SUFFIX = ".bad.jsonl"
_DELETED_PREFIX = ".deleted-"
# Between two processes of one job nobody has it open; what the job uses is in the database by then.
IDLE = timedelta(minutes=10)


@dataclass(frozen=True)
class Copy:
    """A decoded copy, the list of pictures that stay files, or the rows of another split.

    Attributes:
        name: of its folder.
        fingerprint: of its content, 64 hex digits.
        used_at: when it was opened last.
    """

    name: str
    fingerprint: str
    split: str
    samples: int
    size_bytes: int
    used_at: datetime


class KnownSplit(NamedTuple):
    """Split whose fingerprint is known.

    Attributes:
        height, width: of its pictures, in pixels.
    """

    fingerprint: str
    samples: int
    height: int
    width: int


def known_split(work_dir: Path, source_key: str, split: str) -> KnownSplit | None:
    """The split that a source (``Source.key``) was decoded to; None where it was not, or the copy is gone."""
    try:
        note = json.loads((work_dir / SOURCES / f"{source_key}.{split}.json").read_text())
        folder = folder_of_copy(work_dir, note["fingerprint"])
        samples, height, width, _ = json.loads((folder / META).read_text())["shape"]
    except (OSError, ValueError, KeyError):
        return None
    return KnownSplit(str(note["fingerprint"]), samples, height, width)


def folder_of_copy(work_dir: Path, fingerprint: str) -> Path:
    """Folder of a decoded copy, or else of the list of pictures that stay files."""
    folder = work_dir / fingerprint
    return folder if folder.is_dir() else work_dir / f"{fingerprint}{FILES_SUFFIX}"


def publish_lock(work_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock held while a copy gets its name, is found again or is removed."""
    (work_dir / SOURCES).mkdir(parents=True, exist_ok=True)
    return alone(work_dir / SOURCES / "publish.lock", never, "works on the decoded datasets")


def touch(folder: Path) -> None:
    """Note that a copy is used now. Of a file system that cannot be written it stays unknown."""
    with contextlib.suppress(OSError):
        os.utime(folder / META)


def copies(work_dir: Path) -> list[Copy]:
    """List every copy, the least recently used first; those that are removed meanwhile are left out."""
    found = []
    for folder in work_dir.iterdir() if work_dir.is_dir() else ():
        if folder.name == SOURCES or folder.name.startswith("."):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            meta = json.loads((folder / META).read_text())
            size_bytes = sum(path.stat().st_size for path in folder.iterdir())
            found.append(
                Copy(
                    name=folder.name,
                    fingerprint=_fingerprint(folder.name),
                    split=str(meta["split"]),
                    samples=int(meta["shape"][0]),
                    size_bytes=size_bytes,
                    used_at=_used_at(folder),
                )
            )
    return sorted(found, key=lambda copy: (copy.used_at, copy.name))


def excess(found: Sequence[Copy], max_bytes: int, in_use: Collection[str], now: datetime) -> list[Copy]:
    """Choose the copies to remove for all to fit into a quota: the least recently used first, none in use.

    Args:
        found: as ``copies`` gives them.
        in_use: fingerprints that a live job needs.
    """
    total = sum(copy.size_bytes for copy in found)
    going = []
    for copy in found:
        if total <= max_bytes:
            break
        if copy.fingerprint not in in_use and copy.used_at < now - IDLE:
            going.append(copy)
            total -= copy.size_bytes
    return going


def fingerprints_of(work_dir: Path, spec: DatasetKind, key: str | None) -> set[str]:
    """Fingerprints that this description was decoded to, and no other description.

    Args:
        key: of the source as it is now (``Source.key``), by which earlier versions alone have noted it; None if it
            cannot be examined any more.
    """
    wanted = spec.content_description()
    ours, others = set[str](), set[str]()
    for path, note in _notes(work_dir):
        is_ours = note["spec"] == wanted if "spec" in note else key is not None and path.name.startswith(f"{key}.")
        (ours if is_ours else others).add(note["fingerprint"])
    return ours - others


def splits_of(work_dir: Path, spec: DatasetKind) -> dict[str, str]:
    """Fingerprints of the copies that a description was decoded to, by split; of several, that which was opened last.

    Files that have changed since are another copy, once a job has used them. Splits that were held out are not found.
    """
    wanted = spec.content_description()
    ours = {note["fingerprint"] for _, note in _notes(work_dir) if note.get("spec") == wanted}
    # In the order of their last use.
    return {copy.split: copy.fingerprint for copy in copies(work_dir) if copy.fingerprint in ours}


def remove(work_dir: Path, name: str, unused_since: datetime) -> int:
    """Remove a copy unless it was used at that time or later; returns the bytes that are free again."""
    folder = work_dir / name
    doomed = work_dir / f"{_DELETED_PREFIX}{name}-{uuid.uuid4().hex}"
    if not folder.is_dir():
        return 0
    with publish_lock(work_dir):
        try:
            if _used_at(folder) >= unused_since:
                return 0
            size_bytes = sum(path.stat().st_size for path in folder.iterdir())
            folder.rename(doomed)
        except FileNotFoundError:
            return 0
        fingerprint = _fingerprint(name)
        if not any((work_dir / other).is_dir() for other in (fingerprint, f"{fingerprint}{FILES_SUFFIX}")):
            _remove_rows_of(work_dir, fingerprint)
            for path, note in _notes(work_dir):
                if note["fingerprint"] == fingerprint:
                    path.unlink(missing_ok=True)
                    path.with_suffix(REPORT_SUFFIX).unlink(missing_ok=True)
        sync_folder(work_dir)
    shutil.rmtree(doomed, ignore_errors=True)
    return size_bytes


def sweep(work_dir: Path) -> int:
    """Remove what killed removals and decodings have left, and old indexes of shards; returns how many."""
    swept = remove_unused(work_dir)
    for folder in work_dir.iterdir() if work_dir.is_dir() else ():
        if folder.name.startswith(_DELETED_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
        elif folder.name.startswith(PARTIAL_PREFIX):
            lock = work_dir / SOURCES / f"{folder.name.removeprefix(PARTIAL_PREFIX)}.lock"
            # The process that decodes it has this lock.
            with contextlib.suppress(OSError), lock.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
    return swept


def _fingerprint(name: str) -> str:
    return name.removesuffix(FILES_SUFFIX).removesuffix(ROWS_SUFFIX)


def _remove_rows_of(work_dir: Path, fingerprint: str) -> None:
    """Remove the splits that were cut from one that is gone; a job that needs one makes both anew."""
    for folder in work_dir.glob(f"*{ROWS_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads((folder / META).read_text()).get("rows_of") == fingerprint:
                shutil.rmtree(folder, ignore_errors=True)


def _used_at(folder: Path) -> datetime:
    """Time of the last opening; the epoch for a copy without its description."""
    try:
        return datetime.fromtimestamp((folder / META).stat().st_mtime, UTC)
    except FileNotFoundError:
        folder.stat()
        return datetime.fromtimestamp(0, UTC)


def _notes(work_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Notes of the sources: fingerprint, and the description unless an earlier version wrote the note."""
    for path in (work_dir / SOURCES).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(path.read_text())
            if isinstance(note, dict) and isinstance(note.get("fingerprint"), str):
                yield path, note
