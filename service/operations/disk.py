"""Disk of a service: whether there is room, whether it can be written, and what can be freed by which command.

``fault`` is a look that costs some system calls. ``DiskWatch`` is the engine's memory of it: once something is wrong, a
margin beyond the reserve has to be free, and a file has to be written, before work goes on. Each place where files are
kept may lie on a disk of its own.
"""

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from service.db.database import Database
from service.db.queries.cache_use import caches_of_live_jobs
from service.settings import MiB, Settings
from service.units import size
from store import Catalog

PROBE_S = 30.0
PROBE_BYTES = 4096
FILES_MIN = 256
# With less than this a disk is full, whatever the reserve.
FULL_BYTES = MiB
MARGIN_MIN_BYTES = 16 * MiB
FREEABLE_S = 60.0
GC = "`retort gc --dry-run`"
# Of these room can be made.
_ROOM = frozenset({"ENOSPC", "EDQUOT"})


@dataclass(frozen=True)
class Fault:
    """Fault of a disk: why it is no place to work on.

    Attributes:
        code: the name of the system's error, ``ENOSPC`` say.
        message: the reason, and the next step.
    """

    code: str
    message: str


def places(settings: Settings, url: URL) -> list[Path]:
    """The folders that a service writes to, one for each disk; ``url`` is its database's."""
    data_dir = settings.data_dir.resolve()
    folders = [data_dir, settings.caches_dir, settings.jobs_dir, settings.datasets_dir, settings.teachers_dir]
    folders.append(settings.student_files_dir)
    if url.get_backend_name() == "sqlite" and url.database:
        folders.append(Path(url.database).parent)
    found: dict[int, Path] = {}
    for folder in folders:
        with suppress(OSError):
            found.setdefault(folder.stat().st_dev, folder)
    return list(found.values()) or [data_dir]


def fault(folders: Sequence[Path], floor_bytes: int, margin_bytes: int = 0) -> Fault | None:
    """The reason why nothing new is to be begun there; None if all is well, as far as is known without writing.

    Args:
        floor_bytes: that have to stay free in each; ``FULL_BYTES`` at least.
        margin_bytes: that have to be free beyond that.
    """
    for folder in folders:
        try:
            found = os.statvfs(folder)
        except OSError as error:
            return _of_error(folder, error)
        if found.f_flag & os.ST_RDONLY:
            return _of_error(folder, OSError(errno.EROFS, os.strerror(errno.EROFS)))
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < max(floor_bytes, FULL_BYTES) + margin_bytes:
            reserve = f"{size(floor_bytes)} stay in reserve (RETORT_DISK_FLOOR_BYTES)"
            return Fault("ENOSPC", f"{size(free_bytes)} are free for {_name(folder)}, {reserve}")
        if found.f_files and found.f_favail < FILES_MIN:
            return Fault("ENOSPC", f"only {found.f_favail} more files can be made in {_name(folder)}: remove some")
    return None


