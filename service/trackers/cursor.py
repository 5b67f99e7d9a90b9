"""Cursor of a tracker: up to which event of which job it was told everything; an SQLite file of its own.

Written after the tracker has kept what it was told, so that a kill in between has the same events told again, and none
left out.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path


class Cursor:
    """The cursor's file.

    Args:
        path: made if it is not there; one process at a time uses it.

    Attributes:
        is_new: whether nothing was followed with it before.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, is_done INTEGER NOT NULL)"
        )
        self._connection.execute("CREATE TABLE IF NOT EXISTS begun (once INTEGER PRIMARY KEY CHECK (once = 1))")
        self.is_new = self._connection.execute("SELECT count(*) FROM begun").fetchone() == (0,)

    def begin(self, ended: Iterable[str]) -> None:
        """Note that from now on every job is followed but for these, which had ended before."""
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT OR IGNORE INTO jobs VALUES (?, 0, 1)", [(id,) for id in ended])
            self._connection.execute("INSERT OR IGNORE INTO begun VALUES (1)")
        self.is_new = False

    def knows(self, job_id: str) -> bool:
        """Whether a job is followed, or is done."""
        row = self._connection.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row is not None

    def save(self, job_id: str, seq: int, *, is_done: bool = False) -> None:
        """Note that the tracker has all events of a job up to this one; ``is_done``: and that there will be no more."""
        self._connection.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", (job_id, seq, is_done))

    def open_jobs(self) -> dict[str, int]:
        """The last event that was told, by job, of those that are not done, oldest job first."""
        rows = self._connection.execute("SELECT id, seq FROM jobs WHERE NOT is_done ORDER BY id").fetchall()
        return dict(rows)

    def close(self) -> None:
        """Let another process use the file."""
        self._connection.close()
