"""Disk of the engine: work that is set aside because of it, and when that goes on.

Below the reserve, and on a disk that cannot be written, nothing new is begun. Work that ends because of the disk is set
aside (see ``set_aside``), and goes on by itself: once the disk has room and can be written, and later after each try
that got nowhere.
"""

import time

import structlog

from service.db.engine_queries import EngineQueries
from service.db.models import Json
from service.db.scheduling import set_aside
from service.db.scheduling.backoff import TryBackoff
from service.operations.disk import DiskWatch, Fault, Freeable, places
from service.operations.readiness import EngineParts
from service.settings import Settings
from workers.cluster.outcomes import TaskOutcome

RESUME_S = 1.0
# How caches end whose actors vanish one after the other.
_GONE = frozenset({"WorkerLost"})
log = structlog.get_logger("retort.engine")


class EngineDisk:
    """The disk of one engine, and the work that was set aside because of it.

    Args:
        settings, queries: of the engine.
        parts: what it says of its readiness.
    """

    def __init__(self, settings: Settings, queries: EngineQueries, parts: EngineParts) -> None:
        self.parts = parts
        self._queries = queries
        folders = places(settings, queries.database.url)
        self._watch = DiskWatch(folders, settings.disk_floor_bytes, Freeable(settings, queries.database).sentence)
        self._backoff = TryBackoff()
        self._resume_at = 0.0

    @property
    def fault(self) -> Fault | None:
        """The reason why nothing new is to be begun; None if it may be."""
        return self._watch.fault

    def look(self) -> None:
        """Look at the disk and say what it is like; queue what was set aside, if it is time to. Raises LeaseLost."""
        before = self._watch.fault
        fault = self._watch.look()
        if fault != before:
            self._tell(fault)
        self.parts.store()
        if fault is None and time.monotonic() >= self._resume_at:
            self._resume_at = time.monotonic() + RESUME_S
            self._resume()

    def reason(self, outcome: TaskOutcome) -> Json | None:
        """Reason to store with work that has ended because of the disk; None if it has ended for another reason.

        What has vanished without a word may have been ended by it, too: by a signal at a page that cannot be read or
        written. It has, if the disk is found to be bad now.
        """
        # A process that an earlier version has started does not say.
        code: str | None = getattr(outcome, "disk", None)
        if code is not None:
            return self.reason_of(code, outcome.message or code)
        if outcome.kind == "vanished" or outcome.error_type in _GONE:
            self._look_now()
            if (fault := self._watch.fault) is not None:
                return self.reason_of(fault.code, outcome.message or "its process vanished")
        return None

    def reason_of(self, code: str, message: str) -> Json:
        """Reason to store with work that has ended with this error of the disk."""
        self._look_now()
        return set_aside.reason_of(code, self._watch.message_of(code, message))

    def count(self, id: str) -> None:
        """Count that a run, or a job with its caches, was set aside."""
        self._backoff.count(id)

    def has_got_on(self, id: str) -> None:
        """Forget the tries of work that has got somewhere since."""
        self._backoff.reset(id)

    def _look_now(self) -> None:
        before = self._watch.fault
        fault = self._watch.look(now=True)
        if fault != before:
            self._tell(fault)

    def _tell(self, fault: Fault | None) -> None:
        self.parts.set("disk", None if fault is None else fault.message)
        if fault is None:
            log.info("the disk has room and can be written: work goes on")
        else:
            log.error("the disk is no place to work on: nothing new is begun", code=fault.code, reason=fault.message)

    def _resume(self) -> None:
        due = [
            run_id
            for run_id, job_id in self._queries.runs_aside()
            if self._backoff.is_due(run_id) and self._backoff.is_due(job_id)
        ]
        if due and (resumed := self._queries.resume_set_aside(due)):
            log.info("what was set aside goes on", run_ids=resumed)
