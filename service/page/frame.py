"""Frame of every view: its URL, title and navigation, its problems as text.

A view is a coroutine that builds its elements; its other parameters are those of its path and query::

    @view("/caches", "Caches")
    async def caches(api: ViewerApi, q: str = "") -> None:
        ...

An ``ApiProblem`` that it raises is shown in its place; one of a missing or revoked key leads to the log-in.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import structlog
from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from nicegui import ui

from service.page.elements import problem_card
from service.page.paths import LOGOUT_PATH, SESSION_KEY, THEME_COOKIE, THEME_PATH, login_url
from service.page.viewer import NOT_FOUND, ApiProblem, ViewerApi

ASSETS = Path(__file__).parent / "assets"
FAVICON = ASSETS / "favicon.svg"
_STYLES = (ASSETS / "page.css").read_text()
_SCRIPT = f"<script>{(ASSETS / 'page.js').read_text()}</script>"
# Sections of the navigation, in its order: path, name, icon.
SECTIONS = (
    ("/jobs", "Jobs", "list"),
    ("/new", "New job", "add_circle"),
    ("/temperatures", "Temperatures", "thermostat"),
    ("/caches", "Caches", "storage"),
    ("/teachers", "Teachers", "school"),
    ("/datasets", "Datasets", "photo_library"),
    ("/student-files", "Student files", "hub"),
)
_THEMES = {"auto": ("dark", "brightness_auto"), "dark": ("light", "dark_mode"), "light": ("auto", "light_mode")}
_UNAUTHORIZED = 401
log = structlog.get_logger("service.page.frame")
# NiceGUI cancels a view that is not built after it, unless that has awaited ``client.connected()`` before it reads on.
_RESPONSE_TIMEOUT_S = 30.0
_View = Callable[..., Awaitable[None]]


def view(path: str, title: str) -> Callable[[_View], _View]:
    """Register a view of the page at a path.

    Args:
        path: with parameters in braces, as FastAPI has them; its first segment is one of ``paths``.
        title: of the document, and its heading unless the view sets another one with ``heading``.
    """

    def register(build: _View) -> _View:
        given = list(inspect.signature(build).parameters.values())[1:]

        async def answer(request: Request, **values: object) -> Response | None:
            api = ViewerApi(request)
            with _frame(request, title):
                try:
                    await build(api, **values)
                except ApiProblem as problem:
                    if problem.status == _UNAUTHORIZED:
                        return RedirectResponse(login_url(request), 303)
                    if problem.status == NOT_FOUND:
                        ui.context.client.status_code = NOT_FOUND
                    problem_card(problem)
                except Exception:
                    log.exception("view cannot be built", path=path)
                    problem_card(
                        ApiProblem(500, {"title": "Internal error", "detail": "the log of the service says why"})
                    )
            return None

        functools.update_wrapper(answer, build)
        request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
        keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in given]
        answer.__signature__ = inspect.Signature([request, *keyword_only])  # type: ignore[attr-defined]
        ui.page(path, title=f"{title} · Retort", response_timeout=_RESPONSE_TIMEOUT_S)(answer)
        return build

    return register


def _frame(request: Request, title: str) -> ui.element:
    """Build header and navigation; return the element of the view's own."""
    theme = request.cookies.get(THEME_COOKIE, "auto")
    ui.dark_mode({"auto": None, "dark": True, "light": False}.get(theme))
    ui.colors(primary="#0072B2", secondary="#56B4E9", accent="#CC79A7", positive="#007A58", negative="#B84F00")
    ui.add_css(_STYLES)
    ui.add_body_html(_SCRIPT)
    ui.link("Skip to the content", "#main").classes("skip-link")
    with ui.header(elevated=False).classes("page-header").props("aria-label='Page header'"):
        ui.link("Retort", "/jobs").classes("brand")
        with ui.element("nav").props("aria-label=Sections").classes("sections"):
            for path, name, icon in SECTIONS:
                is_here = request.url.path == path or request.url.path.startswith(f"{path}/")
                with ui.link(target=path).classes("section" + (" here" if is_here else "")) as link:
                    ui.icon(icon).props("aria-hidden=true")
                    ui.label(name).classes("section-name")
                link.props(f"aria-label='{name}'" + (" aria-current=page" if is_here else ""))
        ui.space()
        _, icon = _THEMES.get(theme, _THEMES["auto"])
        following = _THEMES.get(theme, _THEMES["auto"])[0]
        with ui.link(target=f"{THEME_PATH}?theme={following}&next={quote(request.url.path, safe='')}") as toggle:
            ui.icon(icon).props("aria-hidden=true")
        toggle.props(f"aria-label='Colours: {theme}. Change to {following}'").classes("header-link")
        with ui.link(target="/docs").props("aria-label='API documentation'").classes("header-link"):
            ui.icon("api").props("aria-hidden=true")
        if request.session.get(SESSION_KEY):
            with ui.link(target=LOGOUT_PATH).props("aria-label='Log out'").classes("header-link"):
                ui.icon("logout").props("aria-hidden=true")
    # Quasar's page around it is the <main>.
    main = ui.element("div").props("id=main tabindex=-1").classes("view")
    with main:
        heading(title)
    return main


def heading(text: str) -> None:
    """Set the heading of the view, in place of its title: the name of what it shows."""
    main = ui.context.slot.parent
    old = next((child for child in main if "page-heading" in child.classes), None)
    if old is None:
        ui.label(text).classes("page-heading").props("role=heading aria-level=1")
    elif isinstance(old, ui.label):
        old.set_text(text)
