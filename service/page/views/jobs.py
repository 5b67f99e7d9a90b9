"""List of jobs: filtered and paged by the API, with live states."""

from nicegui import ui

from service.page.elements import column, empty_state, poll, table
from service.page.frame import view
from service.page.viewer import Document, ViewerApi

PAGE_ROWS = 50
_COLUMNS = (
    column("name", "Name"),
    column("state", "State", kind="state"),
    column("runs", "Runs ended", align="right"),
    column("created_at", "Created", kind="time"),
)


@view("/jobs", "Jobs")
async def jobs(api: ViewerApi, after: str = "") -> None:
    """Build the list of jobs."""
    page = await api.get("/v1/jobs", {"limit": PAGE_ROWS, "after": after})
    if not page["data"]:
        empty_state("There is no job yet.", "Make the first one", url="/new")
        return
    shown = table(_COLUMNS, [_row(job) for job in page["data"]], title="Jobs")
    if page["has_more"]:
        ui.link("Older jobs", f"/jobs?after={page['last_id']}")

    async def update() -> None:
        now = await api.get("/v1/jobs", {"limit": PAGE_ROWS, "after": after})
        rows = [_row(job) for job in now["data"]]
        if rows != shown.rows:
            shown.rows = rows

    poll(2.0, update)


def _row(job: Document) -> Document:
    runs = job["progress"]["runs"]
    ended = sum(runs[state] for state in ("succeeded", "failed", "cancelled"))
    return {
        "id": job["id"],
        "name": job["name"] or job["id"],
        "state": job["state"],
        "runs": f"{ended} of {sum(runs.values())}",
        "created_at": job["created_at"],
        "url": f"/jobs/{job['id']}",
    }
