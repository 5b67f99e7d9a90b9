"""What happens around every request: an id, log lines, who calls and how often, limits of its body, an answer to the
unforeseen.

Plain ASGI, because a stream must pass through untouched.
"""

import re
import time
from contextlib import ExitStack

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import SAFE_METHODS, identify
from service.api.bodies import thread_of
from service.api.deadlines import BodyDeadline, Pace
from service.api.inbound import IS_SPARE
from service.api.problems import problem_response
from service.api.rate_limits import SSE, ConcurrencyLimit, RateLimit, address_group, check_depth
from service.db.api_keys import KeyRing
from service.db.ids import new_id
from service.db.scopes import Caller
from service.errors import NoRoom, ServiceError, SlowBody, TooLarge
from service.paths import API_PREFIX, HEALTH_PATHS, POLLED_PATHS, UPLOAD_PATH, route_of

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOGGED_CHARS = 200
log = structlog.get_logger("service.http")
audit = structlog.get_logger("service.audit")


class RequestContext:
    """Gives each request its id, in its state, its log lines and its response; logs its end.

    What might change something is logged once more as ``audit``: who, what, to which object, with what end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
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
                tell = log.debug if scope["path"] in POLLED_PATHS and status == 200 else log.info
                tell(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.monotonic() - started_s, 4),
                    client=_address(scope),
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
    """Answers HEAD as GET, without the body; a stream or a download ends where its body would begin.

    ``Range`` is dropped: it is defined for GET alone (RFC 9110, 14.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
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


class AdmissionMiddleware:
    """Finds out who calls and how often, and turns away at once, unread, what must not go on.

    The state of a request that goes on has its ``caller``, and the ``refusal`` that ``auth.authorize`` raises where the
    caller may not; outside of the API's own paths that may be no hindrance. Health is open to all, at any rate.
    A stream whose key is revoked ends where the next event or comment would come.

    Args:
        ring: whom keys belong to.
        rate: of each key, or address without a key.
        requests, streams, uploads: that each may have open.
    """

    def __init__(
        self,
        app: ASGIApp,
        ring: KeyRing,
        rate: RateLimit,
        requests: ConcurrencyLimit,
        streams: ConcurrencyLimit,
        uploads: ConcurrencyLimit,
    ) -> None:
        self.app = app
        self._ring = ring
        self._rate = rate
        self._requests = requests
        self._streams = streams
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; needs the request id of ``RequestContext``."""
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        with ExitStack() as held:
            try:
                await self._admit(request, held)
            except Exception as error:
                response = problem_response(request, error)
                await response(scope, receive, send)
                return
            caller: Caller | None = request.state.caller
            if caller is not None and _wants_stream(request):
                send = self._while_known(caller, send)
            await self.app(scope, receive, send)

    def _while_known(self, caller: Caller, send: Send) -> Send:
        """Ends a stream once its caller is no longer known; to the application it is as if its client had left."""
        has_ended = False

        async def send_some(message: Message) -> None:
            nonlocal has_ended
            if has_ended:
                raise ClientDisconnect
            if message.get("more_body", False) and not await self._ring.knows(caller):
                has_ended = True
                message = {"type": "http.response.body"}
            await send(message)

        return send_some

    async def _admit(self, request: Request, held: ExitStack) -> None:
        """Raises NoRoom, TooManyRequests, and for a path of the API what ``identify`` does."""
        state = request.state
        state.caller = state.refusal = None
        if IS_SPARE in request.scope["state"]:
            raise NoRoom("as many connections are open as this service takes, this one is for health checks alone")
        try:
            caller = state.caller = await identify(request, self._ring)
        except ServiceError as error:
            state.refusal = error
            name = address_group(_address(request.scope))
        else:
            # Those without an id of their own: the key file's by name, a service without keys by address.
            name = caller.key_id or caller.name or address_group(_address(request.scope))
        state.name = name
        self._rate.take(name)
        if state.refusal is not None and request.url.path.startswith(f"{API_PREFIX}/"):
            raise state.refusal
        held.enter_context(self._requests.held(name))
        if _wants_stream(request):
            held.enter_context(self._streams.held(name))
        if request.method == "POST" and request.url.path == UPLOAD_PATH:
            held.enter_context(self._uploads.held(name))


class BodyLimit:
    """Ends the reading of a body that is too large, as announced or as it comes, too slow, or nested too deep.

    Args:
        default: limit in bytes and pace, for every path but those of ``paths``.
        paths: those of single paths, whose bodies are no JSON.
    """

    def __init__(self, app: ASGIApp, default: tuple[int, Pace], paths: dict[str, tuple[int, Pace]]) -> None:
        self.app = app
        self.default = default
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; ``TooLarge``, ``SlowBody`` and what ``check_depth`` raises are raised where the body is
        read. Where none is asked for, a stream may have begun: it ends as if its client had left."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit_bytes, pace = self.paths.get(scope["path"], self.default)
        announced = Headers(scope=scope).get("content-length", "")
        announced_bytes = int(announced) if announced.isdecimal() else 0
        is_json = scope["path"] not in self.paths
        deadline: BodyDeadline | None = BodyDeadline(pace)
        received_bytes = 0
        text = bytearray()

        async def receive_some() -> Message:
            nonlocal received_bytes, deadline
            if announced_bytes <= limit_bytes:
                try:
                    message = await (deadline.next(receive) if deadline is not None else receive())
                except SlowBody:
                    if scope["method"] in SAFE_METHODS:
                        return {"type": "http.disconnect"}
                    raise
                if not message.get("more_body", False):
                    deadline = None
                body = message.get("body", b"")
                received_bytes += len(body)
                if received_bytes <= limit_bytes:
                    # What is not of the body says that the client has left, which a stream waits for.
                    if is_json and message["type"] == "http.request":
                        text.extend(body)
                        if not message.get("more_body", False):
                            await thread_of(scope).run(check_depth, bytes(text))
                    return message
            size = f"{announced_bytes}" if announced_bytes else "more"
            raise TooLarge(f"the body has {size} bytes, at most {limit_bytes} are allowed here")

        await self.app(scope, receive_some, send)


def _wants_stream(request: Request) -> bool:
    return SSE in request.headers.get("accept", "")


def _request_id(headers: Headers) -> str:
    """The client's own id if it is harmless, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")


def _address(scope: Scope) -> str:
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else "unknown"


def _object_id(scope: Scope, location: str) -> str | None:
    """What a request is about: the first id in its path, or that of what it has made."""
    ids = [*scope.get("path_params", {}).values(), location.rpartition("/")[2]]
    return next((id[:_LOGGED_CHARS] for id in ids if id), None)
