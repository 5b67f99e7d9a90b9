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
        # A stall is noted by a thread of its own, while the one that follows waits for the tracker.
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, is_done INTEGER NOT NULL)"
        )
        self._connection.execute("CREATE TABLE IF NOT EXISTS stalls (id TEXT PRIMARY KEY, count INTEGER NOT NULL)")
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
        self._connection.execute("DELETE FROM stalls WHERE id = ?", (job_id,))

    def stalls(self, job_id: str) -> int:
        """Number of calls about a job that have stalled since it has advanced."""
        row = self._connection.execute("SELECT count FROM stalls WHERE id = ?", (job_id,)).fetchone()
        return 0 if row is None else int(row[0])

    def note_stall(self, job_id: str) -> None:
        """Count a call about a job that has stalled."""
        line = "INSERT INTO stalls VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET count = count + 1"
        self._connection.execute(line, (job_id,))

    def open_jobs(self) -> dict[str, int]:
        """The last event that was told, by job, of those that are not done, oldest job first."""
        rows = self._connection.execute("SELECT id, seq FROM jobs WHERE NOT is_done ORDER BY id").fetchall()
        return dict(rows)

    def close(self) -> None:
        """Let another process use the file."""
        self._connection.close()
