"""Backup of what a service keeps: database, teachers, the jobs' folders, imported caches; others if asked for.

The database comes first, and then the files that it names: artifacts are never changed, so whatever the copy of the
database knows to have succeeded is there. Files of an attempt that it knows may be newer, which is what an engine finds
after a kill, too. The folder has another name until it is whole.
"""

import fcntl
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text

from service.db.database import Database
from service.errors import BackupFailed
from service.operations.backup_format import MANIFEST, PARTIAL, POSTGRES_FILE, SQLITE_FILE, TOP_LEVEL, Manifest
from service.operations.data_dir import KnownFiles, in_use, known_files, locked
from service.operations.postgres_programs import run_postgres
from service.operations.private_files import (
    FileEntry,
    copy_file,
    create_private,
    entry_of,
    files_below,
    make_folder,
    nearest_folder,
    sync_folders,
    write_private,
)
from service.settings import Settings
from service.version import service_version
from store import CacheNotFound, Catalog, StoreError
from workers.files import disk_full_is_disk_low, sync, sync_folder
from workers.run_files import CHECKPOINT
from workers.teacher.imports.imported_specs import is_imported

_LOOKS = 5  # for a checkpoint that is replaced while it is looked for
_REVISION = "SELECT version_num FROM alembic_version"


def backup(settings: Settings, target: Path, *, with_caches: bool = False, accept_missing: bool = False) -> Manifest:
    """Make a backup of a service, which may be at work.

    Args:
        target: a folder that is not there yet; until the backup is whole it is called ``<target>.partial``.
        with_caches: all complete caches, too; without it those alone whose logits were imported, for no teacher of
            the service computes these again.
        accept_missing: make it though files are gone or damaged that the database names.

    Raises:
        BackupFailed: the target exists, there is no database, it is damaged or cannot be dumped, or files are missing.
        DataDirBusy: a restore is under way or unfinished, or another backup writes there.
        NewerDatabase: another version's tables.
        DiskLow: no room for it.
    """
    target = target.resolve()
    partial = target.with_name(target.name + PARTIAL)
    if not Database(settings.database).exists():
        raise BackupFailed(f"there is no database at {settings.database}: name the service's folder with --data-dir")
    if not settings.data_dir.is_dir():
        # Of a server the database may well be there.
        raise BackupFailed(f"there is no folder {settings.data_dir.resolve()}: name the service's with --data-dir")
    with in_use(settings.data_dir), disk_full_is_disk_low(nearest_folder(target), f"the backup {target}"):
        make_folder(partial)
        with locked(partial, fcntl.LOCK_EX, f"another backup writes to {partial}: wait for its end"):
            if target.exists():
                raise BackupFailed(f"{target} exists already: name a folder that does not")
            _clear(partial)
            try:
                manifest = _fill(settings, partial, with_caches=with_caches, accept_missing=accept_missing)
                write_private(partial / MANIFEST, manifest.model_dump_json(indent=1))
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            sync_folder(target.parent)
    return manifest


def _fill(settings: Settings, folder: Path, *, with_caches: bool, accept_missing: bool) -> Manifest:
    """Copy everything durably, and return the manifest to write last."""
    made_at = datetime.now(UTC)
    with closing(Database(settings.database)) as database:
        if not database.check_version():
            raise BackupFailed(
                f"{database.url} has no tables yet, so there is nothing to back up: start the service once"
            )
        name = SQLITE_FILE if database.is_sqlite else POSTGRES_FILE
        snapshot = _snapshot_sqlite if database.is_sqlite else _snapshot_postgres
        revision, known = snapshot(database, folder / name)
    files = {name: entry_of(folder / name)}
    _copy_known(settings, known, folder, files)
    missing = [path for path, sha256 in known.artifacts.items() if not _is_there(files, path, sha256)]
    missing += [path for path, sha256 in known.uploads.items() if not _is_there(files, path, sha256)]
    if missing and not accept_missing:
        raise BackupFailed(
            f"{len(missing)} files that the database names are gone from {settings.data_dir.resolve()}, or damaged: "
            f"{', '.join(sorted(missing)[:3])}. A job or teacher may have been deleted just now: try again, and if "
            "they stay missing, --accept-missing makes a backup without them"
        )
    imported = _copy_caches(Catalog(settings.caches_dir), folder / "caches", files, with_computed=with_caches)
    sync_folders(folder)
    return Manifest(
        made_at=made_at,
        retort=service_version(),
        database="sqlite" if name == SQLITE_FILE else "postgresql",
        revision=revision,
        jobs=len(known.attempts),
        imported_caches=imported,
        missing=sorted(missing),
        files=files,
    )


