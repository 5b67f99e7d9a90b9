"""Format of a backup: its folder, its manifest, and whether all of it is there and undamaged.

A backup is a folder::

    manifest.json               every other file with its size and SHA-256; written last
    database.sqlite3            SQLite, copied by its backup API; or database.pgdump, by pg_dump
    teachers/<sha256>.onnx
    jobs/<job>/<run>/a<attempt>/...
    caches/<key>/...            complete ones: those of imported logits, all if that was asked for
"""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.db.revisions import known_revisions
from service.errors import BadBackup
from service.operations.private_files import FileEntry, entry_of

MANIFEST = "manifest.json"
PARTIAL = ".partial"
SQLITE_FILE = "database.sqlite3"
POSTGRES_FILE = "database.pgdump"
DECIDED = "decided.json"
TOP_LEVEL = frozenset({SQLITE_FILE, POSTGRES_FILE, "teachers", "student-files", "jobs", "caches"})


class Manifest(BaseModel):
    """Manifest of a backup: what it holds.

    Attributes:
        retort: the version that made it.
        revision: migration that the database is at.
        jobs: how many it knows.
        imported_caches: how many caches of imported logits it holds.
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
    # Left out without any, so that versions from before imports read these backups.
    imported_caches: int = Field(0, ge=0, exclude_if=lambda count: count == 0)
    missing: list[str]
    files: dict[str, FileEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size_bytes for entry in self.files.values())


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
            found = entry_of(folder / name)
        except OSError as error:
            raise BadBackup(f"{folder / name} cannot be read ({error.strerror}): use another backup") from None
        if found != entry:
            raise BadBackup(
                f"{folder / name} is damaged: {found.size_bytes} bytes with SHA-256 {found.sha256}, and "
                f"{entry.size_bytes} with {entry.sha256} were written. Use another backup"
            )
    return manifest


def manifest_digest(folder: Path) -> str:
    """SHA-256 of the manifest of a backup, which names that backup."""
    return entry_of(folder / MANIFEST).sha256


def _is_name(name: str) -> bool:
    """Whether this is the path of a file of a backup."""
    parts = name.split("/")
    return parts[0] in TOP_LEVEL and not {"", ".", ".."} & set(parts)
