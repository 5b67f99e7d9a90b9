"""Preview beside a form: what a dry run says of its request, and the same as JSON and as a ``curl`` line."""

import json
import shlex
from collections.abc import Callable

from nicegui import ui

from service.page.cost import show_cost
from service.page.elements import copyable, problem_card, section_heading
from service.page.texts import count
from service.page.viewer import ApiProblem, Document, ViewerApi

# After the last change; the viewer goes on typing.
_DRY_RUN_AFTER_S = 0.6


def columns() -> tuple[ui.element, ui.element]:
    """Places of a form and of what stands beside it; below it on a narrow screen."""
    with ui.element("div").classes("two-columns"):
        form = ui.element("div").classes("form")
        beside = ui.element("div").classes("preview")
    return form, beside


def curl_line(path: str, *arguments: str) -> str:
    """Command that sends a request with these arguments, which are quoted for a shell."""
    quoted = " ".join(each if each.startswith("-") else shlex.quote(each) for each in arguments)
    return f'curl "$RETORT_URL{path}" -H "Authorization: Bearer $KEY" {quoted}'


class HttpExample:
    """The request of a form as JSON, and as a ``curl`` line, to copy.

    Args:
        path: of the request in the API.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        section_heading("The same by HTTP")
        self._json = copyable("", language="json")
        self._curl = copyable("")

    def show(self, document: Document) -> None:
        """Show this body of the request."""
        self._json.set_content(json.dumps(document, indent=2, ensure_ascii=False))
        self._curl.set_content(curl_line(self._path, "--json", json.dumps(document, ensure_ascii=False)))


class Preview:
    """Preview of runs beside their form: what a dry run says, the JSON, the ``curl`` line.

    Args:
        path: of the request in the API, which knows ``dry_run``.
        missing: sentence on what has to be chosen before anything is asked; empty once it is.
    """

    def __init__(self, api: ViewerApi, path: str, missing: Callable[[Document], str]) -> None:
        self._api, self._path, self._missing = api, path, missing
        self._document: Document = {}
        section_heading("Before it starts")
        self._answer = ui.element("div").props("aria-live=polite")
        with self._answer:
            ui.label("What it does and costs is being asked for ...").classes("muted")
        self._example = HttpExample(path)
        self._timer: ui.timer | None = None

    def show(self, document: Document) -> None:
        """Show the JSON of a document, and ask for its dry run a moment later."""
        self._document = document
        self._example.show(document)
        if self._timer is not None:
            self._timer.cancel()
        with self._answer:
            self._timer = ui.timer(_DRY_RUN_AFTER_S, self._ask, once=True)

    async def _ask(self) -> None:
        if missing := self._missing(self._document):
            self._answer.clear()
            with self._answer:
                ui.label(missing).classes("muted")
            return
        try:
            found = await self._api.post(self._path, self._document, params={"dry_run": True})
        except ApiProblem as problem:
            self._answer.clear()
            with self._answer:
                problem_card(problem)
            return
        self._answer.clear()
        with self._answer:
            _dry_run(found)


def _dry_run(found: Document) -> None:
    """Show what runs would do and cost."""
    runs = found.get("runs") or []
    ui.label(f"{count(len(runs))} runs").classes("section-heading")
    if found.get("cost"):
        show_cost(found["cost"])
    for warning in found.get("warnings") or []:
        text = warning if isinstance(warning, str) else warning.get("message") or json.dumps(warning)
        ui.label(str(text)).classes("warning")