def margin_bytes(floor_bytes: int) -> int:
    """Bytes that have to be free beyond the reserve before work goes on, so that it does not stop again at once."""
    return max(floor_bytes // 8, MARGIN_MIN_BYTES)


def write_fault(folders: Sequence[Path]) -> Fault | None:
    """Reason why a file cannot be written there; None if one was, with its content on the disk, and removed again."""
    for folder in folders:
        try:
            with tempfile.NamedTemporaryFile(prefix=".retort-probe-", dir=folder) as file:
                file.write(b"\0" * PROBE_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return _of_error(folder, error)
    return None


def _name(folder: Path) -> str:
    """Name of a folder for anybody to read, with or without a key: not where it is."""
    return f"the folder {folder.name!r}"


def _of_error(folder: Path, error: OSError) -> Fault:
    code = errno.errorcode.get(error.errno or errno.EIO, "EIO")
    advice = {
        "ENOSPC": "free some space",
        "EDQUOT": "free some space of this user's, or raise the quota",
        "EROFS": "mount it writable again (the kernel's log says why it is not)",
        "EIO": "look at the kernel's log, and replace the disk or mend its file system",
    }.get(code, "mount it again, or give it back to this user")
    return Fault(code, f"{_name(folder)} cannot be written: {error.strerror}: {advice}")


class Freeable:
    """Sentence on which of a service's files can be freed, by which command; looked up once a minute at most.

    Args:
        settings: of the service.
        database: that says which jobs have not ended.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._lock = threading.Lock()
        self._sentence = ""
        self._looked = -FREEABLE_S

    def sentence(self) -> str:
        """``retort cache delete`` with the caches that nobody needs, ``retort gc`` with the rests of ended jobs."""
        with self._lock:
            if time.monotonic() - self._looked >= FREEABLE_S:
                # A database, or a disk, that cannot be read is reported elsewhere.
                with suppress(Exception):
                    self._sentence = self._look()
                self._looked = time.monotonic()
            return self._sentence

    def _look(self) -> str:
        with self._database.read() as session:
            live = caches_of_live_jobs(session)
        in_use = {key for keys in live.values() for key in keys}
        count, cache_bytes = Catalog(self._settings.caches_dir).evictable(in_use)
        checkpoints = [path for path in self._settings.jobs_dir.glob("*/*/a*/*.pt") if path.parts[-4] not in live]
        command = "`retort cache delete KEY` can free"
        what = f"in {count} caches that no job needs and nobody has pinned (`retort cache list`)"
        sentences = [f"{command} {size(cache_bytes)} {what}"] if count else ["no cache is there that could go"]
        if checkpoints:
            rest_bytes = sum(path.stat().st_size for path in checkpoints)
            sentences.append(f"{size(rest_bytes)} are checkpoints of jobs that have ended ({GC} lists what can go)")
        else:
            sentences.append(f"{GC} lists what else can go")
        return "; ".join(sentences)


class DiskWatch:
    """Watch over the disk of an engine.

    Args:
        folders: see ``places``.
        floor_bytes: ``RETORT_DISK_FLOOR_BYTES``.
        freeable: what can be freed, in a sentence.

    Attributes:
        fault: why nothing new is begun; None if all is well. Its message stays the same while its code does.
    """

    def __init__(self, folders: Sequence[Path], floor_bytes: int, freeable: Callable[[], str]) -> None:
        self.fault: Fault | None = None
        self._folders, self._floor_bytes, self._freeable = folders, floor_bytes, freeable
        self._probe_at = 0.0

    def look(self, *, now: bool = False) -> Fault | None:
        """The fault as of this moment: before anything is claimed or begun. It costs some system calls.

        Args:
            now: look, and write a file, at once: work has ended because of the disk.
        """
        at = time.monotonic()
        found = fault(self._folders, self._floor_bytes, margin_bytes(self._floor_bytes) if self.fault else 0)
        if found is None and (now or self.fault is not None or at >= self._probe_at):
            # Neither a quota nor a disk that fails shows in the figures.
            found = write_fault(self._folders)
            self._probe_at = at + PROBE_S
        self._take(found)
        return self.fault

    def _take(self, found: Fault | None) -> None:
        if found is None:
            self.fault = None
        elif self.fault is None or self.fault.code != found.code:
            if found.code in _ROOM:
                wanted = size(self._floor_bytes + margin_bytes(self._floor_bytes))
                then = f"work goes on by itself once {wanted} are free ({self._freeable()})"
            else:
                then = "work goes on by itself after that"
            self.fault = Fault(found.code, f"{found.message}; {then}")

    def message_of(self, code: str, message: str) -> str:
        """Message of work that has ended because of the disk: its own words, and what is known of the disk.

        Args:
            code: the name of the error that it has ended with.
            message: its own words.
        """
        if self.fault is not None:
            return f"{message}. {self.fault.message}"
        freeable = f" ({self._freeable()})" if code in _ROOM else ""
        return f"{message}. It is tried again by itself, later each time{freeable}"
