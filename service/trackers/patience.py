"""Patience with a tracker: how long a call about a job may take, by how often one has stalled.

A call that takes too long ends the process, and the next one makes it again, so a tracker that is only slow would never
get on. Each stall therefore doubles the time that the next process gives to calls about its job; after
``DOUBLINGS_MAX`` and one more the job is given up, so that the others get on. A job that has advanced begins anew.
"""

import contextlib
import math
import sqlite3

from service.trackers.cursor import Cursor

# From 5 minutes, the default, to 5 hours: the job is given up after some 10 hours in all.
DOUBLINGS_MAX = 6


class Patience:
    """Patience with one tracker.

    Args:
        cursor: keeps the stalls of each job.
        stall_s: seconds that a call may take at first.

    Attributes:
        allowed_s: seconds that a call about the present job may take.
    """

    def __init__(self, cursor: Cursor, stall_s: float = math.inf) -> None:
        self._cursor, self._stall_s = cursor, stall_s
        self._job_id: str | None = None
        self.allowed_s = stall_s

    def begin(self, job_id: str) -> None:
        """Take up a job: calls are about it from now on."""
        self._job_id = job_id
        self.allowed_s = self._stall_s * 2 ** self._cursor.stalls(job_id)

    def is_over(self, job_id: str) -> bool:
        """Whether a job has stalled too often."""
        return self._cursor.stalls(job_id) > DOUBLINGS_MAX

    def note_stall(self) -> None:
        """Note a stall of the present job; in any thread, while the one that follows waits for the tracker."""
        if self._job_id is not None:
            # The process ends in any case.
            with contextlib.suppress(sqlite3.Error):
                self._cursor.note_stall(self._job_id)
