"""Mount of the page in the application of the API: NiceGUI's application behind all routes, for its own paths alone."""

import logging

from fastapi import FastAPI
from nicegui import app as page_app
from nicegui import core, ui
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.page import login, not_found
from service.page.frame import FAVICON
from service.page.not_found import is_lost
from service.page.paths import is_page_path, login_url, needs_key
from service.page.viewer import API_STATE
from service.page.views import register_all

# Vue compiles the templates of NiceGUI's components in the browser ('unsafe-eval'), and its document has scripts and
# styles of its own that change with every page ('unsafe-inline'). Nothing is loaded from, or sent to, another host.
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; connect-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; manifest-src 'self'; worker-src 'self' blob:"
)
# A page that is left open over a night's sleep, or a restart of a proxy, goes on where it was.
RECONNECT_S = 30.0


class PageMount(Mount):
    """Mount at ``/`` of the page's paths, and for browsers that are lost: an unknown path of the API stays its 404."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a path of the page, or none that a browser asks for."""
        return super().matches(scope) if is_page_path(scope["path"]) or is_lost(scope) else (Match.NONE, {})


class PageGate:
    """Middleware in front of NiceGUI: whoever has no key is led to the log-in; documents get their security policy.

    NiceGUI keeps something for every view that it builds, so none is built for those without a key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the policy to its answer."""
        is_http = scope["type"] == "http"
        is_refused = is_http and scope["state"].get("refusal") is not None
        if is_refused and is_page_path(scope["path"]) and needs_key(scope["path"]):
            await RedirectResponse(login_url(Request(scope)), 303)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"same-origin"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        # A copy: the page's application puts itself into the scope, and those outside look for theirs there.
        await self.app({**scope}, receive, send_with_policy if is_http else send)


def mount_page(app: FastAPI) -> None:
    """Serve the page's paths from an application, whose API its views call. Once in a process."""
    setattr(page_app.state, API_STATE, app)
    # The API logs each of these requests itself.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    register_all()
    login.register(page_app)
    not_found.register(page_app)
    core.app.config.socket_io_js_transports = ["websocket"]
    # Long polling would pass by the checks and limits of sockets.
    core.sio.eio.transports = ["websocket"]
    ui.run_with(
        app,
        title="Retort",
        favicon=FAVICON,
        dark=None,
        language="en-US",
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=RECONNECT_S,
        show_welcome_message=False,
    )
    # ``run_with`` has mounted it for every path.
    mounted = app.routes[-1]
    app.routes[-1] = PageMount("/", app=PageGate(mounted.app))  # type: ignore[attr-defined]
