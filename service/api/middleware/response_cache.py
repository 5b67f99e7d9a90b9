"""Response cache: documents made from the database alone, kept while what they are made of is unchanged.

Clients poll, and most of what they are given is what they, or the one before, were given. An answer is kept under the
version of its source that was read before it was made, and is given again only under the version that is read after
the request has come: a client that has written something, or was notified of it, sees it. The source of a job's
documents is the job with its runs, of which a small table counts the changes; that of lists, events and metrics is the
whole database. Requests for the same document at the same version wait for one answer.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.security import SecurityScopes
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import authorize, scopes_of
from service.api.event_feed import SSE
from service.api.middleware.etags import SHA256
from service.db.ids import is_id
from service.db.queries.version import DATABASE, DatabaseVersion, DocumentSource, SourceKind, Version
from service.paths import DATABASE_ROUTES

KEPT_BYTES_MAX = 8 << 20
# What an answer takes beside its body: headers, key, path parameters.
_EXTRA_BYTES = 2048
# A group for each route, so that a match tells its kind.
_CACHED = re.compile("|".join("(" + re.sub(r"{\w+}", "[^/]+", route) + ")" for route in DATABASE_ROUTES))
_KINDS = [SourceKind(kind) for kind in DATABASE_ROUTES.values()]
_SOURCES = {SourceKind.DATABASE: DATABASE, SourceKind.JOBS: DocumentSource(SourceKind.JOBS)}
# A request with one of these is answered by its route: it has a body, or its meaning depends on the header.
_BYPASS = frozenset({b"content-length", b"transfer-encoding", b"last-event-id"})
# What routing has found out, for logs and metrics.
_ROUTING = ("route", "endpoint", "path_params")
# Path, query, Accept.
_Key = tuple[str, bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Answer:
    """Answer with status 200, whole, and what routing had put into the scope of its request."""

    headers: list[tuple[bytes, bytes]]
    body: bytes
    sha256: bytes
    routing: Mapping[str, Any]


@dataclass(slots=True)
class _Kept:
    """Answer that is kept or being made (None if there is none after all), the version of its source, its size."""

    version: Version
    answer: asyncio.Future[_Answer | None]
    size_bytes: int = 0


class ResponseCache:
    """Middleware that answers GET for documents of ``DATABASE_ROUTES`` from memory.

    Everybody who may read is given the same documents, so the caller is no part of the key. Needs a request that
    ``middleware.admission.AdmissionMiddleware`` has let pass. Beyond ``KEPT_BYTES_MAX`` what was asked for
    longest ago goes.

    Args:
        version: of the database from which the routes read.
    """

    def __init__(self, app: ASGIApp, version: DatabaseVersion) -> None:
        self.app = app
        self._version = version
        # The one that was asked for last is the last.
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._kept_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from memory, or pass the request on."""
        source = _source_of(scope)
        key = None if source is None else _key_of(scope)
        version = None if source is None or key is None else await self._version.read(source)
        if key is None or version is None:
            await self.app(scope, receive, send)
            return
        kept = self._kept.get(key)
        if kept is None or kept.version != version:
            self._forget(key)
            await self._answer_first(key, version, scope, receive=receive, send=send)
            return
        self._kept.move_to_end(key)
        answer = kept.answer.result() if kept.answer.done() else await asyncio.shield(kept.answer)
        if answer is None:
            await self.app(scope, receive, send)
            return
        scope.update(answer.routing)
        await authorize(Request(scope), SecurityScopes(scopes_of(scope["route"])), None)
        scope["state"][SHA256] = answer.sha256
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer_first(self, key: _Key, version: Version, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route answer, for this request and for those that wait for the same."""
        shared: asyncio.Future[_Answer | None] = asyncio.get_running_loop().create_future()
        kept = self._kept[key] = _Kept(version, shared)
        headers: list[tuple[bytes, bytes]] = []
        is_whole = False

        async def send_and_share(message: Message) -> None:
            nonlocal headers, is_whole
            if message["type"] == "http.response.start":
                is_whole = message["status"] == 200
                # Those outside add their own to the list that they are given.
                headers = list(message["headers"])
            elif is_whole and not shared.done() and not message.get("more_body", False):
                body = message.get("body", b"")
                digest = scope["state"][SHA256] = hashlib.sha256(body).digest()
                # Before it is sent: this client may read slowly, and the others need not wait for it.
                shared.set_result(_Answer(headers, body, digest, {name: scope[name] for name in _ROUTING}))
                self._make_room(key, kept, len(body))
            else:
                is_whole = False
            await send(message)

        try:
            await self.app(scope, receive, send_and_share)
        finally:
            if not shared.done():
                shared.set_result(None)
                if self._kept.get(key) is kept:
                    self._forget(key)

    def _make_room(self, key: _Key, kept: _Kept, size_bytes: int) -> None:
        """Keep an answer that fits, unless another one is made already, and forget older ones for it."""
        if self._kept.get(key) is not kept:
            return
        kept.size_bytes = size_bytes + _EXTRA_BYTES + sum(map(len, key))
        self._kept_bytes += kept.size_bytes
        if kept.size_bytes > KEPT_BYTES_MAX:
            self._forget(key)
        while self._kept_bytes > KEPT_BYTES_MAX:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._kept_bytes -= kept.size_bytes


def _source_of(scope: Scope) -> DocumentSource | None:
    """Rows that an answer is made of; None where it may not be kept."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    path: str = scope["path"]
    found = _CACHED.fullmatch(path)
    if found is None or found.lastindex is None:
        return None
    kind = _KINDS[found.lastindex - 1]
    if kind in _SOURCES:
        return _SOURCES[kind]
    id = path.split("/")[3]
    return DocumentSource(kind, id) if is_id(id) else None


def _key_of(scope: Scope) -> _Key | None:
    """Key under which an answer may be kept; None where it may not."""
    accept = b""
    for name, value in scope["headers"]:
        if name in _BYPASS:
            return None
        if name == b"accept":
            accept = accept + b"," + value
    return None if SSE.encode() in accept else (scope["path"], scope["query_string"], accept)
