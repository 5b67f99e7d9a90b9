"""View of one run: its state and actions, and tabs of curves, evaluation, files, log, events and configuration."""

from nicegui import ui

from service.page.elements import Newest, attempt, poll
from service.page.frame import view
from service.page.job.evaluation import read_evaluation, show_evaluation
from service.page.job.events import EventList
from service.page.job.followed import LIVE_S
from service.page.job.run_page import RunPage, show_run_head
from service.page.job.run_parts import show_config, show_files, show_log, show_run_curves
from service.page.job.tabs import show_tabs
from service.page.job.url_state import UrlState
from service.page.viewer import ViewerApi, resource

_DEFAULTS = {"tab": "curves", "on": "test", "before": "0"}
_SPLITS = ("test", "validation")


@view("/runs/{run_id}", "Run")
async def run(api: ViewerApi, run_id: str) -> None:
    """Build the view of a run."""
    document = await api.get(resource("runs", run_id))
    job = await api.get(f"/v1/jobs/{document['job_id']}")
    given = dict(ui.context.client.request.query_params)
    page = RunPage(api, document, job, UrlState(f"/runs/{document['id']}", given, _DEFAULTS))
    ui.page_title(f"{document['name']} · Retort")
    show_run_head(page)
    tabs = {
        "curves": ("Curves", lambda: show_run_curves(page)),
        "evaluation": ("Calibration and classes", lambda: _show_evaluation(page)),
        "files": ("Files", lambda: show_files(page)),
        "log": ("Log", lambda: show_log(page)),
        "events": ("Events", lambda: _show_events(page)),
        "config": ("Configuration", lambda: show_config(page)),
    }
    await show_tabs(page.url, tabs, page.leave_tab)
    await page.refresh()
    page.timer = poll(LIVE_S, page.refresh)


async def _show_evaluation(page: RunPage) -> None:
    split = ui.toggle(list(_SPLITS), value=page.url.choice("on", _SPLITS))
    split.props("no-caps dense unelevated aria-label=Split")
    content = ui.element("div").classes("tab-content")

    newest = Newest(content)

    async def draw() -> None:
        evaluation = await newest.of(read_evaluation(page.api, page.run["id"]))
        if evaluation is None:
            return
        content.clear()
        with content:
            show_evaluation(evaluation, str(split.value), page.job.get("teacher_metrics"))

    async def choose() -> None:
        page.url.set(on=str(split.value))
        await attempt(draw())

    split.on_value_change(choose)
    await draw()


async def _show_events(page: RunPage) -> None:
    listeners = page.listeners
    before = int(page.url.number("before", 0, 2.0**53))
    events = EventList(page.api, page.path, before, {page.run["id"]: page.run["name"]})
    await events.build(f"/runs/{page.run['id']}?tab=events")
    listeners.append(events.follow)
