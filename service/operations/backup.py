"""Backup and restore of what a service keeps: database, teachers, the jobs' folders; caches if they are asked for.

A backup is a folder::

    manifest.json               every other file with its size and SHA-256; written last
    database.sqlite3            SQLite, copied by its backup API; or database.pgdump, by pg_dump
    teachers/<sha256>.onnx
    jobs/<job>/<run>/a<attempt>/...
    caches/<key>/...            complete ones

The database comes first, and then the files that it names: artifacts are never changed, so whatever the copy of the
database knows to have succeeded is there. Files of an attempt that it knows may be newer, which is what an engine finds
after a kill, too. The folder has another name until it is whole.

A restore reads all of the backup before it touches anything, copies it beside its place, writes down that it has, and
only then puts it there, by renaming. While ``data_dir.STAGING`` exists nothing starts. Killed before the decision, a
restore begins anew; killed after it, it goes on.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import inspect, text
from sqlalchemy.engine import URL

from service.db.database import Database
from service.db.revisions import known_revisions
from service.errors import BackupFailed, BadBackup, DataDirBusy, DataDirNotEmpty
from service.operations.data_dir import STAGING, KnownFiles, in_use, known_files, locked
from service.settings import MiB, Settings
from service.version import service_version
from store import CacheNotFound, Catalog, StoreError
from workers.cluster.ray_head import describe
from workers.files import disk_full_is_disk_low, replacing, sync, sync_folder
from workers.run_files import CHECKPOINT

MANIFEST = "manifest.json"
PARTIAL = ".partial"
SQLITE_FILE = "database.sqlite3"
POSTGRES_FILE = "database.pgdump"
DECIDED = "decided.json"
_LOOKS = 5  # for a checkpoint that is replaced while it is looked for
_REVISION = "SELECT version_num FROM alembic_version"
_TOP_LEVEL = frozenset({SQLITE_FILE, POSTGRES_FILE, "teachers", "jobs", "caches"})
# What SQLite keeps beside its file.
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 (64 hex digits) of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What a backup holds.

    Attributes:
        retort: the version that made it.
        revision: migration that the database is at.
        jobs: how many it knows.
        missing: files that the database names and the service did not have, where that was accepted.
        files: by path relative to the backup.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    made_at: datetime
    retort: str
    database: Literal["sqlite", "postgresql"]
    revision: str
    jobs: int
    missing: list[str]
    files: dict[str, FileEntry]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size_bytes for entry in self.files.values())


# ------------------------------------------------------------------------------------------------------------- backup


def backup(settings: Settings, target: Path, *, with_caches: bool = False, accept_missing: bool = False) -> Manifest:
    """Makes a backup of a service, which may be at work.

    Args:
        target: a folder that is not there yet; until the backup is whole it is called ``<target>.partial``.
        with_caches: complete caches, too; they can be computed again.
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
    with in_use(settings.data_dir), disk_full_is_disk_low(_nearest(target), f"the backup {target}"):
        _make_folder(partial)
        with locked(partial, fcntl.LOCK_EX, f"another backup writes to {partial}: wait for its end"):
            if target.exists():
                raise BackupFailed(f"{target} exists already: name a folder that does not")
            _clear(partial)
            try:
                manifest = _fill(settings, partial, with_caches=with_caches, accept_missing=accept_missing)
                _write(partial / MANIFEST, manifest.model_dump_json(indent=1))
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            sync_folder(target.parent)
    return manifest


