"""Tombstones: files and folders whose rows are deleted, and their removal.

A tombstone (``DeletedPathRecord``) is written in the transaction that deletes the rows. Its file is removed right
after; what a kill leaves is found by ``sweep``, which the engine calls when it starts and now and then. A file without
a tombstone is never touched: files that the database does not know are the sign of a database that is older than they
are, see ``data_dir.unknown_files``.
"""

import shutil
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.deletions.usage import size_of
from service.db.models import DeletedPathRecord, TeacherRecord, utc_now
from service.db.student_file_record import StudentFileRecord
from service.settings import Settings
from workers.data.preparation import decoded

# A process that was just being ended may make its folder once more; it has died by then.
TOMBSTONE_KEPT = timedelta(hours=1)
_FOLDERS = frozenset({"jobs", "teachers", "student-files", "datasets"})
log = structlog.get_logger("retort.deletion")


class Tombstones:
    """Removes what tombstones name, in any process of the service.

    Args:
        database: migrated to head.
        settings: where the files are.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._data_dir = settings.data_dir.resolve()

    def sweep(self) -> int:
        """Remove what deletions that were killed have left; returns how many bytes that were."""
        with self._database.read() as session:
            paths = session.scalars(select(DeletedPathRecord.path).order_by(DeletedPathRecord.path)).all()
        freed = 0
        for path in paths:
            try:
                freed += self.remove(path)
            except OSError as error:
                # The others are not to wait for this one.
                log.warning("what was deleted cannot be removed", path=path, error=str(error))
        return freed

    def remove(self, path: str) -> int:
        """Remove what a tombstone names, if there is one; returns the bytes that are free again."""
        kind, _, name = path.partition("/")
        if kind not in _FOLDERS or not name or ".." in path.split("/"):
            log.warning("a tombstone that names no file of ours", path=path)
            return 0
        with self._database.read() as session:
            tombstone = session.get(DeletedPathRecord, path)
        if tombstone is None:
            return 0
        target = self._data_dir / path
        if kind in {"teachers", "student-files"}:
            has_file = has_teacher if kind == "teachers" else has_student_file
            return self._remove_upload(path, target, has_file)
        if kind == "datasets":
            freed = decoded.remove(self._settings.datasets_dir, name, tombstone.deleted_at)
            self._forget(path)
            return freed
        freed = size_of(target)
        shutil.rmtree(target, ignore_errors=True)
        if not target.exists() and tombstone.deleted_at < utc_now() - TOMBSTONE_KEPT:
            self._forget(path)
        return freed

    def _remove_upload(self, path: str, target: Path, has_file: Callable[[Session, str], bool]) -> int:
        """In a transaction: the same bytes may be uploaded at the same moment."""
        freed = size_of(target)
        with self._database.write() as session:
            tombstone = session.get(DeletedPathRecord, path)
            if tombstone is None:
                return 0
            session.delete(tombstone)
            if has_file(session, target.stem):
                return 0
            target.unlink(missing_ok=True)
        return freed

    def _forget(self, path: str) -> None:
        with self._database.write() as session:
            session.execute(delete(DeletedPathRecord).where(DeletedPathRecord.path == path))


def bury(session: Session, paths: Iterable[str]) -> None:
    """Write tombstones for these paths, relative to the data directory."""
    for path in paths:
        session.merge(DeletedPathRecord(path=path, deleted_at=utc_now()))


def has_student_file(session: Session, sha256: str) -> bool:
    """Whether an uploaded file of a student has this digest."""
    return session.scalar(select(StudentFileRecord.id).where(StudentFileRecord.sha256 == sha256)) is not None


def has_teacher(session: Session, sha256: str) -> bool:
    """Whether a teacher has a file with this digest."""
    same_bytes = select(func.count()).where(TeacherRecord.sha256 == sha256)
    return bool(session.scalar(same_bytes))
