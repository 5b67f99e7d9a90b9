"""Housekeeping of the leading engine, from a thread of its own: tombstones, retention, exports, old checkpoints."""

import threading
import time
from contextlib import suppress

import structlog
from sqlalchemy import select

from service.db.deletions.deletion import Deleter
from service.db.deletions.retention import Limits, Retention
from service.db.engine_queries import EngineQueries
from service.db.models import RunRecord
from service.db.states import State
from service.engine.attempt_files import keep_farthest_checkpoint
from service.operations.exports import remove_old
from service.settings import Settings
from workers import signals

PERIOD_S = 300.0
JOIN_S = 10.0
log = structlog.get_logger("retort.housekeeping")


class Housekeeper:
    """Collects when the engine begins to lead, and then every ``period_s``; a deletion that takes long holds up no job.

    Args:
        settings: the limits, and where the files are.
        queries: of the holder of the lease; nothing is collected while another engine has it.
    """

    def __init__(self, settings: Settings, queries: EngineQueries, period_s: float = PERIOD_S) -> None:
        self._settings, self._queries = settings, queries
        self._deletion = Deleter(queries.database, settings)
        self._retention = Retention(settings, self._deletion)
        self._period_s = period_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="housekeeping", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        # All that it does can be done again; an engine that ends has a minute.
        self._thread.join(JOIN_S)

    def _work(self) -> None:
        signals.leave_to_main_thread()
        is_first = True
        while not self._closed.is_set():
            try:
                if self._queries.lease().holder == self._queries.holder:
                    self.collect(is_first=is_first)
                    is_first = False
            except Exception as error:
                # Whatever it was, jobs go on, and the next time may do.
                log.warning("housekeeping failed", error=f"{type(error).__name__}: {error}".partition("\n")[0])
            self._closed.wait(self._period_s)

    def collect(self, *, is_first: bool) -> None:
        """One round.

        Args:
            is_first: of this engine: checkpoints that an earlier version, or a kill, has left are looked for as well.
        """
        began_s = time.monotonic()
        if is_first:
            self._sweep_checkpoints()
        remove_old(self._settings.exports_dir)
        done = self._retention.collect(Limits.of(self._settings), should_stop=self._closed.is_set)
        if done.files_bytes or done.jobs or done.compacted_events:
            counts = {"jobs": len(done.jobs), "decoded": len(done.decoded), "compacted_events": done.compacted_events}
            log.info("collected", **counts, files_bytes=done.files_bytes, seconds=round(time.monotonic() - began_s, 1))

    def _sweep_checkpoints(self) -> None:
        query = select(RunRecord.id, RunRecord.job_id).where(
            RunRecord.state.in_({State.FAILED, State.CANCELLED}), RunRecord.attempt > 1
        )
        with self._queries.database.read() as session:
            runs = session.execute(query).all()
        for run in runs:
            with suppress(FileNotFoundError):  # it is deleted just now
                keep_farthest_checkpoint(self._settings.jobs_dir / run.job_id / run.id)
