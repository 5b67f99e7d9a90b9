"""Disk errors of a database, by the error codes of SQLite and PostgreSQL."""

import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import URL

# The primary code of an extended one, as SQLITE_IOERR_WRITE, is its lowest byte.
_PRIMARY = 0xFF
_SQLITE = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_READONLY: "it can only be read",
    sqlite3.SQLITE_IOERR: "its disk gives an I/O error",
}
_FULL = "53100"
# disk_full, read_only_sql_transaction, io_error.
_POSTGRESQL = {_FULL: "its disk is full", "25006": "it can only be read", "58030": "its disk gives an I/O error"}


def disk_error(error: BaseException | None, url: URL) -> tuple[bool, str] | None:
    """Whether the disk is full, and a sentence with the reason and the next step; None for any other error.

    Args:
        error: of the driver.
        url: of the database, of which nothing is shown but SQLite's folder: strangers read the message as well.
    """
    if isinstance(error, sqlite3.Error):
        # What Python's module raises of its own accord has no code.
        code = (getattr(error, "sqlite_errorcode", None) or 0) & _PRIMARY
        folder = Path(url.database or ".").parent
        if code == sqlite3.SQLITE_CANTOPEN and _is_read_only(folder):
            # The write-ahead log cannot be made.
            code = sqlite3.SQLITE_READONLY
        if code not in _SQLITE:
            return None
        is_full = code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _free_bytes(folder) == 0)
        what, room = _SQLITE[sqlite3.SQLITE_FULL if is_full else code], _room(folder)
    else:
        state = getattr(error, "sqlstate", None)
        if state not in _POSTGRESQL:
            return None
        is_full, what, room = state == _FULL, _POSTGRESQL[state], ""
    advice = (
        "free some space there (`retort gc --dry-run` lists what can go)"
        if is_full
        else "make it writable again (see the machine's log for why it is not)"
    )
    return is_full, f"the database cannot be used: {what} ({error}){room}: {advice}, then try again"


def _room(folder: Path) -> str:
    free = _free_bytes(folder)
    return "" if free is None else f", {free:,} bytes are free in {folder}"


def _free_bytes(folder: Path) -> int | None:
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _is_read_only(folder: Path) -> bool:
    with suppress(OSError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False
