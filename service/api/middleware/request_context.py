"""Request context middleware: an id, log lines, the audit log, and an answer to unforeseen errors; HEAD as GET.

Plain ASGI, because a stream must pass through untouched. asgi-correlation-id 5.0 was measured for the ids instead: it
costs the same (0.97 to 1.06 of the CPU time), but its call and options are longer than the code here that they replace.
"""

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import SAFE_METHODS
from service.api.problems import problem_response
from service.db.ids import new_id
from service.db.keys.scopes import Caller
from service.paths import API_PREFIX, POLLED_PATHS, route_of

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOGGED_CHARS = 200
log = structlog.get_logger("service.http")
audit = structlog.get_logger("service.audit")


class RequestContext:
    """Middleware that gives each request an id, in its state, its log lines and its response, and logs its end.

    A request that might change something is logged once more as ``audit``: caller, route, object, status.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with an id, and log its end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status: int | None = None
        location = ""
        started_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status, location
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                location = headers.get("Location", "")
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("client left", method=scope["method"], path=scope["path"])
            except Exception as error:
                if status is not None:
                    log.exception("broken answer", method=scope["method"], path=scope["path"])
                    raise
                response = problem_response(Request(scope), error)
                await response(scope, receive, send_with_id)
            finally:
                caller: Caller | None = state.get("caller")
                key_id = caller.key_id if caller else None
                # What is asked every few seconds, and answered as ever, would drown the rest.
                write_line = log.debug if scope["path"] in POLLED_PATHS and status == 200 else log.info
                write_line(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.monotonic() - started_s, 4),
                    client=client_address(scope),
                    key_id=key_id,
                )
                if scope["method"] not in SAFE_METHODS and scope["path"].startswith(f"{API_PREFIX}/"):
                    audit.info(
                        "audit",
                        key_id=key_id,
                        key_name=caller.name if caller else None,
                        method=scope["method"],
                        route=route_of(scope),
                        object_id=_object_id(scope, location),
                        status=status,
                    )


class HeadRequests:
    """Middleware that answers HEAD as GET, without the body; a stream or a download ends where its body would begin.

    ``Range`` is dropped: it is defined for GET alone (RFC 9110, 14.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass HEAD on as GET, and drop the body of its answer."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
        as_get = {**scope, "method": "GET", "headers": headers}
        has_answered = False

        async def send_head(message: Message) -> None:
            nonlocal has_answered
            if has_answered:
                raise ClientDisconnect
            has_answered = True
            # The route and its parameters, for logs and metrics.
            scope.update({name: value for name, value in as_get.items() if name not in scope})
            await send(message)
            await send({"type": "http.response.body"})

        try:
            await self.app(as_get, receive, send_head)
        except ClientDisconnect:
            if not has_answered:
                raise


def client_address(scope: Scope) -> str:
    """Address of the client; ``unknown`` where the server knows none."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else "unknown"


def _request_id(headers: Headers) -> str:
    """Id that the client has sent if it is harmless, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")


def _object_id(scope: Scope, location: str) -> str | None:
    """Id of the object of a request: the first id in its path, or that of what it has made."""
    ids = [*scope.get("path_params", {}).values(), location.rpartition("/")[2]]
    return next((id[:_LOGGED_CHARS] for id in ids if id), None)
