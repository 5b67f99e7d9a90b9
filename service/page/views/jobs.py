"""List of jobs: filtered, sorted and paged by the API, with live states."""

from collections.abc import Mapping
from urllib.parse import urlencode

from nicegui import ui

from service.page.cost import time_left
from service.page.elements import column, empty_state, more_note, poll, table
from service.page.frame import view
from service.page.viewer import Document, Params, ViewerApi

PAGE_ROWS = 50
_REFRESH_S = 2.0
_STATES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
_SORTS = {
    "-created_at": "newest first",
    "created_at": "oldest first",
    "name": "by name",
    "state": "by state",
    "-finished_at": "ended last first",
}
_COLUMNS = (
    column("name", "Name"),
    column("state", "State", kind="state"),
    column("runs", "Runs ended", align="right"),
    column("eta", "Left", align="right"),
    column("forwards", "Forwards avoided", align="right"),
    column("tags", "Tags"),
    column("created_at", "Created", kind="time"),
)


@view("/jobs", "Jobs")
async def jobs(
    api: ViewerApi,
    q: str = "",
    state: str = "",
    tag: str = "",
    teacher: str = "",
    dataset: str = "",
    sort: str = "",
    after: str = "",
) -> None:
    """Build the list of jobs that these filters let through."""
    given = {"q": q, "state": state, "tag": tag, "teacher": teacher, "dataset": dataset, "sort": sort}
    query: Params = {**given, "limit": PAGE_ROWS, "after": after}
    page = await api.get("/v1/jobs", query)
    is_filtered = any((q, state, tag, teacher, dataset, after))
    if not page["data"] and not is_filtered:
        empty_state("There is no job yet.", "Make the first one", url="/new")
        return
    teachers, has_more = await api.list("/v1/teachers")
    _filters(given, {each["id"]: each["name"] for each in teachers})
    more_note("teachers can be chosen", has_more)
    if not page["data"]:
        empty_state("No job is like that.", "Show all jobs", url="/jobs")
        return
    shown = table(_COLUMNS, [_row(job) for job in page["data"]], title="Jobs")
    if page["has_more"]:
        ui.link("More jobs", _address({**given, "after": page["last_id"]}))

    async def update() -> None:
        rows = [_row(job) for job in (await api.get("/v1/jobs", query))["data"]]
        if rows != shown.rows:
            shown.rows = rows

    poll(_REFRESH_S, update)


def _filters(given: Mapping[str, str], teachers: Mapping[str, str]) -> None:
    """Filters of the list: each leads to the address that has it."""

    def lead(name: str, value: str | None) -> None:
        ui.navigate.to(_address({**given, name: value or ""}))

    with ui.element("div").classes("filters").props("role=search"):
        search = ui.input("Search names, notes, tags, ids", value=given["q"]).props("clearable dense type=search")
        search.on("keydown.enter", lambda: lead("q", search.value)).on("clear", lambda: lead("q", ""))
        state = ui.select(["", *_STATES], value=given["state"], label="State").props("dense")
        state.on_value_change(lambda event: lead("state", event.value))
        known = {"": "", **teachers}
        if given["teacher"] not in known:
            known = {**known, given["teacher"]: given["teacher"]}
        teacher = ui.select(known, value=given["teacher"], label="Teacher").props("dense")
        teacher.on_value_change(lambda event: lead("teacher", event.value))
        for name, label in (("tag", "Tag"), ("dataset", "Dataset")):
            text = ui.input(label, value=given[name]).props("clearable dense")
            text.on("keydown.enter", lambda name=name, text=text: lead(name, text.value))
            text.on("clear", lambda name=name: lead(name, ""))
        order = given["sort"] if given["sort"] in _SORTS else "-created_at"
        sort = ui.select(dict(_SORTS), value=order, label="Order").props("dense")
        sort.on_value_change(lambda event: lead("sort", event.value))


def _address(given: Mapping[str, str]) -> str:
    query = urlencode({name: value for name, value in given.items() if value})
    return f"/jobs?{query}" if query else "/jobs"


def _row(job: Document) -> Document:
    runs = job["progress"]["runs"]
    ended = sum(runs[state] for state in ("succeeded", "failed", "cancelled"))
    failed = f", {runs['failed']} failed" if runs["failed"] else ""
    forwards = job.get("teacher_forwards") or {}
    return {
        "id": job["id"],
        "name": job["name"] or job["id"],
        "state": job["state"],
        "runs": f"{ended} of {sum(runs.values())}{failed}",
        "eta": time_left(job),
        "forwards": f"{forwards['avoided']:,}" if forwards.get("avoided") is not None else "–",
        "tags": ", ".join(job.get("tags") or []),
        "created_at": job["created_at"],
        "url": f"/jobs/{job['id']}",
    }
