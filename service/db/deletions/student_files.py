"""Uploaded files of students: adding and deleting them, and the live jobs that need one."""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.deletions.deletion import refuse_in_use
from service.db.deletions.first_weights import uploads_in_use
from service.db.deletions.tombstones import Tombstones, bury, has_student_file
from service.db.student_file_record import StudentFileRecord
from service.db.transitions import existing
from service.errors import Conflict
from service.settings import Settings


class StudentFiles:
    """Files of students below the data directory, and their rows.

    Args:
        database: migrated to head.
        settings: where the files are.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def add(self, file: StudentFileRecord, place_file: Callable[[Path], None]) -> tuple[StudentFileRecord, bool]:
        """Register a file, or find the one with the same bytes.

        Args:
            place_file: puts the file at a path, replacing an equal one; called inside the transaction, so that no
                deletion of the same bytes can come between.

        Returns:
            The row that counts, and whether it is new.

        Raises:
            Conflict: a file with the same bytes is of another kind.
        """
        with self._database.write() as session:
            known = session.scalars(
                select(StudentFileRecord).where(StudentFileRecord.sha256 == file.sha256)
            ).one_or_none()
            if known is not None and known.kind != file.kind:
                raise Conflict(
                    f"the same bytes are student file {known.id}, of the kind {known.kind} and not {file.kind}: delete "
                    "that first"
                )
            place_file(self._settings.student_file_path(file.sha256))
            if known is not None:
                return known, False
            session.add(file)
            return file, True

    def has(self, sha256: str) -> bool:
        """Whether a file with this digest is kept."""
        with self._database.read() as session:
            return has_student_file(session, sha256)

    def delete(self, id: str) -> None:
        """Delete a file.

        Raises:
            NotFound.
            Conflict: a live job needs it.
        """
        with self._database.write() as session:
            file = check_student_file(session, id)
            session.delete(file)
            path = f"student-files/{file.sha256}.safetensors"
            bury(session, [path])
        Tombstones(self._database, self._settings).remove(path)


def check_student_file(session: Session, id: str) -> StudentFileRecord:
    """The file, which may be deleted. Raises NotFound; Conflict: a live job needs it."""
    file = existing(session, StudentFileRecord, id)
    refuse_in_use(f"student file {id}", uploads_in_use(session).get(id, ()))
    return file
