"""What happens around every request: an id, a log line, a limit on its body, and an answer to the unforeseen.

Plain ASGI, because a stream must pass through untouched.
"""

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TooLarge
from service.problems import problem_response
from service.tables import new_id

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = structlog.get_logger("service.http")


class RequestContext:
    """Gives each request its id, in its state, its log lines and its response; logs its end."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None
        started_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("client left", method=scope["method"], path=scope["path"])
            except Exception as error:
                log.exception("unforeseen error", method=scope["method"], path=scope["path"])
                if status is not None:
                    raise
                response = problem_response(Request(scope), error)
                await response(scope, receive, send_with_id)
            finally:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.monotonic() - started_s, 4),
                    client=(scope.get("client") or ("unknown",))[0],
                )


class BodyLimit:
    """Ends the reading of a body that is larger than its limit, as announced or as it comes.

    Args:
        default_bytes: for every path but those of ``paths_bytes``.
        paths_bytes: limits of single paths.
    """

    def __init__(self, app: ASGIApp, default_bytes: int, paths_bytes: dict[str, int]) -> None:
        self.app = app
        self.default_bytes = default_bytes
        self.paths_bytes = paths_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; ``TooLarge`` is raised where the body is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit_bytes = self.paths_bytes.get(scope["path"], self.default_bytes)
        announced = Headers(scope=scope).get("content-length", "")
        announced_bytes = int(announced) if announced.isdecimal() else 0
        received_bytes = 0

        async def receive_some() -> Message:
            nonlocal received_bytes
            if announced_bytes <= limit_bytes:
                message = await receive()
                received_bytes += len(message.get("body", b""))
                if received_bytes <= limit_bytes:
                    return message
            size = f"{announced_bytes}" if announced_bytes else "more"
            raise TooLarge(f"the body has {size} bytes, at most {limit_bytes} are allowed here")

        await self.app(scope, receive_some, send)


def _request_id(headers: Headers) -> str:
    """The client's own id if it is harmless, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")
