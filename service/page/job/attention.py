"""List of the runs that need attention, above everything else of a job's view; each can be stopped from it."""

from nicegui import ui

from service.page.elements import attempt, confirm
from service.page.job.actions import allowed
from service.page.job.measures import RunCurve
from service.page.job.page import JobPage

SHOWN_MAX = 5
# A page of thousands of elements is slow.
ALL_MAX = 200


def show_attention(page: JobPage) -> None:
    """Build the list; it follows the runs, and is not there while all is well."""
    with ui.element("section").classes("attention").props("aria-label='Runs that need attention'") as section:
        title = ui.label().classes("attention-title").props("role=heading aria-level=2")
        rows = ui.element("ul").classes("attention-rows")
        more = ui.button(on_click=lambda: show_all()).props("flat dense no-caps")
    shown: list[tuple[str, str, str]] = []
    limit = [SHOWN_MAX]

    async def show_all() -> None:
        limit[0] = ALL_MAX
        await update(True)

    async def update(_: bool) -> None:
        found = [(run, page.complaints[run.id]) for run in page.store.runs.values() if run.id in page.complaints]
        now = [(run.id, run.state, words) for run, words in found[: limit[0]]]
        section.set_visibility(bool(found))
        title.set_text(f"{len(found)} {'run needs' if len(found) == 1 else 'runs need'} attention")
        more.set_text(f"Show all {len(found)}")
        more.set_visibility(len(found) > limit[0])
        if now == shown:
            return
        shown[:] = now
        rows.clear()
        with rows:
            for run, words in found[: limit[0]]:
                _row(page, run, words)

    section.set_visibility(False)
    page.head.append(update)


def _row(page: JobPage, run: RunCurve, words: str) -> None:
    async def stop() -> None:
        text = "It ends within a batch and keeps its last checkpoint, from which a retry goes on."
        # The row, its slot with it, may be gone before the answer is there.
        with ui.context.client.content:
            if await confirm(f"Stop {run.name}?", text, "Stop") and await attempt(
                page.api.post(f"/v1/runs/{run.id}/cancel"), "Stopping"
            ):
                await page.refresh()

    with ui.element("li"):
        ui.icon("warning").props("aria-hidden=true").classes("warning-icon")
        ui.link(run.name, f"/runs/{run.id}")
        ui.label(words)
        if allowed(run.state, "cancel"):
            button = ui.button("Stop", icon="stop", on_click=stop)
            button.props("no-caps outline dense color=negative padding='2px 8px' data-action=stop-run")
