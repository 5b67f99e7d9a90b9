"""Session middleware of the page: the API key that a viewer has entered is kept in a signed cookie, and sent as theirs.

A browser sends no ``Authorization`` by itself. For the paths of the page this middleware takes the key from the session
(Starlette's, signed by itsdangerous, ``HttpOnly``, ``SameSite=Strict``) and adds the header, so that all that follows
treats a request of the page as one of that key. What a browser loads directly, such as pictures, files and uploads, it
asks for under ``VIEWER_PREFIX`` followed by the path of the API.

A page of another origin has the cookie sent by no browser; beside that, an ``Origin`` that is not the host that was
asked is refused here.
"""

import hashlib
import re
from contextlib import ExitStack
from urllib.parse import urlsplit

from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from service.api.auth import identify
from service.api.connections import IS_SPARE
from service.api.middleware.request_context import client_address
from service.api.problems import problem_response
from service.api.rate_limits import ConcurrencyLimit, address_group
from service.db.ids import new_id
from service.db.keys.api_keys import KeyRing
from service.errors import ForeignOrigin, NoRoom, ServiceError
from service.page.paths import SESSION_COOKIE, SESSION_KEY, VIEWER_PREFIX, is_page_path

SESSION_AGE_S = 14 * 24 * 3600
# Of the API, what a browser may ask for with the key of its session: reading, and the upload of files.
_VIEWED = re.compile(re.escape(VIEWER_PREFIX) + r"(?P<path>/v1/.+)")
_UPLOAD = re.compile(re.escape(VIEWER_PREFIX) + r"/v1/(teachers|caches|student-files)")
# Of WebSocket: policy violation (RFC 6455, 7.4.1).
_POLICY_VIOLATION = 1008


class PageSession:
    """Middleware that gives requests of the page the key of their session; opens no socket without one.

    Args:
        ring: whom keys belong to.
        sockets: that each caller may have open; its streams count among them.
        secret: signs the sessions.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, sockets: ConcurrencyLimit, secret: str) -> None:
        self.app = app
        self._ring = ring
        self._sockets = sockets
        name = SESSION_COOKIE + hashlib.sha256(secret.encode()).hexdigest()[:12]
        self._with_session = {
            is_secure: SessionMiddleware(
                self._answer,
                secret,
                session_cookie=name,
                max_age=SESSION_AGE_S,
                same_site="strict",
                https_only=is_secure,
            )
            for is_secure in (False, True)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its session if it is one of the page."""
        if scope["type"] in ("http", "websocket") and is_page_path(scope["path"]):
            await self._with_session[scope["scheme"] in ("https", "wss")](scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        key = connection.session.get(SESSION_KEY)
        if key is not None:
            others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            scope["headers"] = [*others, (b"authorization", f"Bearer {key}".encode())]
        if scope["type"] == "websocket":
            await self._open_socket(scope, receive, send)
            return
        request = Request(scope)
        try:
            _check_same_origin(request)
        except ForeignOrigin as error:
            # ``RequestContext`` would give it one, inside of here.
            request.state.request_id = new_id("req")
            await problem_response(request, error)(scope, receive, send)
            return
        viewed = _VIEWED.fullmatch(scope["path"])
        may_write = scope["method"] == "POST" and _UPLOAD.fullmatch(scope["path"])
        if viewed and (scope["method"] in ("GET", "HEAD") or may_write):
            scope["path"] = viewed["path"]
            scope["raw_path"] = scope["path"].encode()
        await self.app(scope, receive, send)

    async def _open_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        with ExitStack() as held:
            try:
                _check_same_origin(connection)
                if IS_SPARE in scope.get("state", {}):
                    raise NoRoom("as many connections are open as this service takes")
                caller = await identify(connection, self._ring)
                name = caller.key_id or caller.name or address_group(client_address(scope))
                held.enter_context(self._sockets.held(name))
            except ServiceError as error:
                await WebSocketClose(_POLICY_VIOLATION, str(error)[:100])(scope, receive, send)
                return
            await self.app(scope, receive, send)


def _check_same_origin(connection: HTTPConnection) -> None:
    """Refuse a request that a browser sends for a page of another origin. Raises ForeignOrigin."""
    origin = connection.headers.get("origin")
    host = connection.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        raise ForeignOrigin(f"the origin {origin!r:.200} is not {host!r:.200}, whose page this is: open that address")
