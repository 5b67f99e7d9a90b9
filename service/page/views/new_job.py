"""New job: the form, what it would cost, its JSON and the ``curl`` line; also "this job, but ..."."""

import json
import shlex
from typing import Any

from nicegui import ui

from service.page.cost import show_cost
from service.page.elements import copyable, notify_problem, problem_card, section_heading
from service.page.frame import view
from service.page.job_form import Catalog, JobForm, expression_method
from service.page.texts import count
from service.page.viewer import ApiProblem, Document, ViewerApi, resource

# After the last change; the viewer goes on typing.
_DRY_RUN_AFTER_S = 0.6
# Where no dataset has a name, the form asks for the path of a folder of pictures; until it has one, none is chosen.
_FOLDER: Document = {"kind": "folder"}
# Of a job's document, what makes another job like it.
_COPIED = ("name", "teacher", "tags", "note", "priority", "parallel_runs")
_EXAMPLE: Document = {"students": ["resnet8"], "methods": ["ce", "kd"], "training": {"epochs": 20}}


@view("/new", "New job")
async def new_job(api: ViewerApi, job: str = "", teacher: str = "", dataset: str = "", expression: str = "") -> None:
    """Build the form of a job, from an old one, a teacher or a dataset where one is given."""
    catalog = await Catalog.load(api)
    document = request_like(await api.get(resource("jobs", job))) if job else dict(_EXAMPLE)
    has_teachers = "teachers" in document or "caches" in document
    if not has_teachers and (teacher or len(catalog.teachers) == 1):
        document.setdefault("teacher", teacher or catalog.teachers[0]["id"])
    if dataset:
        document["dataset"] = dataset
    elif not catalog.datasets:
        document.setdefault("dataset", _FOLDER)
    if expression:
        document["methods"] = [*document.get("methods", []), expression_method(expression, "mine")]
    if job:
        ui.label("Change what should differ from this job:").classes("muted")
        ui.link(str(document.get("name") or job), f"/jobs/{job}").classes("muted")
    with ui.element("div").classes("two-columns"):
        with ui.element("div").classes("form"):
            place = ui.element("div").classes("form")
        with ui.element("div").classes("preview"):
            preview = Preview(api)
    with place:
        form = JobForm(catalog, document, preview.show)

    async def submit() -> None:
        if unreadable := form.unreadable():
            ui.notify(f"Nothing was started. {'; '.join(unreadable)}", type="negative", multi_line=True, timeout=9000)
            return
        try:
            posted = await api.post("/v1/jobs", form.document)
        except ApiProblem as problem:
            notify_problem(problem)
            return
        ui.navigate.to(f"/jobs/{posted['id']}")

    with place:
        ui.button("Start the job", icon="play_arrow", on_click=submit).props("no-caps size=lg")
    preview.show(form.document)


def request_like(old: Document) -> Document:
    """Request that makes a job like another one, by that one's document."""
    plan: dict[str, Any] = dict(old.get("plan") or {})
    # Said by the service alone: a job of as many epochs from the start is like it.
    plan.pop("extends", None)
    recipe = plan.pop("recipe", None)
    if isinstance(recipe, dict):
        plan["recipe"] = recipe["name"]
    copied = {**plan, **{name: old[name] for name in _COPIED if old.get(name)}}
    if len(old["teachers"]) > 1:
        copied.pop("teacher", None)
        names = ("id", "caches", "weight")
        copied["teachers"] = [{name: each[name] for name in names if each[name]} for each in old["teachers"]]
    elif old["teachers"][0]["caches"]:
        copied["caches"] = old["teachers"][0]["caches"]
    return copied


class Preview:
    """Preview of a job beside its form: what a dry run says, the JSON, the ``curl`` line."""

    def __init__(self, api: ViewerApi) -> None:
        self._api = api
        self._document: Document = {}
        section_heading("Before it starts")
        self._answer = ui.element("div").props("aria-live=polite")
        with self._answer:
            ui.label("What it does and costs is being asked for ...").classes("muted")
        section_heading("The same by HTTP")
        self._json = copyable("", language="json")
        self._curl = copyable("")
        self._timer: ui.timer | None = None

    def show(self, document: Document) -> None:
        """Show the JSON of a document, and ask for its dry run a moment later."""
        self._document = document
        self._json.set_content(json.dumps(document, indent=2, ensure_ascii=False))
        self._curl.set_content(_curl(document))
        if self._timer is not None:
            self._timer.cancel()
        with self._answer:
            self._timer = ui.timer(_DRY_RUN_AFTER_S, self._ask, once=True)

    async def _ask(self) -> None:
        has_teacher = any(self._document.get(name) for name in ("teacher", "teachers", "caches"))
        if not has_teacher or self._document.get("dataset") in (None, _FOLDER):
            self._answer.clear()
            with self._answer:
                ui.label("Choose a teacher and a dataset.").classes("muted")
            return
        try:
            found = await self._api.post("/v1/jobs", self._document, params={"dry_run": True})
        except ApiProblem as problem:
            self._answer.clear()
            with self._answer:
                problem_card(problem)
            return
        self._answer.clear()
        with self._answer:
            _dry_run(found)


def _dry_run(found: Document) -> None:
    """Show what a job would do and cost."""
    runs = found.get("runs") or []
    ui.label(f"{count(len(runs))} runs").classes("section-heading")
    if found.get("cost"):
        show_cost(found["cost"])
    for warning in found.get("warnings") or []:
        text = warning if isinstance(warning, str) else warning.get("message") or json.dumps(warning)
        ui.label(str(text)).classes("warning")


def _curl(document: Document) -> str:
    address = "$RETORT_URL/v1/jobs"
    body = json.dumps(document, ensure_ascii=False)
    return f'curl {address} -H "Authorization: Bearer $KEY" --json {shlex.quote(body)}'