def _fill(settings: Settings, folder: Path, *, with_caches: bool, accept_missing: bool) -> Manifest:
    """Everything but the manifest, durable."""
    made_at = datetime.now(UTC)
    with closing(Database(settings.database)) as database:
        if not database.check_version():
            raise BackupFailed(
                f"{database.url} has no tables yet, so there is nothing to back up: start the service once"
            )
        name = SQLITE_FILE if database.is_sqlite else POSTGRES_FILE
        snapshot = _snapshot_sqlite if database.is_sqlite else _snapshot_postgres
        revision, known = snapshot(database, folder / name)
    files = {name: _entry(folder / name)}
    _copy_known(settings, known, folder, files)
    missing = [path for path, sha256 in known.artifacts.items() if not _is_there(files, path, sha256)]
    teachers = {f"teachers/{sha256}.onnx": sha256 for sha256 in known.teachers}
    missing += [path for path, sha256 in teachers.items() if not _is_there(files, path, sha256)]
    if missing and not accept_missing:
        raise BackupFailed(
            f"{len(missing)} files that the database names are gone from {settings.data_dir.resolve()}, or damaged: "
            f"{', '.join(sorted(missing)[:3])}. A job or teacher may have been deleted just now: try again, and if "
            "they stay missing, --accept-missing makes a backup without them"
        )
    if with_caches:
        _copy_caches(Catalog(settings.caches_dir), folder / "caches", files)
    _sync_folders(folder)
    return Manifest(
        made_at=made_at,
        retort=service_version(),
        database="sqlite" if name == SQLITE_FILE else "postgresql",
        revision=revision,
        jobs=len(known.attempts),
        missing=sorted(missing),
        files=files,
    )


def _snapshot_sqlite(database: Database, target: Path) -> tuple[str, KnownFiles]:
    """Copies the database as it is at one moment, while others read and write it."""
    source = Path(database.url.database or "").resolve()
    _create(target).close()
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
    """Dumps the database as it is at one moment: that of a transaction, which pg_dump takes part in."""
    with database.read() as session:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        # The dump may take longer than a transaction may be idle.
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        snapshot = session.scalar(text("SELECT pg_export_snapshot()"))
        revision = session.execute(text(_REVISION)).scalar_one()
        known = known_files(lambda statement: session.execute(text(statement)))
        with _create(target) as file:
            options = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}")
            _run_postgres("pg_dump", database.url, *options, stdout=file.fileno())
            sync(file)
    return revision, known


def _run_postgres(program: str, url: URL, *options: str, stdout: int = subprocess.DEVNULL) -> None:
    """Runs one of PostgreSQL's programs. Raises BackupFailed."""
    # What stands on a command line is everybody's to read.
    bare = url.set(drivername="postgresql", password=None).render_as_string()
    environment = os.environ | ({} if url.password is None else {"PGPASSWORD": str(url.password)})
    try:
        done = subprocess.run(
            [program, *options, f"--dbname={bare}"], stdout=stdout, stderr=subprocess.PIPE, env=environment
        )
    except FileNotFoundError:
        raise BackupFailed(
            f"there is no {program} on PATH: install PostgreSQL's client programs, of the server's version or newer"
        ) from None
    if done.returncode:
        raise BackupFailed(f"{program} has failed: {done.stderr.decode(errors='replace').strip()}")


def _copy_known(settings: Settings, known: KnownFiles, folder: Path, files: dict[str, FileEntry]) -> None:
    """Copies the teachers and the attempts of the database, and adds them to ``files``; what is gone is left out.

    A run that trains meanwhile may replace its checkpoint by one of a later attempt, so these are copied first; of one
    that is gone by then the later one takes the place.
    """
    sources = [(settings.teacher_path(sha256), f"teachers/{sha256}.onnx") for sha256 in sorted(known.teachers)]
    for job, runs in known.attempts.items():
        for run, newest in runs.items():
            for attempt in range(1, newest + 1):
                top = settings.jobs_dir / job / run / f"a{attempt}"
                sources += [
                    (path, f"jobs/{job}/{run}/a{attempt}/{path.relative_to(top).as_posix()}") for path in _files(top)
                ]
    for source, name in sorted(sources, key=lambda each: each[0].name != CHECKPOINT):
        try:
            files[name] = _copy(source, folder / name)
        except FileNotFoundError:
            if source.name == CHECKPOINT:
                _copy_later_checkpoint(source, folder, name, files)


def _copy_later_checkpoint(gone: Path, folder: Path, name: str, files: dict[str, FileEntry]) -> None:
    """Copies the farthest checkpoint that the run has by now, in the place of one that is gone; none has none."""
    for _ in range(_LOOKS):
        attempts = [path for path in gone.parents[1].glob("a*") if path.name[1:].isdecimal()]
        for attempt in sorted(attempts, key=lambda path: -int(path.name[1:])):
            with suppress(FileNotFoundError):
                files[name] = _copy(attempt / CHECKPOINT, folder / name)
                return


