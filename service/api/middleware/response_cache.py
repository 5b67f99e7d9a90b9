"""Response cache: documents made from the database alone, kept while the database is unchanged.

Clients poll, and most of what they are given is what the one before was given. An answer is kept under the version of
the database that was read before it was made, and is given again only under the version that is read after the request
has come: a client that has written something, or was notified of it, sees it. Requests for the same document at the
same version wait for one answer. Any commit drops all that is kept.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.security import SecurityScopes
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import authorize, scopes_of
from service.api.event_feed import SSE
from service.api.middleware.etags import SHA256
from service.db.version import DatabaseVersion, Version
from service.paths import DATABASE_ROUTES

KEPT_BYTES_MAX = 8 << 20
# What an answer takes beside its body: headers, key, path parameters.
_EXTRA_BYTES = 2048
_CACHED = re.compile("|".join(re.sub(r"{\w+}", "[^/]+", route) for route in sorted(DATABASE_ROUTES)))
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


class ResponseCache:
    """Middleware that answers GET for documents of ``DATABASE_ROUTES`` from memory.

    Everybody who may read is given the same documents, so the caller is no part of the key. Needs a request that
    ``middleware.AdmissionMiddleware`` has let pass.

    Args:
        version: of the database from which the routes read.
    """

    def __init__(self, app: ASGIApp, version: DatabaseVersion) -> None:
        self.app = app
        self._version = version
        self._kept_at: Version | None = None
        self._kept: dict[_Key, asyncio.Future[_Answer | None]] = {}
        self._kept_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from memory, or pass the request on."""
        key = _key_of(scope)
        version = None if key is None else await self._version.read()
        if key is None or version is None:
            await self.app(scope, receive, send)
            return
        if version != self._kept_at:
            self._kept_at, self._kept, self._kept_bytes = version, {}, 0
        kept = self._kept.get(key)
        if kept is None:
            await self._answer_first(key, scope, receive, send)
            return
        answer = kept.result() if kept.done() else await asyncio.shield(kept)
        if answer is None:
            await self.app(scope, receive, send)
            return
        scope.update(answer.routing)
        await authorize(Request(scope), SecurityScopes(scopes_of(scope["route"])), None)
        scope["state"][SHA256] = answer.sha256
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer_first(self, key: _Key, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route answer, for this request and for those that wait for the same."""
        kept = self._kept
        shared: asyncio.Future[_Answer | None] = asyncio.get_running_loop().create_future()
        kept[key] = shared
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
                self._make_room(kept, key, len(body))
            else:
                is_whole = False
            await send(message)

        try:
            await self.app(scope, receive, send_and_share)
        finally:
            if not shared.done():
                shared.set_result(None)
                kept.pop(key, None)

    def _make_room(self, kept: dict[_Key, asyncio.Future[_Answer | None]], key: _Key, size_bytes: int) -> None:
        """Keep an answer if there is room for it, and if no commit has dropped it meanwhile."""
        if kept is not self._kept:
            return
        size_bytes += _EXTRA_BYTES + sum(map(len, key))
        self._kept_bytes += size_bytes
        if self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= size_bytes
            del kept[key]


def _key_of(scope: Scope) -> _Key | None:
    """Key under which an answer may be kept; None where it may not."""
    if scope["type"] != "http" or scope["method"] != "GET" or _CACHED.fullmatch(scope["path"]) is None:
        return None
    accept = b""
    for name, value in scope["headers"]:
        if name in _BYPASS:
            return None
        if name == b"accept":
            accept = accept + b"," + value
    return None if SSE.encode() in accept else (scope["path"], scope["query_string"], accept)
