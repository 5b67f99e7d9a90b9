"""Admission of requests: who calls, how often and how much at once, decided before a body is read."""

from contextlib import ExitStack

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import identify
from service.api.connections import IS_SPARE
from service.api.event_feed import SSE
from service.api.middleware.request_context import client_address
from service.api.problems import problem_response
from service.api.rate_limits import ConcurrencyLimit, RateLimit, address_group
from service.db.keys.api_keys import KeyRing
from service.db.keys.scopes import Caller
from service.errors import ForeignOrigin, NoRoom, ServiceError
from service.page.paths import is_page_path
from service.paths import API_PREFIX, HEALTH_PATHS, UPLOAD_PATHS


class AdmissionMiddleware:
    """Middleware that identifies the caller, applies the limits of rate and concurrency, and refuses requests unread.

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
        """Admit or refuse the request; needs the request id of ``RequestContext``."""
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
        """Wrap ``send`` to end a stream once its caller is no longer known, as if its client had left."""
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
        """Identify the caller and enter its limits.

        Raises:
            NoRoom, TooManyRequests: the limits.
            Unauthorized, ForeignOrigin: as ``identify``, for a path of the API.
        """
        state = request.state
        state.caller = state.refusal = None
        if IS_SPARE in request.scope["state"]:
            raise NoRoom("as many connections are open as this service takes, this one is for health checks alone")
        try:
            caller = state.caller = await identify(request, self._ring)
        except ServiceError as error:
            state.refusal = error
            name = address_group(client_address(request.scope))
        else:
            # Those without an id of their own: the key file's by name, a service without keys by address.
            name = caller.key_id or caller.name or address_group(client_address(request.scope))
        state.name = name
        self._rate.take(name)
        path = request.url.path
        is_foreign_page = isinstance(state.refusal, ForeignOrigin) and is_page_path(path)
        if state.refusal is not None and (is_foreign_page or path.startswith(f"{API_PREFIX}/")):
            raise state.refusal
        held.enter_context(self._requests.held(name))
        if _wants_stream(request):
            held.enter_context(self._streams.held(name))
        if request.method == "POST" and request.url.path in UPLOAD_PATHS:
            held.enter_context(self._uploads.held(name))


def _wants_stream(request: Request) -> bool:
    return SSE in request.headers.get("accept", "")
