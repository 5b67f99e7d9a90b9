"""Tab of a job with the final evaluation of one run, which is chosen there."""

from nicegui import ui

from service.page.elements import Newest, attempt, empty_state
from service.page.job.evaluation import read_evaluation, show_evaluation
from service.page.job.page import JobPage

DEFAULTS = {"run": "", "on": "test"}
SPLITS = ("test", "validation")


async def show_evaluations(page: JobPage) -> None:
    """Build the choice of a run that has succeeded, and its figures. Raises Problem."""
    if not page.store.is_read:
        await page.store.update()
    names = {run.id: run.name for run in page.store.runs.values() if run.state == "succeeded"}
    if not names:
        empty_state("No run has succeeded yet.", "Come back when one has: it is evaluated at its end.")
        return
    first = page.url["run"] if page.url["run"] in names else next(iter(names))
    with ui.element("div").classes("controls"):
        chosen = ui.select(names, label="Run", value=first, with_input=True)
        chosen.props("outlined dense options-dense").classes("control-wide")
        split = ui.toggle(list(SPLITS), value=page.url.choice("on", SPLITS))
        split.props("no-caps dense unelevated aria-label=Split")
        link = ui.link("Open this run", f"/runs/{first}")
    content = ui.element("div").classes("tab-content")

    newest = Newest(content)

    async def draw() -> None:
        run_id = str(chosen.value)
        evaluation = await newest.of(read_evaluation(page.api, run_id))
        if evaluation is None:
            return
        link.props(f"href=/runs/{run_id}")
        content.clear()
        with content:
            show_evaluation(evaluation, str(split.value), page.job.get("teacher_metrics"))

    async def choose() -> None:
        if chosen.value in names:
            page.url.set(run=str(chosen.value), on=str(split.value))
            await attempt(draw())

    chosen.on_value_change(choose)
    split.on_value_change(choose)
    await draw()
