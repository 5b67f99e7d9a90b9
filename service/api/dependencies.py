"""Dependencies of the routes: the context of an application, paging, documents as JSON."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel

from service.api.auth import is_loopback, load_key_digest
from service.api.connections import Connections, Waits, connections_max
from service.api.event_feed import EventFeed
from service.api.rate_limits import ConcurrencyLimit, KeyedSemaphore, RateLimit
from service.api.schemas.base import Page
from service.db.database import Database
from service.db.deletions.deletion import Deleter
from service.db.engine_queries import EngineQueries
from service.db.keys.api_keys import KeyRing, Keys
from service.db.queries.api_queries import ApiQueries
from service.db.queries.version import DatabaseVersion
from service.db.scheduling.job_control import JobControl
from service.errors import DiskFloor
from service.operations.disk import Freeable
from service.operations.readiness import ReadinessCheck
from service.settings import Settings
from service.webhooks.allowed import AllowedHosts
from store import Catalog

PAGE_DEFAULT = 20
PAGE_MAX = 100
EVENTS_DEFAULT = 100
EVENTS_MAX = 1000
PAGE_BYTES = 4 << 20
# Of uploads, at once, and how many of them may be of one key. Each may use the memory of several copies of its file.
INSPECTIONS_MAX = 2
KEY_INSPECTIONS_MAX = 1
# Requests of one key that read whole caches or datasets, at once; they are answered by 40 threads, as most are.
KEY_HEAVY_MAX = 4

Item = TypeVar("Item")


@dataclass(frozen=True)
class Context:
    """Context of the routes: the parts of the service, assembled once per application.

    Attributes:
        version: of the database; another one after every commit.
        ring: knows who a key belongs to.
        connections: those that are open.
        rate, requests, streams, uploads: what every caller may ask for at once.
        inspections, heavy: the shares that every caller has of the inspections of uploads, and of the threads for what
            takes long.
        event_feed: the newest events, for all streams.
        closing: set when the server begins to shut down; streams end then.
        freeable: what of the disk can be freed, for messages.
        webhook_hosts: where webhooks may be sent to.
    """

    settings: Settings
    database: Database
    version: DatabaseVersion
    records: EngineQueries
    queries: ApiQueries
    job_control: JobControl
    deletion: Deleter
    catalog: Catalog
    keys: Keys
    ring: KeyRing
    connections: Connections
    rate: RateLimit
    requests: ConcurrencyLimit
    streams: ConcurrencyLimit
    uploads: ConcurrencyLimit
    inspections: KeyedSemaphore
    heavy: KeyedSemaphore
    event_feed: EventFeed
    closing: asyncio.Event
    readiness: ReadinessCheck
    freeable: Freeable
    webhook_hosts: AllowedHosts

    @classmethod
    def of(cls, settings: Settings) -> "Context":
        """Assemble the context of a process with these settings. Raises BadKeyFile, InvalidSettings."""
        file_digest = load_key_digest(settings.api_key_file)
        database = Database(settings.database)
        keys = Keys(database)
        queries = ApiQueries(database, settings.key_live_jobs_max)
        closing = asyncio.Event()
        connections = connections_max(settings.connections_max)
        # Half for one address, and for one key half of that: behind a proxy all keys may come from one address.
        of_address = settings.address_connections_max or max(1, connections // 2)
        of_key = settings.open_requests_max or max(1, connections // 4)
        waits = Waits(settings.head_timeout_s, settings.send_stall_s)
        return cls(
            settings=settings,
            database=database,
            version=DatabaseVersion(database),
            records=EngineQueries(database),
            queries=queries,
            job_control=JobControl(database),
            deletion=Deleter(database, settings),
            catalog=Catalog(settings.caches_dir),
            keys=keys,
            ring=KeyRing(keys, file_digest, is_local=is_loopback(settings.host)),
            connections=Connections(connections, of_address, waits),
            rate=RateLimit(settings.requests_per_s, settings.requests_burst),
            requests=ConcurrencyLimit(of_key, "requests", "wait until some have been answered"),
            streams=ConcurrencyLimit(
                settings.streams_max, "event streams", "close one, or follow the job instead of each of its runs"
            ),
            uploads=ConcurrencyLimit(settings.uploads_max, "uploads", "wait until one has been answered"),
            inspections=KeyedSemaphore(KEY_INSPECTIONS_MAX),
            heavy=KeyedSemaphore(KEY_HEAVY_MAX),
            event_feed=EventFeed(queries, settings.event_poll_s, closing),
            closing=closing,
            readiness=ReadinessCheck(database, settings),
            freeable=Freeable(settings, database),
            webhook_hosts=AllowedHosts.of(settings),
        )

    def check_disk(self, needed_bytes: int = 0) -> None:
        """Refuse work that the disk has no room for.

        Args:
            needed_bytes: what the request itself will write.

        Raises:
            DiskFloor: less than ``disk_floor_bytes`` would stay free.
        """
        free_bytes = shutil.disk_usage(self.settings.data_dir).free
        floor_bytes = self.settings.disk_floor_bytes
        if free_bytes - needed_bytes < floor_bytes:
            raise DiskFloor(
                f"{free_bytes} bytes are free where the service keeps its data, this needs {needed_bytes} and "
                f"{floor_bytes} stay in reserve: add space, or free some: {self.freeable.sentence()}"
            )


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(_context)]
"""The type of a route's parameter that receives the context."""


async def _in_turn(request: Request, ctx: Ctx) -> AsyncIterator[None]:
    async with ctx.heavy.held(request.state.name):
        yield


Heavy = Depends(_in_turn)
"""A dependency of routes that take long: those of one key wait for each other, and for no thread meanwhile."""

Id = Annotated[str, Query(max_length=128, pattern=r"^[\x21-\x7e]+$")]
Text = Annotated[str, Query(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
InName = Annotated[Text | None, Query(description="only those whose name holds this, case aside")]
After = Annotated[Id | None, Query(description="the `last_id` of the page before")]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="items of a page")]


async def _whole_list(
    _limit: Annotated[
        int | None, Query(ge=1, le=PAGE_MAX, alias="limit", description="without effect: it is one page")
    ] = None,
) -> None:
    """Accept the parameter that clients send to every list."""


Whole = Depends(_whole_list)
"""A dependency of lists that are not paged."""


def document(shown: BaseModel) -> Response:
    """Response with the JSON of a document. Written at once: FastAPI would check it again, and make objects first."""
    return Response(shown.model_dump_json(), media_type="application/json")


def page(
    rows: Sequence[Item],
    has_more: bool,
    show: Callable[[Item], BaseModel],
    id_of: Callable[[Item], object],
) -> Response:
    """Response with the JSON of a ``Page``, each row as its document; fewer rows if they would be too long.

    Written at once, as ``document``.
    """
    documents: list[bytes] = []
    length = 0
    for row in rows:
        document = show(row).model_dump_json().encode()
        length += len(document)
        if documents and length > PAGE_BYTES:
            has_more = True
            break
        documents.append(document)
    around = Page[None](data=[], has_more=has_more, **ends(rows[: len(documents)], id_of)).model_dump_json().encode()
    before, _, after = around.partition(b"[]")
    return Response(b"".join((before, b"[", b",".join(documents), b"]", after)), media_type="application/json")


def ends(rows: Sequence[Item], id_of: Callable[[Item], object]) -> dict[str, str | None]:
    """Fields ``first_id`` and ``last_id`` of a page of these rows."""
    return {
        "first_id": str(id_of(rows[0])) if rows else None,
        "last_id": str(id_of(rows[-1])) if rows else None,
    }
