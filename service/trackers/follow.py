"""Follower of a service: all its jobs, told to one tracker as their events are stored.

A process beside API and engine that reads what everybody may read. It asks for new events every two seconds (of a job
that brings none less and less often, every 30 s in the end), tells them, lets the tracker keep them, and moves its
cursor then: at least once, whatever is killed. A tracker or a service that does not answer is tried again, each job at
its own time, after 1, 2, 4, ... 60 seconds; the log says what is wrong and how far behind the tracker is.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import structlog

from service.client.client import Client
from service.client.errors import ApiProblem, ServiceUnreachable
from service.client.transport import Document
from service.db.states import TERMINAL
from service.trackers.cursor import Cursor
from service.trackers.documents import moment
from service.trackers.export import JobExport
from service.trackers.patience import Patience
from service.trackers.sinks.base import Sink
from workers.backoff import Schedule

log = structlog.get_logger("retort.trackers")

TRIES = Schedule(base_s=1.0, factor=2.0, cap_s=60.0, jitter=0.1)
POLL_S = 2.0
# Thousands of jobs may wait for their turn.
_QUIET = Schedule(base_s=POLL_S, factor=2.0, cap_s=30.0)
# Events between two moves of the cursor.
_EVENTS_AT_ONCE = 200
# The newest jobs that are looked at whatever is known of them: two processes may store jobs in another order than
# that of their ids.
_NEWEST = 100
_GONE = 404


@dataclass
class _Pace:
    """When a job is looked at next, after so many failures, or looks without an event, in a row."""

    failures: int = 0
    quiet: int = 0
    due: float = 0.0


class Follower:
    """Tells a tracker of all jobs.

    Args:
        client: of the service; its key needs the scope ``read``.
        cursor: how far the tracker is.
        open_sink: makes the sink; called again after it has raised.
        with_files: whether artifacts are uploaded.
        tries: how long to wait after failures.
        clock: monotonic, in seconds.
        patience: with the tracker; endless by default.
        only: ids of the jobs that are told, ended or not: from their first events on, but for those that the cursor
            has in part; none for all jobs.

    Attributes:
        lacking: jobs and runs that are told no further, and that the tracker lacks or has in part, with the reason.
    """

    def __init__(
        self,
        client: Client,
        cursor: Cursor,
        open_sink: Callable[[], Sink],
        *,
        with_files: bool = True,
        tries: Schedule = TRIES,
        clock: Callable[[], float] = time.monotonic,
        patience: Patience | None = None,
        only: Collection[str] = (),
    ) -> None:
        self._client, self._cursor, self._open_sink = client, cursor, open_sink
        self._with_files, self._tries, self._clock = with_files, tries, clock
        self._patience = patience or Patience(cursor)
        self._only = frozenset(only)
        # What is told again doubles nothing, and runs may have been added since to a job that is done.
        cursor.tell_again(self._only)
        self._sink: Sink | None = None
        self._exports: dict[str, JobExport] = {}
        self.lacking = cursor.lacking(self._only)
        self._paces: dict[str, _Pace] = {}

    def run(self, stop: threading.Event, poll_s: float = POLL_S) -> None:
        """Follow until ``stop`` is set, or until the tracker has all of the ``only`` jobs, which have ended."""
        failures, has_begun = 0, False
        while not (stop.is_set() or self.is_done):
            try:
                self.round()
                failures, has_begun, wait_s = 0, True, poll_s
            except Exception as error:
                failures += 1
                # Both may have been started in one moment: no failure yet.
                is_early = isinstance(error, ServiceUnreachable) and not has_begun
                wait_s = poll_s if is_early else self._tries.delay_s(failures)
                if is_early and failures == 1:
                    log.info("waits for the service", error=_sentence(error))
                elif not is_early:
                    log.warning(
                        "nothing can be followed now",
                        error=_sentence(error),
                        failures=failures,
                        next_try_s=round(wait_s, 1),
                    )
            if not self.is_done:
                stop.wait(wait_s)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to tell: all of the ``only`` jobs are done."""
        return bool(self._only) and self._only.isdisjoint(self._cursor.open_jobs())

    def round(self) -> None:
        """Look for new jobs, and tell what is new of each.

        Raises:
            Exception: the service does not answer, or the sink cannot be made. What fails with one job is logged.
        """
        self._find_jobs()
        for job_id, seq in self._cursor.open_jobs().items():
            if self._only and job_id not in self._only:
                continue
            pace = self._paces.setdefault(job_id, _Pace())
            if self._clock() >= pace.due:
                self._follow_job(job_id, seq, pace)

    def _find_jobs(self) -> None:
        if self._only:
            return
        if self._cursor.is_new:
            jobs = list(self._client.jobs())
            ended = [job["id"] for job in jobs if job["state"] in TERMINAL]
            self._cursor.begin(ended)
            if ended:
                log.info("jobs that ended before are not told: `retort export` tells one", jobs=len(ended))
        for number, job in enumerate(self._client.jobs()):
            if self._cursor.knows(job["id"]):
                if number >= _NEWEST:
                    break
            else:
                self._cursor.save(job["id"], 0)

    def _follow_job(self, job_id: str, seq: int, pace: _Pace) -> None:
        if self._patience.is_over(job_id):
            remedy = f"`retort export` tells it of {job_id} by hand"
            log.error("the tracker is too slow for a job, which is given up", job_id=job_id, seq=seq, remedy=remedy)
            self._note_lacking(job_id, {job_id: remedy})
            self._cursor.save(job_id, seq, is_done=True)
            return
        self._patience.begin(job_id)
        told, event = seq, None
        try:
            export = self._export(job_id)
            events = self._client.stored_events(job_id, after=seq)
            for some in _parts(events, _EVENTS_AT_ONCE):
                for event in some:
                    export.apply(event)
                self._open().flush()
                told = some[-1]["seq"]
                # First: these events are not told again, and the next process has to know.
                self._note_lacking(job_id, export.refused)
                self._cursor.save(job_id, told, is_done=export.is_ended)
        except Exception as error:
            self._exports.pop(job_id, None)
            if isinstance(error, ApiProblem) and error.status == _GONE:
                log.info("a job was deleted before all of it was told", job_id=job_id)
                self._note_lacking(job_id, {job_id: f"{job_id} is not there: {error}"})
                self._cursor.save(job_id, told, is_done=True)
            else:
                self._note_failure(job_id, pace, event, error)
            return
        if pace.failures:
            log.info("the tracker has caught up", job_id=job_id, seq=told)
        pace.failures, pace.quiet = 0, 0 if told > seq else pace.quiet + 1
        pace.due = self._clock() + _QUIET.delay_s(pace.quiet)
        if export.is_ended:
            del self._exports[job_id], self._paces[job_id]
            log.info("the tracker has a whole job", job_id=job_id, runs=export.runs, refused=len(export.refused))

    def _export(self, job_id: str) -> JobExport:
        if job_id not in self._exports:
            job = self._client.job(job_id)
            self._exports[job_id] = JobExport(self._client, job, self._open(), with_files=self._with_files)
        return self._exports[job_id]

    def _open(self) -> Sink:
        if self._sink is None:
            self._sink = self._open_sink()
        return self._sink

    def _note_lacking(self, job_id: str, reasons: Mapping[str, str]) -> None:
        self.lacking |= reasons
        if self._only:
            self._cursor.note_lacking(job_id, reasons)

    def _note_failure(self, job_id: str, pace: _Pace, event: Document | None, error: Exception) -> None:
        pace.failures += 1
        wait_s = self._tries.delay_s(pace.failures)
        pace.due = self._clock() + wait_s
        at = moment(event["at"]) if event else None
        log.warning(
            "the tracker is behind with a job",
            job_id=job_id,
            error=_sentence(error),
            failures=pace.failures,
            behind_s=None if at is None else round((datetime.now(UTC) - at).total_seconds(), 1),
            next_try_s=round(wait_s, 1),
        )

    def close(self) -> None:
        """Let go of the sink and the cursor."""
        if self._sink is not None:
            # It may be what fails; nothing that it has not kept counts as told.
            with suppress(Exception):
                self._sink.close()
        self._cursor.close()


def _parts(events: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while some := list(islice(events, size)):
        yield some


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
