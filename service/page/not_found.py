"""Answer to a browser that asks for a page that there is not: HTML with the navigation, without NiceGUI and its state.

Programs, which do not ask for HTML, and the paths of the API get the API's problem.
"""

import html
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.page.frame import SECTIONS
from service.page.paths import is_page_path
from service.page.viewer import NOT_FOUND
from service.paths import API_PREFIX

_DOCUMENT = (Path(__file__).parent / "assets" / "not_found.html").read_text()
_LINKS = "".join(f'<a href="{path}">{name}</a>' for path, name, _ in SECTIONS)
_SHOWN_CHARS = 200


def is_lost(scope: Scope) -> bool:
    """Whether a browser asks for a document at a path that is neither the page's nor below the API's.

    One that ends in a slash is left to the router, which leads to the path without it.
    """
    path = scope["path"]
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or not path.startswith("/") or path[-1] == "/":
        return False
    is_of_api = path == API_PREFIX or path.startswith(f"{API_PREFIX}/")
    return not is_of_api and not is_page_path(path) and _wants_html(scope)


def _wants_html(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def register(app: FastAPI) -> None:
    """Answer what the page's application has no route for."""
    app.add_exception_handler(NOT_FOUND, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not _wants_html(request.scope):
        return await http_exception_handler(request, error)
    path = html.escape(request.url.path[:_SHOWN_CHARS])
    return HTMLResponse(_DOCUMENT.replace("{sections}", _LINKS).replace("{path}", path), NOT_FOUND)
