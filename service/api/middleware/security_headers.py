"""Security headers: a Content-Security-Policy on every HTML answer limits what a page may load and run.

The API's own pages are FastAPI's about it, which load their programs from this service and have scripts inside them.
Each of these is allowed by its SHA-256, taken from the pages as FastAPI makes them; from other hosts nothing is loaded,
and nothing is sent to them. The web page brings a policy of its own. Any other HTML may load and run nothing.
"""

import base64
import hashlib
import re
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.paths import DOCS_PATH, REDOC_PATH

POLICY_HEADER = "Content-Security-Policy"
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_SCRIPT = re.compile(r'<script(?: src="(?P<source>[^"]+)")?>(?P<text>.*?)</script>', re.DOTALL)
# Both pages set styles from their scripts; ReDoc has fonts, a logo and a worker of its own.
_BESIDE_SCRIPTS = (
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; img-src 'self' data:; connect-src 'self'; "
    "worker-src blob:"
)


def policies_of(app: FastAPI) -> dict[str, str]:
    """Policy of each page that FastAPI serves for an application, by its path."""
    address, redirect = str(app.openapi_url), str(app.swagger_ui_oauth2_redirect_url)
    pages = {
        DOCS_PATH: get_swagger_ui_html(
            openapi_url=address, title=f"{app.title} - Swagger UI", oauth2_redirect_url=redirect
        ),
        REDOC_PATH: get_redoc_html(openapi_url=address, title=f"{app.title} - ReDoc"),
        redirect: get_swagger_ui_oauth2_redirect_html(),
    }
    return {path: _policy(bytes(page.body).decode()) for path, page in pages.items()}


def _policy(html: str) -> str:
    allowed = [
        "'self'"
        if found["source"]
        else f"'sha256-{base64.b64encode(hashlib.sha256(found['text'].encode()).digest()).decode()}'"
        for found in _SCRIPT.finditer(html)
    ]
    return f"{_NOTHING}; script-src {' '.join(allowed)}; {_BESIDE_SCRIPTS}"


class PagePolicy:
    """Middleware that gives HTML answers the policy of their path, or one that allows nothing.

    Args:
        policies: by path.
    """

    def __init__(self, app: ASGIApp, policies: Mapping[str, str]) -> None:
        self.app = app
        self._policies = policies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the policy to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault(POLICY_HEADER, self._policies.get(scope["path"], _NOTHING))
            await send(message)

        await self.app(scope, receive, send_with_policy)
