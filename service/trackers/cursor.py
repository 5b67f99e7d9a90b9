"""Cursor of a tracker: up to which event of which job it was told everything; an SQLite file of its own.

Written after the tracker has kept what it was told, so that a kill in between has the same events told again, and none
left out.
"""

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from service.errors import ServiceError

# How long a process that ends at this moment may still have the file.
_LOCK_WAIT_S = 1.0


class CursorBusy(ServiceError, RuntimeError):
    """Another process follows with this cursor."""


class Cursor:
    """The cursor's file.

    Args:
        path: made if it is not there; one process at a time uses it.

    Attributes:
        is_new: whether nothing was followed with it before.

    Raises:
        CursorBusy: another process uses it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A stall is noted by a thread of its own, while the one that follows waits for the tracker.
        self._connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        self._lock(path)
        for table in (
            "jobs (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, is_done INTEGER NOT NULL)",
            "stalls (id TEXT PRIMARY KEY, count INTEGER NOT NULL)",
            "lacking (id TEXT PRIMARY KEY, job_id TEXT NOT NULL, reason TEXT NOT NULL)",
            "begun (once INTEGER PRIMARY KEY CHECK (once = 1))",
        ):
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        self.is_new = self._connection.execute("SELECT count(*) FROM begun").fetchone() == (0,)

    def _lock(self, path: Path) -> None:
        """Take the file for this process until it closes it; two that only read would each keep the other from it."""
        self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise CursorBusy(
                f"another process tells this tracker of the same jobs, with the cursor {path}: wait for its end, or "
                "end it and try again"
            ) from None

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

    def tell_again(self, job_ids: Collection[str]) -> None:
        """Begin these jobs with their first events, but go on with those that are known and not done."""
        for job_id in set(job_ids).difference(self.open_jobs()):
            self._connection.execute("DELETE FROM lacking WHERE job_id = ?", (job_id,))
            self.save(job_id, 0)

    def note_lacking(self, job_id: str, reasons: Mapping[str, str]) -> None:
        """Note what the tracker will lack of a job though the cursor moves on: the reason by job or run."""
        rows = [(id, job_id, reason) for id, reason in reasons.items()]
        self._connection.executemany("INSERT OR REPLACE INTO lacking VALUES (?, ?, ?)", rows)

    def lacking(self, job_ids: Collection[str]) -> dict[str, str]:
        """Reasons that were noted why these jobs, or runs of them, are lacking, by id."""
        rows = self._connection.execute("SELECT id, job_id, reason FROM lacking ORDER BY id").fetchall()
        return {id: reason for id, job_id, reason in rows if job_id in job_ids}

    def open_jobs(self) -> dict[str, int]:
        """The last event that was told, by job, of those that are not done, oldest job first."""
        rows = self._connection.execute("SELECT id, seq FROM jobs WHERE NOT is_done ORDER BY id").fetchall()
        return dict(rows)

    def close(self) -> None:
        """Let another process use the file."""
        self._connection.close()