def _snapshot_sqlite(database: Database, target: Path) -> tuple[str, KnownFiles]:
    """Copy the database as it is at one moment, while others read and write it."""
    source = Path(database.url.database or "").resolve()
    create_private(target).close()
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)
        # One file, without a log beside it.
        writing.execute("PRAGMA journal_mode=DELETE")
        problem = writing.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise BackupFailed(f"the database {source} is damaged ({problem}): restore an earlier backup")
        revision = str(writing.execute(_REVISION).fetchone()[0])
        known = known_files(writing.execute)
    with target.open("rb+") as file:
        sync(file)
    return revision, known


def _snapshot_postgres(database: Database, target: Path) -> tuple[str, KnownFiles]:
    """Dump the database as it is at one moment: that of a transaction, which pg_dump takes part in."""
    with database.read() as session:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        # The dump may take longer than a transaction may be idle.
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        snapshot = session.scalar(text("SELECT pg_export_snapshot()"))
        revision = session.execute(text(_REVISION)).scalar_one()
        known = known_files(lambda statement: session.execute(text(statement)))
        with create_private(target) as file:
            options = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}")
            run_postgres("pg_dump", database.url, *options, stdout=file.fileno())
            sync(file)
    return revision, known


def _copy_known(settings: Settings, known: KnownFiles, folder: Path, files: dict[str, FileEntry]) -> None:
    """Copy the uploads and the attempts of the database, and add them to ``files``; what is gone is left out.

    A run that trains meanwhile may replace its checkpoint by one of a later attempt, so these are copied first; of one
    that is gone by then the later one takes the place.
    """
    sources = [(settings.data_dir.resolve() / path, path) for path in sorted(known.uploads)]
    for job, runs in known.attempts.items():
        for run, newest in runs.items():
            for attempt in range(1, newest + 1):
                top = settings.jobs_dir / job / run / f"a{attempt}"
                sources += [
                    (path, f"jobs/{job}/{run}/a{attempt}/{path.relative_to(top).as_posix()}")
                    for path in files_below(top)
                ]
    for source, name in sorted(sources, key=lambda each: each[0].name != CHECKPOINT):
        try:
            files[name] = copy_file(source, folder / name)
        except FileNotFoundError:
            if source.name == CHECKPOINT:
                _copy_later_checkpoint(source, folder, name, files)


def _copy_later_checkpoint(gone: Path, folder: Path, name: str, files: dict[str, FileEntry]) -> None:
    """Copy the farthest checkpoint that the run has by now, in the place of one that is gone; none has none."""
    for _ in range(_LOOKS):
        attempts = [path for path in gone.parents[1].glob("a*") if path.name[1:].isdecimal()]
        for attempt in sorted(attempts, key=lambda path: -int(path.name[1:])):
            with suppress(FileNotFoundError):
                files[name] = copy_file(attempt / CHECKPOINT, folder / name)
                return


def _copy_caches(catalog: Catalog, folder: Path, files: dict[str, FileEntry], *, with_computed: bool) -> int:
    """Copy the complete caches; one that is deleted meanwhile is left out.

    Args:
        with_computed: those that a teacher can compute again, too; else imported ones alone.

    Returns:
        How many imported ones were copied.
    """
    copies, imported = Catalog(folder), 0
    for entry in catalog.list():
        was_imported = is_imported(entry.spec)
        if entry.state != "complete" or not (with_computed or was_imported):
            continue
        group = catalog.root / entry.key
        copied: dict[str, FileEntry] = {}
        with suppress(CacheNotFound, FileNotFoundError), catalog.hold(entry.key):
            for path in files_below(group):
                name = path.relative_to(group).as_posix()
                copied[f"caches/{entry.key}/{name}"] = copy_file(path, folder / entry.key / name)
        try:
            is_whole = copies.get(entry.key).state == "complete"
        except StoreError:
            is_whole = False
        if is_whole:
            files |= copied
            imported += was_imported
        else:
            shutil.rmtree(folder / entry.key, ignore_errors=True)
    return imported


def _is_there(files: Mapping[str, FileEntry], path: str, sha256: str) -> bool:
    return path in files and files[path].sha256 == sha256


def _clear(partial: Path) -> None:
    """Remove what a killed backup has left. Raises BackupFailed for anything else."""
    for path in partial.iterdir():
        if not (path.name in TOP_LEVEL or path.name.startswith((MANIFEST, SQLITE_FILE))):
            raise BackupFailed(f"{path} is no part of a backup: move {partial} away, or name another folder")
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
