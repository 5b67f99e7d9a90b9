"""State of a run's view: the run's document, and the parts of the view that follow it."""

from nicegui import ui

from service.page.elements import local_time, set_state, state_badge
from service.page.frame import heading
from service.page.job.actions import action_buttons, delete_run
from service.page.job.followed import FollowedPage
from service.page.job.health import is_live
from service.page.job.url_state import UrlState
from service.page.job.words import NOTHING, eta_words, restart_words
from service.page.viewer import Document, ViewerApi


class RunPage(FollowedPage):
    """Run that is shown.

    Args:
        run: its document.
        job: the document of its job.
    """

    def __init__(self, api: ViewerApi, run: Document, job: Document, url: UrlState) -> None:
        super().__init__(api, url)
        self.run = run
        self.job = job

    @property
    def path(self) -> str:
        """Path of the run in the API."""
        return f"/v1/runs/{self.run['id']}"

    @property
    def is_live(self) -> bool:
        """Whether the run has not ended."""
        return is_live(self.run["state"])

    @property
    def is_first_due(self) -> bool:
        """Whether the run trains its first epoch."""
        return bool(self.run["state"] == "running" and self.run["epoch"] == 0)

    async def look(self) -> bool:
        """Read the run; return whether it has changed. Raises Problem."""
        before = self.run
        self.run = await self.api.get(self.path)
        return before != self.run


def show_run_head(page: RunPage) -> None:
    """Build state, actions and facts of a run; they follow it."""
    run = page.run
    heading(run["name"])
    with ui.element("div").classes("job-head"):
        badge = state_badge(run["state"])
        show_actions = action_buttons(page.api, page.path, run["name"], page.refresh)
        delete = ui.button("Delete", icon="delete", on_click=lambda: delete_run(page.api, page.run))
        delete.props("no-caps outline dense padding='4px 10px' color=negative data-action=delete")
        more = ui.link("More epochs", f"/runs/{run['id']}/extend").classes("button-link")
        ui.link(f"Job: {page.job['name'] or page.job['id']}", f"/jobs/{run['job_id']}?tab=runs")
        ui.link("Gallery of its pictures", f"/gallery?run={run['id']}")
    bar = ui.linear_progress(0.0, show_value=False, size="8px").props("aria-label='Epochs that have ended'")
    words = ui.label().props("aria-live=polite")
    with ui.element("section").classes("problem").props("role=alert") as section:
        error = ui.label()
    with ui.element("div").classes("facts"):
        for label, value in (("Student", run["student"]), ("Method", run["method"]), ("Seed", str(run["seed"]))):
            ui.label(label)
            ui.label(value)
        if restarts := page.job["plan"].get("training", {}).get("restarts"):
            ui.label("Warm restarts")
            with ui.element("div"):
                for restart in restarts:
                    ui.label(restart_words(restart))
        ui.label("Device")
        device = ui.label()
        ui.label("Created, started, ended")
        times = ui.element("div").classes("links")
        if run["retry_of"]:
            ui.label("Tries again")
            ui.link(run["retry_of"], f"/runs/{run['retry_of']}")

    async def update(_: bool) -> None:
        now = page.run
        set_state(badge, now["state"])
        show_actions(now["state"], now["state"] in ("failed", "cancelled"))
        delete.set_visibility(not is_live(now["state"]))
        more.set_visibility(now["state"] == "succeeded")
        bar.set_value(_fraction(now))
        bar.set_visibility(is_live(now["state"]))
        words.set_text(progress_words(now))
        problem = now["error"] or now["set_aside"]
        error.set_text(problem["message"] if problem else "")
        section.set_visibility(problem is not None)
        device.set_text(((now["result"] or {}).get("environment") or {}).get("device_name") or NOTHING)
        if shown != [now["started_at"], now["finished_at"]]:
            shown[:] = [now["started_at"], now["finished_at"]]
            times.clear()
            with times:
                for name in ("created_at", "started_at", "finished_at"):
                    local_time(now[name])

    shown: list[object] = [NOTHING]
    page.head.append(update)


def _fraction(run: Document) -> float:
    progress = run["progress"] or {}
    inside = progress["step"] / progress["steps"] if progress.get("steps") else 0.0
    return float(min(1.0, (run["epoch"] + inside) / max(1, run["epochs"])))


def progress_words(run: Document) -> str:
    """Epochs of a run, its progress in the present one, and how long it may still take."""
    parts = [f"{run['epoch']} of {run['epochs']} epochs"]
    progress = run["progress"] or {}
    if progress.get("steps"):
        parts.append(f"step {progress['step']} of {progress['steps']} of the next")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("images_per_s"):
        parts.append(f"{progress['images_per_s']:,.0f} pictures/s")
    parts += [text for text in (eta_words(run), run["waits_for"]) if text]
    if run["attempt"] > 1:
        parts.append(f"attempt {run['attempt']}")
    return " · ".join(parts)
