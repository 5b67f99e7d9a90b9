"""Restore of a backup in place of a service that is not running.

A restore reads all of the backup before it touches anything, copies it beside its place, writes down that it has, and
only then puts it there, by renaming. While ``data_dir.STAGING`` exists nothing starts. Killed before the decision, a
restore begins anew; killed after it, it goes on.
"""

import fcntl
import json
import os
import shutil
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import inspect

from service.db.database import Database
from service.errors import BadBackup, DataDirBusy, DataDirNotEmpty
from service.operations.backup_format import (
    DECIDED,
    POSTGRES_FILE,
    SQLITE_FILE,
    Manifest,
    manifest_digest,
    read_backup,
)
from service.operations.data_dir import STAGING, locked
from service.operations.postgres_programs import run_postgres
from service.operations.private_files import (
    copy_file,
    is_empty,
    make_folder,
    sync_folders,
    write_private,
)
from service.settings import Settings
from workers.cluster.ray_head import describe
from workers.files import disk_full_is_disk_low, sync_folder

# What SQLite keeps beside its file.
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")


def restore(settings: Settings, folder: Path, *, replace: bool = False) -> tuple[Manifest, list[Path]]:
    """Put a backup in place of a service that is not running.

    Args:
        folder: the backup; it is only read.
        replace: set aside what a service has kept there, under names with ``.replaced-<time>``; else it is refused.
            A PostgreSQL database has to be empty in any case. Positions of trackers are set aside in any case.

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
        make_folder(data_dir)
        busy = f"a service works on {data_dir}: stop it first (API and engine)"
        with locked(data_dir, fcntl.LOCK_EX, busy), disk_full_is_disk_low(data_dir, f"a restore of {folder}"):
            if (address := describe(data_dir)) is not None:
                raise DataDirBusy(f"Ray at {address} still works for {data_dir}: stop its engine, or wait for 45 s")
            target = _Target(settings, database)
            if target.is_decided():
                # Of a restore that was killed; if it was another backup's, what follows is refused, or replaces it.
                decided = target.finish()
                if decided == manifest_digest(folder):
                    return manifest, target.set_aside()
            target.stage(manifest, folder, replace=replace)
            target.finish()
            return manifest, target.set_aside()


class _Target:
    """Target of a restore, under the data directory's lock."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._data_dir = settings.data_dir.resolve()
        self._database = database
        self._staging = self._data_dir / STAGING
        self._trackers = settings.trackers_dir
        self._caches = settings.caches_dir
        # A folder of its own, because the caches may be on another disk.
        self._staged_caches = settings.caches_dir / STAGING
        folders = (settings.teachers_dir, settings.student_files_dir, settings.jobs_dir)
        self._moves = [(self._staging / folder.name, folder) for folder in folders]
        self._sqlite: tuple[Path, Path] | None = None
        if database.is_sqlite:
            path = Path(database.url.database or "").resolve()
            self._sqlite = (path.with_name(path.name + STAGING), path)
        self._stamp = ""

    def is_decided(self) -> bool:
        """Whether a restore has copied everything and only has to put it in place."""
        return (self._staging / DECIDED).exists()

    def stage(self, manifest: Manifest, folder: Path, *, replace: bool) -> None:
        """Copy the backup beside its place, and decide for it. Raises DataDirNotEmpty, BadBackup."""
        self._clear()
        self._check_empty(replace)
        try:
            self._staging.mkdir(mode=0o700)
            for staged, _ in self._moves:
                staged.mkdir(mode=0o700)
            for name, entry in manifest.files.items():
                if copy_file(folder / name, self._staged(name)) != entry:
                    raise BadBackup(f"{folder / name} has changed while it was read: try again")
            self._give_to_owner()
            for top in (self._staging, self._staged_caches):
                if top.exists():
                    sync_folders(top)
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            write_private(
                self._staging / DECIDED, json.dumps({"stamp": stamp, "manifest_sha256": manifest_digest(folder)})
            )
        except BaseException:
            self._clear()
            raise

    def finish(self) -> str:
        """Put in place what was staged; goes on where a killed one has stopped. Returns the manifest's SHA-256."""
        decided = json.loads((self._staging / DECIDED).read_bytes())
        self._stamp = decided["stamp"]
        if self._sqlite is None:
            self._restore_postgres()
        elif self._sqlite[0].exists():
            staged, final = self._sqlite
            make_folder(final.parent)
            # The log first: SQLite would read it into whatever has the database's name.
            for suffix in reversed(_SQLITE_SUFFIXES):
                old = final.with_name(final.name + suffix)
                if old.exists():
                    old.rename(final.with_name(f"{final.name}{self._mark}{suffix}"))
            sync_folder(final.parent)
            staged.rename(final)
            sync_folder(final.parent)
        if self._trackers.exists():
            # Its cursors count the events of another database, and may be ahead of the backup's.
            self._trackers.rename(self._trackers.with_name(f"{self._trackers.name}{self._mark}"))
        for staged, final in self._moves:
            if staged.exists():
                with suppress(FileNotFoundError):
                    final.rmdir() if is_empty(final) else final.rename(final.with_name(f"{final.name}{self._mark}"))
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
        """The paths of what was there before."""
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
        """Remove what was staged and not decided for."""
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
        found = [final for _, final in self._moves if not is_empty(final)]
        if self._sqlite is not None:
            final = self._sqlite[1]
            found += [path for suffix in _SQLITE_SUFFIXES if (path := final.with_name(final.name + suffix)).exists()]
        if found and not replace:
            raise DataDirNotEmpty(
                f"a service has kept data here already ({', '.join(str(path) for path in found)}): name another data "
                f"directory, or let --replace set this aside, under names with .replaced-<time>"
            )

    def _restore_postgres(self) -> None:
        """Restore the dump in one transaction; a repetition finds it done."""
        with self._database.read() as session:
            if inspect(session.connection()).has_table("alembic_version"):
                return
        options = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
        run_postgres("pg_restore", self._database.url, *options, str(self._staging / POSTGRES_FILE))

    def _give_to_owner(self) -> None:
        """Give what root restores to the data directory's owner, who runs the service."""
        if os.geteuid() != 0:
            return
        owner = self._data_dir.stat()
        tops = [self._staging, self._staged_caches, *([self._sqlite[0]] if self._sqlite else [])]
        for top in tops:
            for path in (top, *top.rglob("*")) if top.exists() else ():
                os.chown(path, owner.st_uid, owner.st_gid)
