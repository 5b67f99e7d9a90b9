"""Log-in and log-out of the page, without NiceGUI: whoever has no key costs the service no state."""

import html
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from service.page.paths import LOGIN_PATH, LOGOUT_PATH, SESSION_KEY, THEME_COOKIE, THEME_PATH
from service.page.viewer import ApiProblem, ViewerApi

_DOCUMENT = (Path(__file__).parent / "assets" / "login.html").read_text()
_KEY_MAX_CHARS = 512
_THEME_AGE_S = 365 * 24 * 3600
_SEE_OTHER = 303
_MARK = re.compile(r"{(next|problem)}")


def register(app: FastAPI) -> None:
    """Add the paths of this module to the page's application."""
    app.get("/", include_in_schema=False)(show_start)
    app.get(LOGIN_PATH, include_in_schema=False)(show_login)
    app.post(LOGIN_PATH, include_in_schema=False)(log_in)
    app.get(LOGOUT_PATH, include_in_schema=False)(log_out)
    app.get(THEME_PATH, include_in_schema=False)(set_theme)


async def show_start() -> Response:
    """Lead from the service's address to its jobs."""
    return RedirectResponse("/jobs", _SEE_OTHER)


async def show_login(next: str = "/") -> Response:
    """Form that asks for an API key."""
    return _form(next, "")


async def log_in(request: Request, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "/") -> Response:
    """Keep a key that the API accepts in the session, and lead to the view that was asked for."""
    if not 0 < len(key) <= _KEY_MAX_CHARS:
        return _form(next, f"an API key has 1 to {_KEY_MAX_CHARS} characters, this has {len(key)}: copy it again", 401)
    request.session[SESSION_KEY] = key.strip()
    try:
        await ViewerApi(request).get("/v1/jobs", {"limit": 1})
    except ApiProblem as problem:
        del request.session[SESSION_KEY]
        return _form(next, str(problem), problem.status)
    except UnicodeEncodeError:
        del request.session[SESSION_KEY]
        return _form(next, "the API key has characters that no key has: copy it again", 401)
    return RedirectResponse(_local(next), _SEE_OTHER)


async def log_out(request: Request) -> Response:
    """Forget the key of the session."""
    request.session.clear()
    return RedirectResponse(LOGIN_PATH, _SEE_OTHER)


async def set_theme(theme: str = "auto", next: str = "/") -> Response:
    """Keep light, dark or automatic colours in a cookie, and lead back."""
    response = RedirectResponse(_local(next), _SEE_OTHER)
    chosen = theme if theme in ("light", "dark") else "auto"
    response.set_cookie(THEME_COOKIE, chosen, max_age=_THEME_AGE_S, httponly=True, samesite="strict")
    return response


def _form(next: str, problem: str, status: int = 200) -> Response:
    shown = f'<p role="alert" class="problem">{html.escape(problem)}</p>' if problem else ""
    values = {"next": html.escape(_local(next)), "problem": shown}
    # In one pass: a value may hold the mark of another.
    return HTMLResponse(_MARK.sub(lambda mark: values[mark[1]], _DOCUMENT), status)


def _local(address: str) -> str:
    """Path and query of an address: a link to the log-in must not lead to another host."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "/"
    path = "/" + parts.path.lstrip("/\\")
    return f"{path}?{parts.query}" if parts.query else path
