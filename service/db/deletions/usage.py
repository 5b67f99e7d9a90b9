"""Disk usage: bytes of files and folders, and of all that the service keeps."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from service.db.database import Database
from service.db.models import JobRecord
from service.db.states import TERMINAL
from service.settings import Settings


@dataclass(frozen=True)
class Usage:
    """Usage of the disk by kind, in bytes, and numbers of jobs."""

    jobs: int
    ended_jobs: int
    pinned_jobs: int
    jobs_bytes: int
    decoded_bytes: int
    caches_bytes: int
    teachers_bytes: int
    student_files_bytes: int
    database_bytes: int
    database_free_bytes: int


def usage(settings: Settings, database: Database) -> Usage:
    """The usage at this moment; takes as long as looking at every file's size."""
    with database.read() as session:
        counts = session.execute(select(JobRecord.state, func.count()).group_by(JobRecord.state)).all()
        pinned = select(func.count()).select_from(JobRecord).where(JobRecord.pinned_at.is_not(None))
        pinned_jobs = session.scalar(pinned) or 0
    size_bytes, free_bytes = database.size_bytes()
    return Usage(
        jobs=sum(count for _, count in counts),
        ended_jobs=sum(count for state, count in counts if state in TERMINAL),
        pinned_jobs=pinned_jobs,
        jobs_bytes=size_of(settings.jobs_dir),
        decoded_bytes=size_of(settings.datasets_dir),
        caches_bytes=size_of(settings.caches_dir),
        teachers_bytes=size_of(settings.teachers_dir),
        student_files_bytes=size_of(settings.student_files_dir),
        database_bytes=size_bytes,
        database_free_bytes=free_bytes,
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; of what is gone meanwhile, none."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(folder, name).lstat().st_size
    return total
