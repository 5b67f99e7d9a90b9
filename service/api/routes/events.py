"""Routes of events of jobs and runs, as pages of JSON or as a stream of server-sent events.

A stream begins after ``Last-Event-ID`` (or ``after``) and ends with the event ``done`` once the job or run has ended
and everything was sent, or without it when the server shuts down; the client then comes back. It catches up from the
database and then waits with all others for news (``service.api.event_feed``); while its client does not read, it holds
a page of events and no connection to the database. A browser comes back after the end, too; the 204 that it is given
then, for it has brought the number of the last event, is what ends an EventSource.
"""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from service.api.auth import READ
from service.api.dependencies import EVENTS_DEFAULT, EVENTS_MAX, Context, Ctx, page
from service.api.event_feed import SSE, EventFrame, show
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.events import Event
from service.db.models import JobRecord, RunRecord
from service.db.states import TERMINAL, State
from service.errors import InvalidRequest, NotFound

router = APIRouter(tags=["events"], responses=responses(401, 403, 404, 422, 500, 503))

# Events that a stream holds at a time while it catches up.
CATCH_UP = 200
# SQLite's and PostgreSQL's largest integer.
Sequence = Annotated[int, Query(ge=0, lt=2**63, description="the `seq` of the last event that was seen")]
Before = Annotated[
    int | None,
    Query(ge=0, lt=2**63, description="of a page: events before this `seq`, newest first, without `step` and the like"),
]
LastEventId = Annotated[
    str | None, Header(pattern=r"^[0-9]{1,18}$", description="as `after`; sent by browsers that come back")
]
EventLimit = Annotated[int, Query(ge=1, le=EVENTS_MAX, description="events of a page")]
_DESCRIPTION = "A page of events, or with `Accept: text/event-stream` all of them as they come"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Page[Event], "description": _DESCRIPTION, "content": {SSE: {"schema": {"type": "string"}}}},
    204: {"description": "Of a stream: all has ended, and nothing is later than `Last-Event-ID`"},
}


@router.get(
    "/jobs/{job_id}/events",
    operation_id="list_job_events",
    summary="Events of a job and its runs",
    dependencies=[READ],
    response_class=Response,
    responses=_RESPONSES,
)
async def list_job_events(
    job_id: str,
    request: Request,
    ctx: Ctx,
    after: Sequence = 0,
    before: Before = None,
    limit: EventLimit = EVENTS_DEFAULT,
    last_event_id: LastEventId = None,
) -> Response:
    """Oldest first, or with `before` newest first. `last_id` of a page is the `after` (or `before`) of the next one."""
    find = partial(ctx.records.job, job_id)
    return await _answer(request, ctx, find, PageBounds(after, before, limit), last_event_id=last_event_id)


@router.get(
    "/runs/{run_id}/events",
    operation_id="list_run_events",
    summary="Events of a run",
    dependencies=[READ],
    response_class=Response,
    responses=_RESPONSES,
)
async def list_run_events(
    run_id: str,
    request: Request,
    ctx: Ctx,
    after: Sequence = 0,
    before: Before = None,
    limit: EventLimit = EVENTS_DEFAULT,
    last_event_id: LastEventId = None,
) -> Response:
    """Oldest first, or with `before` newest first. `last_id` of a page is the `after` (or `before`) of the next one."""
    find = partial(ctx.records.run, run_id)
    return await _answer(request, ctx, find, PageBounds(after, before, limit), last_event_id=last_event_id)


class PageBounds(NamedTuple):
    """Events of a page: their numbers and how many."""

    after: int
    before: int | None
    limit: int


async def _answer(
    request: Request,
    ctx: Context,
    find: Callable[[], JobRecord | RunRecord],
    bounds: PageBounds,
    *,
    last_event_id: str | None,
) -> Response:
    owner = await anyio.to_thread.run_sync(find)
    if SSE in request.headers.get("accept", ""):
        if bounds.before is not None:
            raise InvalidRequest("a stream has events as they come: `before` is of pages, leave it out", "query/before")
        start = int(last_event_id) if last_event_id else bounds.after
        if last_event_id and owner.state in TERMINAL:
            # The state first, see ``_stream``: there will be no more.
            rows, _ = await anyio.to_thread.run_sync(ctx.queries.events, owner, start, 1)
            if not rows:
                return Response(status_code=204)
        return StreamingResponse(
            _stream(ctx, find, start),
            media_type=SSE,
            # Proxies must pass every event on at once.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    return await anyio.to_thread.run_sync(_page, ctx, owner, bounds)


def _page(ctx: Context, owner: JobRecord | RunRecord, bounds: PageBounds) -> Response:
    """Page of events. Not on the event loop: a thousand events take tens of milliseconds."""
    rows, has_more = ctx.queries.events(owner, bounds.after, bounds.limit, before=bounds.before)
    return page(rows, has_more, show, lambda row: row.seq)


async def _stream(ctx: Context, find: Callable[[], JobRecord | RunRecord], after: int) -> AsyncIterator[bytes]:
    """Events later than ``after`` in the wire format."""
    event_feed, keep_alive_s = ctx.event_feed, ctx.settings.keep_alive_s
    # ``sent`` is the last event of this stream; up to ``after`` there is none that was not sent.
    sent, sent_s = after, time.monotonic()
    async with event_feed.followed():
        while not ctx.closing.is_set():
            head = event_feed.head
            try:
                # The state first: reports of a job that has ended are not stored, so the events read next are all.
                owner = await anyio.to_thread.run_sync(find)
                rows, has_more = await anyio.to_thread.run_sync(ctx.queries.events, owner, after, CATCH_UP)
            except NotFound:
                # It had ended and was deleted; a client that comes back gets 404.
                return
            except SQLAlchemyError:
                # What it misses now, it gets when the database is back; the feed, which cannot read either, says so.
                yield KEEPALIVE_COMMENT
                await event_feed.wait(keep_alive_s)
                continue
            # Its end may be among these, and is looked for here again and again, come what may.
            looks_again = False
            if rows:
                after = rows[-1].seq
            for event_frame in EventFrame.all_of(rows):
                sent = event_frame.seq
                looks_again |= event_frame.ends(owner)
                yield event_frame.frame
            # A stream may last for days, and would keep its last page as long.
            del rows
            if has_more:
                continue
            if owner.state in TERMINAL:
                yield _done(owner.state, sent)
                return
            after = max(after, head)
            while not looks_again and not ctx.closing.is_set() and (news := event_feed.later(after)) is not None:
                for event_frame in news:
                    after = event_frame.seq
                    if owner.id in (event_frame.job_id, event_frame.run_id):
                        sent, sent_s = after, time.monotonic()
                        looks_again |= event_frame.ends(owner)
                        yield event_frame.frame
                if not news:
                    await event_feed.wait(sent_s + keep_alive_s - time.monotonic())
                if time.monotonic() - sent_s >= keep_alive_s:
                    sent_s, looks_again = time.monotonic(), True
                    yield KEEPALIVE_COMMENT


def _done(state: State, after: int) -> bytes:
    return format_sse_event(data_str=f'{{"state":"{state}"}}', event="done", id=str(after))
