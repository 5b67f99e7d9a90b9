"""Copied data directories: the SQLite database of one is read through before anything is done to it.

``cp -a`` takes the database and its write-ahead log at two moments. Where a service has emptied the log in between, the
copy may have pages of both, and SQLite would open it. A directory at rest, and one that was moved, pass.
"""

import json
from contextlib import closing, suppress
from pathlib import Path

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from service.db.database import Database
from service.errors import DamagedCopy
from service.settings import Settings
from workers.files import replacing

# Where the directory was, and which file its database was, when a service was started last.
PLACE = "place.json"
log = structlog.get_logger("retort.data")


def check_copy(settings: Settings) -> None:
    """Read through a database that is another file, or at another place, than at the last start.

    Raises:
        DamagedCopy: it is no whole one.
    """
    found, before = _place(settings), _read(settings.data_dir / PLACE)
    if found is None or before is None or found == before:
        return
    log.info("the data directory was copied, moved or restored: its database is checked", **found)
    if (problem := _problem(settings)) is not None:
        raise DamagedCopy(
            f"the database of {settings.data_dir.resolve()} is damaged ({problem}); it was copied from "
            f"{before['path']}, most likely while a service was at work there. Stop that service and copy again, or "
            "`retort backup` there and `retort restore` here"
        )


def remember_place(settings: Settings) -> None:
    """Note where the data directory is; nothing happens on a full disk."""
    found = _place(settings)
    path = settings.data_dir / PLACE
    if found is not None and found != _read(path):
        with suppress(OSError), replacing(path, "where the data directory is") as file:
            file.write(json.dumps(found).encode())


def _place(settings: Settings) -> dict[str, object] | None:
    """Path and inode of the SQLite file; None of a database on a server, and of one that is not there."""
    with closing(Database(settings.database)) as database:
        path = Path(database.url.database or "")
        if not database.is_sqlite or not path.is_file():
            return None
        return {"path": str(settings.data_dir.resolve()), "inode": path.stat().st_ino}


def _read(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and "path" in found else None


def _problem(settings: Settings) -> str | None:
    """The first thing that is wrong with the database; None if it is whole."""
    with closing(Database(settings.database)) as database:
        try:
            with database.read() as session:
                found = str(session.scalar(text("PRAGMA integrity_check(1)")))
        except DatabaseError as error:
            return str(error.orig)
    return None if found == "ok" else found
