"""Event feed: the newest events of all jobs, read once for every stream that waits for them.

The engine is another process, and the database is all that it shares with this one, so somebody has to look there
several times a second. ``EventFeed`` does it for all streams together, with one query, however many there are, and only
while there are any. What it has read it keeps for a while, also as the bytes that go over the wire. A stream that is
further behind (it has just begun, or its client reads slowly) reads from the database until it has caught up.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog
from fastapi.sse import format_sse_event
from pydantic import ValidationError

from service.api.schemas.events import Event
from service.db.models import EventRecord, JobRecord, RunRecord
from service.db.queries.api_queries import ApiQueries
from service.db.states import TERMINAL
from service.db.transitions import unreadable

SSE = "text/event-stream"
"""Media type of server-sent events; a client that accepts it asks for a stream."""

KEPT = 2000
_AT_ONCE = 500
log = structlog.get_logger("service.api.event_feed")


def show(row: EventRecord) -> Event:
    """Document of an event's row; of an unreadable row, a warning that says so."""
    try:
        return _document(row)
    except ValidationError:
        return _document(unreadable(row.seq, row.job_id, row.run_id))


def _document(row: EventRecord) -> Event:
    return Event(
        seq=row.seq,
        job_id=row.job_id,
        run_id=row.run_id or None,
        attempt=row.attempt,
        at=row.at,
        type=row.type,
        data=row.data,
    )


@dataclass(frozen=True, slots=True)
class EventFrame:
    """Event as streams send it. Its row would take four times the memory.

    Attributes:
        is_end: whether its run, or its job where ``run_id`` is empty, has ended with it.
        frame: the whole event as it goes over the wire.
    """

    seq: int
    job_id: str
    run_id: str
    is_end: bool
    frame: bytes

    @classmethod
    def of(cls, row: EventRecord) -> "EventFrame":
        """Frame of a row."""
        shown = show(row)
        is_end = shown.type == "state" and shown.data.get("state") in TERMINAL
        frame = format_sse_event(data_str=shown.model_dump_json(), event=shown.type, id=str(row.seq))
        return cls(row.seq, row.job_id, row.run_id, is_end, frame)

    @classmethod
    def all_of(cls, rows: Iterable[EventRecord]) -> "list[EventFrame]":
        """Frames of these rows; one that cannot be shown is left out and logged: the others do not wait for it."""
        frames = []
        for row in rows:
            try:
                frames.append(cls.of(row))
            except Exception as error:
                log.warning("an event cannot be told", seq=row.seq, job_id=row.job_id, error=type(error).__name__)
        return frames

    def ends(self, owner: JobRecord | RunRecord) -> bool:
        """Whether this job or run has ended with this event."""
        own = self.run_id == owner.id if isinstance(owner, RunRecord) else (self.job_id, self.run_id) == (owner.id, "")
        return own and self.is_end


class EventFeed:
    """Buffer of the last ``KEPT`` events, for streams of one event loop.

    Args:
        queries: where they are read.
        poll_s: how often.
        closing: set when the server shuts down; nobody is kept waiting then.

    Attributes:
        head: number of the newest event that was read; meaningful to followers only.
    """

    def __init__(self, queries: ApiQueries, poll_s: float, closing: asyncio.Event) -> None:
        self.head = 0
        self._queries = queries
        self._poll_s = poll_s
        self._closing = closing
        self._kept: deque[EventFrame] = deque()
        # All events later than this one, up to the head, are kept.
        self._floor = 0
        self._news = asyncio.Event()
        self._followers = 0
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Read events as long as anybody follows. Raises SQLAlchemyError if the first read fails."""
        self._followers += 1
        try:
            async with self._starting:
                if self._reader is None:
                    self.head = self._floor = await anyio.to_thread.run_sync(self._queries.last_event)
                    # In a context of its own: it serves all, and logs nothing under the id of its first request.
                    self._reader = asyncio.create_task(self._read(), context=Context())
            yield
        finally:
            self._followers -= 1
            if not self._followers and self._reader is not None:
                self._reader.cancel()
                self._reader = None
                self._kept.clear()

    def later(self, position: int) -> Sequence[EventFrame] | None:
        """Events that were read after ``position``, oldest first; None if not all of them are kept any more."""
        if position < self._floor:
            return None
        found: list[EventFrame] = []
        for event_frame in reversed(self._kept):
            if event_frame.seq <= position:
                break
            found.append(event_frame)
        return found[::-1]

    async def wait(self, timeout_s: float) -> None:
        """Wait until there are new events, the server shuts down, or the time is over."""
        if not self._closing.is_set():
            with anyio.move_on_after(timeout_s):
                await self._news.wait()

    async def _read(self) -> None:
        while not self._closing.is_set():
            rows: Sequence[EventRecord] = ()
            try:
                rows = await anyio.to_thread.run_sync(self._queries.later_events, self.head, _AT_ONCE)
            except Exception as error:
                # The streams stay open: what they miss now, they get when the database is back.
                log.warning("events cannot be read", error=type(error).__name__)
            if rows:
                self._keep(EventFrame.all_of(rows), rows[-1].seq)
            if len(rows) < _AT_ONCE:
                with anyio.move_on_after(self._poll_s):
                    await self._closing.wait()
        self._wake()

    def _keep(self, frames: Sequence[EventFrame], head: int) -> None:
        self._kept.extend(frames)
        self.head = head
        while len(self._kept) > KEPT:
            self._floor = self._kept.popleft().seq
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