def _copy_caches(catalog: Catalog, folder: Path, files: dict[str, FileEntry]) -> None:
    """Copies the complete caches; one that is deleted meanwhile is left out."""
    copies = Catalog(folder)
    for entry in catalog.list():
        if entry.state != "complete":
            continue
        group = catalog.root / entry.key
        copied: dict[str, FileEntry] = {}
        with suppress(CacheNotFound, FileNotFoundError), catalog.hold(entry.key):
            for path in _files(group):
                name = path.relative_to(group).as_posix()
                copied[f"caches/{entry.key}/{name}"] = _copy(path, folder / entry.key / name)
        try:
            is_whole = copies.get(entry.key).state == "complete"
        except StoreError:
            is_whole = False
        if is_whole:
            files |= copied
        else:
            shutil.rmtree(folder / entry.key, ignore_errors=True)


def _is_there(files: Mapping[str, FileEntry], path: str, sha256: str) -> bool:
    return path in files and files[path].sha256 == sha256


def _clear(partial: Path) -> None:
    """Removes what a killed backup has left. Raises BackupFailed for anything else."""
    for path in partial.iterdir():
        if not (path.name in _TOP_LEVEL or path.name.startswith((MANIFEST, SQLITE_FILE))):
            raise BackupFailed(f"{path} is no part of a backup: move {partial} away, or name another folder")
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# ------------------------------------------------------------------------------------------------------------ restore


