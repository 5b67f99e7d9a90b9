"""Table of a job's runs: state, progress, device, accuracy so far, and what is wrong with them; paged by the API."""

from collections.abc import Mapping

from nicegui import ui

from service.client.kept_metrics import kept_top1
from service.page.elements import column, table
from service.page.job.health import sparkline
from service.page.job.measures import RunCurve
from service.page.job.page import JobPage
from service.page.job.words import NOTHING, eta_words, percent
from service.page.viewer import Document
from workers.texts import shortened

PAGE_ROWS = 25
DEFAULTS = {"after": ""}
_COLUMNS = (
    column("name", "Run"),
    column("state", "State", kind="state"),
    column("epoch", "Epoch", align="right"),
    column("top1", "Top-1", align="right"),
    column("spark", "Top-1 over epochs"),
    column("loss", "Loss now", align="right"),
    column("words", "Says"),
    column("device", "Device"),
    column("attempt", "Attempt", align="right"),
)


async def show_runs(page: JobPage) -> None:
    """Build the table of runs; it follows them. Raises Problem."""
    listeners = page.listeners
    found = await _read(page)
    shown = table(_COLUMNS, _rows(page, found), title="Runs of the job").classes("runs-table")
    with ui.element("div").classes("links"):
        if page.url["after"]:
            ui.link("First runs", f"{page.url.url.partition('?')[0]}?tab=runs")
        if found["has_more"]:
            ui.link(f"Next {PAGE_ROWS} runs", f"{page.url.url.partition('?')[0]}?tab=runs&after={found['last_id']}")
    tags: list[str | None] = [None]

    async def follow(_: bool) -> None:
        # Progress inside an epoch is no change of a curve.
        response = await page.api.request("GET", f"{page.path}/runs", params=_params(page))
        if response.headers.get("etag") != tags[0]:
            tags[0] = response.headers.get("etag")
            rows = _rows(page, response.json())
            if rows != shown.rows:
                shown.rows = rows

    listeners.append(follow)


def _params(page: JobPage) -> dict[str, str | int]:
    return {"limit": PAGE_ROWS, "after": page.url["after"]}


async def _read(page: JobPage) -> Document:
    return await page.api.get(f"{page.path}/runs", _params(page))


def _rows(page: JobPage, found: Document) -> list[Document]:
    return [run_row(run, page.store.runs.get(run["id"]), page.complaints) for run in found["data"]]


def run_row(run: Document, curve: RunCurve | None, complaints: Mapping[str, str]) -> Document:
    """Row of a run's document, with its accuracy over epochs and what is wrong with it, where that is known."""
    metrics, progress, result = run["metrics"] or {}, run["progress"] or {}, run["result"] or {}
    inside = f", {100 * progress['step'] // progress['steps']} % of the next" if progress.get("steps") else ""
    loss = progress.get("loss", metrics.get("train_loss"))
    problem = run["error"] or run["set_aside"] or {}
    warning = f"⚠ {complaints[run['id']]}" if run["id"] in complaints else ""
    said = ": ".join(part for part in (warning, problem.get("message", "")) if part)
    return {
        "id": run["id"],
        "url": f"/runs/{run['id']}",
        "name": run["name"],
        "state": run["state"],
        "epoch": f"{run['epoch']} of {run['epochs']}{inside}",
        "top1": percent(kept_top1(metrics, result)),
        "spark": sparkline(curve) if curve else "",
        "loss": NOTHING if loss is None else f"{loss:.3f}",
        "device": shortened((result.get("environment") or {}).get("device_name") or NOTHING, 40),
        "attempt": run["attempt"],
        "words": shortened(said or run["waits_for"] or eta_words(run), 300),
    }
