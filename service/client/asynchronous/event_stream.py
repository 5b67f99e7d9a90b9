"""Event streams (SSE): parsing, and resumption after the last event that arrived."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing

import anyio
import httpx2

from service.client import documents
from service.client.asynchronous.connection import ServiceConnection
from service.client.errors import WaitTimeout
from service.client.transport import STREAM_SILENCE_S, Document, Patience, job_or_run_path


async def follow_events(
    connection: ServiceConnection, job_or_run_id: str, *, after: int, patience_s: float, timeout_s: float | None
) -> AsyncGenerator[documents.Event]:
    """Yield every event of an event stream as it happens, until the one of type ``done``, which is the last.

    A broken stream is taken up again after the last event that arrived: none is lost, none comes twice.

    Args:
        connection: to the service.
        job_or_run_id: a ``job_...`` or ``run_...`` id.
        after: leave out the events up to this number (``seq``).
        patience_s: how long nothing may answer before that is an error.
        timeout_s: how long to follow at all, to within the service's keep-alive of 15 s.

    Raises:
        ServiceUnreachable: after ``patience_s`` without an answer.
        WaitTimeout: after ``timeout_s``.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    patience = Patience(patience_s)
    while True:
        reason: Exception | str = "the event stream keeps ending early"
        try:
            url = f"{job_or_run_path(job_or_run_id)}/events?after={after}"
            # Whoever stops reading gives the connection back at once, not when the garbage is collected.
            async with aclosing(_read_events(connection, url, patience, deadline)) as events:
                async for event in events:
                    after = event.get("seq") or after
                    yield documents.Event(event)
                    if event["type"] == "done":
                        return
        except httpx2.TransportError as error:
            reason = error
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeout(f"{job_or_run_id} has not ended after {timeout_s} s; it goes on")
        await anyio.sleep(patience.spend(connection.base_url, reason))


async def _read_events(
    connection: ServiceConnection, url: str, patience: Patience, deadline: float | None
) -> AsyncGenerator[Document]:
    """Yield the events of one connection, until it ends or the deadline has passed."""
    # The number is in the URL: as Last-Event-ID it is not answered with ``done`` where nothing else is left.
    silence_s = STREAM_SILENCE_S
    if deadline is not None:
        silence_s = max(0.01, min(silence_s, deadline - time.monotonic()))
    async with connection.stream(url, {"Accept": "text/event-stream"}, silence_s) as response:
        async for event in parse_events(response.aiter_bytes()):
            patience.restore()
            if event is not None:
                yield event
            if deadline is not None and time.monotonic() >= deadline:
                return


async def parse_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[Document | None]:
    """Parse a text/event-stream of JSON; None stands for a comment that keeps it alive.

    An event that the connection cut off has no empty line behind it and is dropped: the next
    connection brings it again.
    """
    fields: dict[str, str] = {}
    async for line in _lines(chunks):
        if line.startswith(":"):
            yield None
        elif line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            again = name == "data" and name in fields
            fields[name] = f"{fields[name]}\n{value}" if again else value
        elif "data" in fields:
            yield {"type": fields.get("event", "message"), **json.loads(fields["data"])}
            fields = {}


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    # Not str.splitlines: it also splits at U+2028 and its like, which JSON strings may hold.
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
