"""View of one job: its head, and tabs of curves, results, figures, runs and events."""

import json

from nicegui import ui

from service.page.elements import copyable, poll
from service.page.frame import view
from service.page.job import curves, results, run_choice, runs, scatter
from service.page.job.attention import show_attention
from service.page.job.curves import show_curves
from service.page.job.events import EventList
from service.page.job.followed import LIVE_S
from service.page.job.head import show_head
from service.page.job.page import JobPage
from service.page.job.results import show_results
from service.page.job.run_choice import show_evaluations
from service.page.job.runs import show_runs
from service.page.job.scatter import show_scatter
from service.page.job.tabs import show_tabs
from service.page.job.url_state import UrlState
from service.page.viewer import ViewerApi, resource

_DEFAULTS = {
    "tab": "curves",
    **curves.DEFAULTS,
    **results.DEFAULTS,
    **scatter.DEFAULTS,
    **run_choice.DEFAULTS,
    **runs.DEFAULTS,
    "before": "0",
}


# Runs whose curves are read before anything is shown.
_AT_ONCE = 60


@view("/jobs/{job_id}", "Job")
async def job(api: ViewerApi, job_id: str) -> None:
    """Build the view of a job."""
    document = await api.get(resource("jobs", job_id))
    given = dict(ui.context.client.request.query_params)
    page = JobPage(api, document, UrlState(f"/jobs/{document['id']}", given, _DEFAULTS))
    ui.page_title(f"{document['name'] or document['id']} · Retort")
    await show_head(page)
    show_attention(page)
    if len(document["run_ids"]) > _AT_ONCE:
        # The head is shown before curves are read, which takes a while.
        reading = ui.label(f"Reading the curves of {len(document['run_ids'])} runs ...")
        await ui.context.client.connected()
        await page.read_curves()
        reading.delete()
    else:
        await page.read_curves()
    for listener in page.head:
        await listener(True)
    tabs = {
        "curves": ("Curves", lambda: show_curves(page)),
        "results": ("Results", lambda: show_results(page)),
        "scatter": ("Scatter", lambda: show_scatter(page)),
        "evaluation": ("Calibration and classes", lambda: show_evaluations(page)),
        "runs": ("Runs", lambda: show_runs(page)),
        "events": ("Events", lambda: _show_events(page)),
        "request": ("Request", lambda: _show_request(page)),
    }
    await show_tabs(page.url, tabs, page.leave_tab)
    page.timer = poll(LIVE_S, page.refresh)


async def _show_events(page: JobPage) -> None:
    listeners = page.listeners
    names = {run.id: run.name for run in page.store.runs.values()}
    events = EventList(page.api, page.path, int(page.url.number("before", 0, 2.0**53)), names)
    await events.build(f"/jobs/{page.job['id']}?tab=events")
    listeners.append(events.follow)


async def _show_request(page: JobPage) -> None:
    ui.label("The job as it was posted, every default filled in.")
    copyable(json.dumps(page.job["plan"], indent=2, ensure_ascii=False), "json")
