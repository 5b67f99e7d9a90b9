"""Previews of deletions: the bytes that one would free, or why it is refused now. Nothing is changed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.deletions.deletion import check_deletable, check_job, check_teacher, copies_of, removable_copies
from service.db.deletions.student_files import check_student_file
from service.db.deletions.usage import size_of
from service.db.models import DatasetRecord, JobRecord, RunRecord, TeacherRecord
from service.db.queries.api_queries import DATASET
from service.db.transitions import existing
from service.errors import Conflict
from service.settings import Settings


@dataclass(frozen=True)
class DeletionPreview:
    """Bytes of the files that would go, 0 while it is refused, and why it is; None if it is not."""

    frees_bytes: int
    refused: str | None = None


class DeletionPreviews:
    """Looks at what ``Deletion`` would do, by the same checks.

    Args:
        database: migrated to head.
        settings: where the files are.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def job(self, job_id: str) -> DeletionPreview:
        """Of a job, with the files of all its runs. Raises NotFound."""

        def folders(session: Session) -> list[Path]:
            check_job(session, existing(session, JobRecord, job_id))
            return [self._settings.jobs_dir / job_id]

        return self._look(folders)

    def run(self, run_id: str) -> DeletionPreview:
        """Of one run. Raises NotFound."""

        def folders(session: Session) -> list[Path]:
            run = existing(session, RunRecord, run_id)
            check_deletable(session, session.get_one(JobRecord, run.job_id), [run_id])
            return [self._settings.jobs_dir / run.job_id / run_id]

        return self._look(folders)

    def dataset(self, dataset_id: str) -> DeletionPreview:
        """Of a name of a dataset, with the decoded copies that nothing else has. Raises NotFound."""
        with self._database.read() as session:
            spec = DATASET.validate_python(existing(session, DatasetRecord, dataset_id).spec)
        copies = copies_of(self._settings, spec)

        def folders(session: Session) -> list[Path]:
            dataset = existing(session, DatasetRecord, dataset_id)
            return [self._settings.datasets_dir / copy.name for copy in removable_copies(session, dataset, copies)]

        return self._look(folders)

    def teacher(self, teacher_id: str) -> DeletionPreview:
        """Of a teacher, with its file unless another one has the same bytes. Raises NotFound."""

        def files(session: Session) -> list[Path]:
            sha256 = check_teacher(session, teacher_id).sha256
            is_shared = (session.scalar(select(func.count()).where(TeacherRecord.sha256 == sha256)) or 0) > 1
            return [] if is_shared else [self._settings.teacher_path(sha256)]

        return self._look(files)

    def student_file(self, id: str) -> DeletionPreview:
        """Of an uploaded file of a student. Raises NotFound."""
        return self._look(lambda session: [self._settings.student_file_path(check_student_file(session, id).sha256)])

    def _look(self, choose: Callable[[Session], Iterable[Path]]) -> DeletionPreview:
        try:
            with self._database.read() as session:
                paths = choose(session)
        except Conflict as error:
            return DeletionPreview(0, str(error))
        # Outside of the transaction: it looks at every file.
        return DeletionPreview(sum(map(size_of, paths)))
