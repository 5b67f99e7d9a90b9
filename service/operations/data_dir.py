"""Data directory: its lock, an unfinished restore, files that the database does not know.

A process of the service locks the directory itself, shared with the others; a restore has it alone. What the database
names, and what it does not, is found by ``known_files``, for a start as for a backup.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import text

from service.db.database import Database, upgrade_to_head
from service.errors import DataDirBusy
from service.operations.copies import check_copy, remember_place
from service.private import keep_private
from service.settings import Settings
from workers.texts import some_of

# Below the data directory while a restore is under way, or was killed.
STAGING = ".restoring"
_NAMED_MAX = 5
log = structlog.get_logger("retort.data")


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The migrated database of a process of the service, which keeps restores away until it ends.

    Raises:
        DataDirBusy: a restore is under way or was not finished.
        DamagedCopy: it was copied while a service was at work, and that has gone wrong.
        NewerDatabase: another version's tables.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached or migrated.
    """
    keep_private(settings.data_dir)
    settings.make_folders()
    with in_use(settings.data_dir):
        check_copy(settings)
        upgrade_to_head(settings.database)
        remember_place(settings)
        with closing(Database(settings.database)) as database:
            if unknown := unknown_files(settings, database):
                log.warning("files that the database does not know", reason=unknown)
            yield database


@contextmanager
def in_use(data_dir: Path) -> Iterator[None]:
    """Keep restores away from an existing data directory. Raises DataDirBusy."""
    # Where a file system has no locks a restore cannot see us, which is no reason not to work.
    with locked(data_dir, fcntl.LOCK_SH, f"a restore into {data_dir} is under way: wait for its end", may_lack=True):
        if (data_dir / STAGING).exists():
            raise DataDirBusy(
                f"a restore into {data_dir} was not finished: give the same `retort restore DIR` again (or, if there "
                f"was nothing before, remove {data_dir / STAGING} and start anew)"
            )
        yield


@contextmanager
def locked(folder: Path, kind: int, refusal: str, *, may_lack: bool = False) -> Iterator[None]:
    """Holds a lock of a folder itself, until the end of this process at the latest.

    Args:
        kind: ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``.
        refusal: the message of DataDirBusy.
        may_lack: whether to go on where the file system has no locks.

    Raises:
        DataDirBusy: another process holds a lock that excludes this one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirBusy(refusal) from None
        except OSError:
            if not may_lack:
                raise
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class KnownFiles:
    """Files below the data directory that a database knows.

    Attributes:
        attempts: the newest attempt of each run, by job and run.
        artifacts: sha256 by path, relative to the data directory.
        teachers: sha256 of each teacher's file.
        student_files: sha256 of each uploaded file of a student.
    """

    attempts: Mapping[str, Mapping[str, int]]
    artifacts: Mapping[str, str]
    teachers: frozenset[str]
    student_files: frozenset[str]

    @property
    def uploads(self) -> dict[str, str]:
        """sha256 by path of all uploaded files, relative to the data directory."""
        teachers = {f"teachers/{sha256}.onnx": sha256 for sha256 in self.teachers}
        return teachers | {f"student-files/{sha256}.safetensors": sha256 for sha256 in self.student_files}


def known_files(query: Callable[[str], Iterable[Any]]) -> KnownFiles:
    """Read the files that a database knows, of this version or an earlier one.

    Args:
        query: rows of an SQL statement; all within one transaction.
    """
    attempts: dict[str, dict[str, int]] = {job: {} for (job,) in query("SELECT id FROM jobs")}
    for run, job, attempt in query("SELECT id, job_id, attempt FROM runs"):
        attempts.setdefault(job, {})[run] = attempt
    artifacts = dict(tuple(row) for row in query("SELECT path, sha256 FROM artifacts"))
    teachers = frozenset(sha for (sha,) in query("SELECT sha256 FROM teachers"))
    return KnownFiles(attempts, artifacts, teachers, frozenset(_student_files(query)))


def _student_files(query: Callable[[str], Iterable[Any]]) -> Iterator[str]:
    """sha256 of each uploaded file of a student; none in a database before migration 0016."""
    [(version,)] = query("SELECT version_num FROM alembic_version")
    if str(version) >= "0016":
        yield from (sha for (sha,) in query("SELECT sha256 FROM student_files"))


def unknown_files(settings: Settings, database: Database) -> str | None:
    """Describe jobs, attempts and uploads whose files are there, and which the database does not know.

    It is then most likely older than they are: its write-ahead log was removed, or a copy was put in its place.
    """
    # The files first: what another process makes meanwhile is in the database before it has a file.
    attempts = list(_attempts(settings.jobs_dir))
    files = (*settings.teachers_dir.glob("*.onnx"), *settings.student_files_dir.glob("*.safetensors"))
    uploads = {f"{path.parent.name}/{path.name}" for path in files}
    with database.read() as session:
        known = known_files(lambda statement: session.execute(text(statement)))
        # Their rows were deleted, and they are removed next.
        deleted = set(session.scalars(text("SELECT path FROM deleted_paths")))
    found = sorted(
        {
            f"jobs/{job}" if job not in known.attempts else f"jobs/{job}/{run}/a{attempt}"
            for job, run, attempt in attempts
            if attempt > known.attempts.get(job, {}).get(run, 0)
            and deleted.isdisjoint((f"jobs/{job}", f"jobs/{job}/{run}"))
        }
    )
    why = "it is older than these files, or another one"
    if not found:
        why = f"an upload that was killed in its last moment leaves such a file, or {why}"
    found += [path for path in sorted(uploads - known.uploads.keys()) if path not in deleted]
    if not found:
        return None
    return (
        f"{settings.data_dir.resolve()} has {some_of(found, _NAMED_MAX)}, which the database does not know: "
        f"{why}. Stop the service and `retort restore` the newest backup, or, if they are not wanted, move them away"
    )


def _attempts(jobs_dir: Path) -> Iterator[tuple[str, str, int]]:
    """Job, run and number of every attempt that has a folder."""
    for job in _names(jobs_dir):
        for run in _names(jobs_dir / job):
            for attempt in _names(jobs_dir / job / run):
                if attempt.startswith("a") and attempt[1:].isdecimal():
                    yield job, run, int(attempt[1:])


def _names(folder: Path) -> list[str]:
    """Names of the folders in a folder; none where it is gone meanwhile."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir()]
    return []