def read_backup(folder: Path) -> Manifest:
    """The manifest of a backup all of whose files are there and undamaged.

    Raises:
        BadBackup: it is none, or of a version that this one does not know.
    """
    path = folder / MANIFEST
    try:
        manifest: Manifest | None = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadBackup(
            f"{folder} has no {MANIFEST}, so it is no whole backup: one that was killed is called DIR{PARTIAL}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        manifest = None
    if manifest is None:
        where = ".".join(map(str, first["loc"]))
        raise BadBackup(f"{path} cannot be read ({where}: {first['msg']}): use another backup")
    if manifest.revision not in known_revisions():
        raise BadBackup(
            f"{folder} was made by Retort {manifest.retort}, and its database is at migration {manifest.revision}, "
            "which this version does not know: restore it with that version"
        )
    if not {SQLITE_FILE, POSTGRES_FILE} & manifest.files.keys():
        raise BadBackup(f"{path} names no database: use another backup")
    for name, entry in manifest.files.items():
        if not _is_name(name) or (folder / name).resolve() != folder.resolve() / name:
            raise BadBackup(f"{path} names {name!r}, which is no file of a backup: use another backup")
        try:
            found = _entry(folder / name)
        except OSError as error:
            raise BadBackup(f"{folder / name} cannot be read ({error.strerror}): use another backup") from None
        if found != entry:
            raise BadBackup(
                f"{folder / name} is damaged: {found.size_bytes} bytes with SHA-256 {found.sha256}, and "
                f"{entry.size_bytes} with {entry.sha256} were written. Use another backup"
            )
    return manifest


def restore(settings: Settings, folder: Path, *, replace: bool = False) -> tuple[Manifest, list[Path]]:
    """Puts a backup in place of a service that is not running.

    Args:
        folder: the backup; it is only read.
        replace: set aside what a service has kept there, under names with ``.replaced-<time>``; else it is refused.
            A PostgreSQL database has to be empty in any case.

    Returns:
        The manifest, and what was set aside.

    Raises:
        BadBackup: it is damaged, of a newer version, or of the other kind of database. Nothing was touched.
        DataDirBusy: a service, or what it has left behind, works there. Nothing was touched.
        DataDirNotEmpty: something is there already. Nothing was touched.
        BackupFailed: pg_restore has failed; the data directory waits for another try.
        DiskLow: no room for it. Nothing was touched.
    """
    manifest = read_backup(folder)
    data_dir = settings.data_dir.resolve()
    with closing(Database(settings.database)) as database:
        kind = "sqlite" if database.is_sqlite else "postgresql"
        if manifest.database != kind:
            raise BadBackup(
                f"{folder} is of a {manifest.database} database, and the service's is {kind}: set RETORT_DATABASE_URL "
                "to one of that kind"
            )
        _make_folder(data_dir)
        busy = f"a service works on {data_dir}: stop it first (API and engine)"
        with locked(data_dir, fcntl.LOCK_EX, busy), disk_full_is_disk_low(data_dir, f"a restore of {folder}"):
            if (address := describe(data_dir)) is not None:
                raise DataDirBusy(f"Ray at {address} still works for {data_dir}: stop its engine, or wait for 45 s")
            target = _Target(settings, database)
            if target.is_decided():
                # Of a restore that was killed; if it was another backup's, what follows is refused, or replaces it.
                decided = target.finish()
                if decided == _digest(folder):
                    return manifest, target.set_aside()
            target.stage(manifest, folder, replace=replace)
            target.finish()
            return manifest, target.set_aside()


class _Target:
    """Where a restore puts things, under the data directory's lock."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._data_dir = settings.data_dir.resolve()
        self._database = database
        self._staging = self._data_dir / STAGING
        self._caches = settings.caches_dir
        # A folder of its own, because the caches may be on another disk.
        self._staged_caches = settings.caches_dir / STAGING
        self._moves = [(self._staging / "teachers", settings.teachers_dir), (self._staging / "jobs", settings.jobs_dir)]
        self._sqlite: tuple[Path, Path] | None = None
        if database.is_sqlite:
            path = Path(database.url.database or "").resolve()
            self._sqlite = (path.with_name(path.name + STAGING), path)
        self._stamp = ""

    def is_decided(self) -> bool:
        return (self._staging / DECIDED).exists()

    def stage(self, manifest: Manifest, folder: Path, *, replace: bool) -> None:
        """Copies the backup beside its place, and decides for it. Raises DataDirNotEmpty, BadBackup."""
        self._clear()
        self._check_empty(replace)
        try:
            self._staging.mkdir(mode=0o700)
            for staged, _ in self._moves:
                staged.mkdir(mode=0o700)
            for name, entry in manifest.files.items():
                if _copy(folder / name, self._staged(name)) != entry:
                    raise BadBackup(f"{folder / name} has changed while it was read: try again")
            self._give_to_owner()
            for top in (self._staging, self._staged_caches):
                if top.exists():
                    _sync_folders(top)
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            _write(self._staging / DECIDED, json.dumps({"stamp": stamp, "manifest_sha256": _digest(folder)}))
        except BaseException:
            self._clear()
            raise

    def finish(self) -> str:
        """Puts in place what was staged; goes on where a killed one has stopped. Returns the manifest's SHA-256."""
        decided = json.loads((self._staging / DECIDED).read_bytes())
        self._stamp = decided["stamp"]
        if self._sqlite is None:
            self._restore_postgres()
        elif self._sqlite[0].exists():
            staged, final = self._sqlite
            _make_folder(final.parent)
            # The log first: SQLite would read it into whatever has the database's name.
            for suffix in reversed(_SQLITE_SUFFIXES):
                old = final.with_name(final.name + suffix)
                if old.exists():
                    old.rename(final.with_name(f"{final.name}{self._mark}{suffix}"))
            sync_folder(final.parent)
            staged.rename(final)
            sync_folder(final.parent)
        for staged, final in self._moves:
            if staged.exists():
                with suppress(FileNotFoundError):
                    final.rmdir() if _is_empty(final) else final.rename(final.with_name(f"{final.name}{self._mark}"))
                staged.rename(final)
        if self._staged_caches.exists():
            for cache in self._staged_caches.iterdir():
                # The same key is the same content.
                if not (self._caches / cache.name).exists():
                    cache.rename(self._caches / cache.name)
            shutil.rmtree(self._staged_caches)
            sync_folder(self._caches)
        sync_folder(self._data_dir)
        # In one moment, because a folder without the decision would be taken for one that begins.
        done = self._staging.with_name(f"{STAGING}-done")
        shutil.rmtree(done, ignore_errors=True)
        self._staging.rename(done)
        sync_folder(self._data_dir)
        shutil.rmtree(done)
        return str(decided["manifest_sha256"])

    def set_aside(self) -> list[Path]:
        """What was there before."""
        folders = {self._data_dir, *([self._sqlite[1].parent] if self._sqlite else [])}
        return sorted(path for folder in folders for path in folder.glob(f"*{self._mark}*"))

    @property
    def _mark(self) -> str:
        return f".replaced-{self._stamp}"

    def _staged(self, name: str) -> Path:
        if name == SQLITE_FILE and self._sqlite is not None:
            return self._sqlite[0]
        top, _, rest = name.partition("/")
        return self._staged_caches / rest if top == "caches" else self._staging / name

    def _clear(self) -> None:
        """Removes what was staged and not decided for."""
        if self._sqlite is not None:
            self._sqlite[0].unlink(missing_ok=True)
        for folder in (self._staged_caches, self._staging):
            if folder.exists():
                shutil.rmtree(folder)

    def _check_empty(self, replace: bool) -> None:
        if self._sqlite is None:
            with self._database.read() as session:
                if tables := inspect(session.connection()).get_table_names():
                    raise DataDirNotEmpty(
                        f"the database {self._database.url} has tables ({', '.join(sorted(tables)[:3])}): create an "
                        "empty one and set RETORT_DATABASE_URL to it"
                    )
        found = [final for _, final in self._moves if not _is_empty(final)]
        if self._sqlite is not None:
            final = self._sqlite[1]
            found += [path for suffix in _SQLITE_SUFFIXES if (path := final.with_name(final.name + suffix)).exists()]
        if found and not replace:
            raise DataDirNotEmpty(
                f"a service has kept data here already ({', '.join(str(path) for path in found)}): name another data "
                f"directory, or let --replace set this aside, under names with .replaced-<time>"
            )

    def _restore_postgres(self) -> None:
        """In one transaction; a repetition finds it done."""
        with self._database.read() as session:
            if inspect(session.connection()).has_table("alembic_version"):
                return
        options = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
        _run_postgres("pg_restore", self._database.url, *options, str(self._staging / POSTGRES_FILE))

    def _give_to_owner(self) -> None:
        """What root restores belongs to the data directory's owner, who runs the service."""
        if os.geteuid() != 0:
            return
        owner = self._data_dir.stat()
        tops = [self._staging, self._staged_caches, *([self._sqlite[0]] if self._sqlite else [])]
        for top in tops:
            for path in (top, *top.rglob("*")) if top.exists() else ():
                os.chown(path, owner.st_uid, owner.st_gid)


# -------------------------------------------------------------------------------------------------------------- files


def _copy(source: Path, target: Path) -> FileEntry:
    """A durable copy for this user alone, and what was written. Raises FileNotFoundError, having made nothing."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading:
        _make_folder(target.parent)
        with _create(target) as writing:
            while block := reading.read(MiB):
                digest.update(block)
                size += len(block)
                writing.write(block)
            sync(writing)
    return FileEntry(size_bytes=size, sha256=digest.hexdigest())


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(size_bytes=file.tell(), sha256=sha256)


def _digest(folder: Path) -> str:
    return _entry(folder / MANIFEST).sha256


def _files(top: Path) -> Iterator[Path]:
    """The files below a folder, without what is still being written."""
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.endswith(".partial")]
        for name in names:
            path = Path(folder, name)
            # Bytes that are no UTF-8 are no name of ours, and cannot stand in a manifest.
            if not name.endswith(".partial") and _is_utf8(name) and path.is_file():
                yield path


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_name(name: str) -> bool:
    """Whether this is the path of a file of a backup."""
    parts = name.split("/")
    return parts[0] in _TOP_LEVEL and not {"", ".", ".."} & set(parts)


def _write(path: Path, content: str) -> None:
    """A file for this user alone, whole or not at all."""
    with replacing(path, path.name) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content.encode())


def _create(path: Path) -> BinaryIO:
    """A new file for this user alone, open for writing."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _make_folder(path: Path) -> None:
    """Creates a folder, and those above it, for this user alone."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _is_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def _nearest(path: Path) -> Path:
    """The path, or the lowest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _sync_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        sync_folder(Path(folder))
