"""Head of a job's view: state, progress, actions, labels, links, times, errors, and runs that need attention."""

from collections.abc import Callable
from contextlib import suppress

from nicegui import ui

from service.page.elements import local_time, set_state, state_badge
from service.page.frame import heading
from service.page.job.actions import action_buttons, delete_job, toggle_pin
from service.page.job.health import is_live
from service.page.job.labels import edit_labels, show_labels
from service.page.job.page import JobPage
from service.page.job.words import NOTHING, ended_runs, eta_words, fraction_done, inference_words, webhook_words
from service.page.viewer import ApiProblem, Document

_RETRIED = ("failed", "cancelled")


async def show_head(page: JobPage) -> None:
    """Build the head; it follows the job."""
    main = ui.context.slot.parent
    with ui.element("div").classes("job-head"):
        badge = state_badge(page.job["state"])
        badge.props("data-part=job-state")
        update_buttons = _buttons(page)
    update_labels = show_labels(page.job)
    update_progress = _progress()
    await _facts(page)

    async def update(_: bool) -> None:
        with main:
            heading(page.job["name"] or page.job["id"])
        set_state(badge, page.job["state"])
        update_buttons(page.job)
        update_labels(page.job)
        update_progress(page.job)

    page.head.append(update)
    await update(True)


def _buttons(page: JobPage) -> Callable[[Document], None]:
    show_actions = action_buttons(page.api, page.path, "the job", page.refresh)
    pin = ui.button("Pin", icon="push_pin", on_click=lambda: toggle_pin(page.api, page.job, page.refresh))
    delete = ui.button("Delete", icon="delete", on_click=lambda: delete_job(page.api, page.job))
    for button in (pin, delete):
        button.props("no-caps outline dense padding='4px 10px'")
    delete.props("color=negative")
    edit = ui.button(
        "Name, tags, note", icon="edit", on_click=lambda: edit_labels(page.api, page.job["id"], page.refresh)
    )
    edit.props("no-caps outline dense padding='4px 10px'")
    plan = page.job["plan"]
    if not plan.get("extends") and not plan.get("evaluate"):
        ui.link("Add runs", f"/jobs/{page.job['id']}/add-runs").classes("button-link")
    ui.link("This job, but ...", f"/new?job={page.job['id']}").classes("button-link")
    ui.link("Temperatures", f"/temperatures?job={page.job['id']}").classes("button-link")

    def update(job: Document) -> None:
        runs = job["progress"]["runs"]
        is_over = not is_live(job["state"])
        show_actions(job["state"], is_over and any(runs[state] for state in _RETRIED))
        pin.set_text("Unpin" if job["pinned"] else "Pin")
        delete.set_visibility(is_over and not job["pinned"])

    return update


def _progress() -> Callable[[Document], None]:
    bar = ui.linear_progress(0.0, show_value=False, size="8px").props("aria-label='Runs that have ended'")
    words = ui.label().props("aria-live=polite").classes("progress-words")
    with ui.element("section").classes("problem").props("role=alert") as section:
        error = ui.label()

    def update(job: Document) -> None:
        bar.set_value(fraction_done(job))
        bar.set_visibility(is_live(job["state"]))
        live = (job["stage"], inference_words(job), eta_words(job), job["waits_for"]) if is_live(job["state"]) else ()
        words.set_text(" · ".join(part for part in (ended_runs(job), *live) if part))
        problem = job["error"] or job["set_aside"]
        error.set_text(problem["message"] if problem else "")
        section.set_visibility(problem is not None)

    return update


async def _facts(page: JobPage) -> None:
    """Build links and numbers of the job. Those that change while it runs follow it."""
    with ui.element("div").classes("facts job-facts"):
        ui.label("Teacher")
        with ui.element("div").classes("links"):
            for each in page.job["teachers"]:
                if each["caches"]:
                    ui.link(f"imported: {each['name']}", f"/caches/{each['caches']['train']}")
                    continue
                id = each["id"] or page.job["teacher"]
                ui.link(await _teacher_name(page, id), f"/teachers/{id}")
        ui.label("Dataset")
        dataset = ui.element("div")
        ui.label("Caches")
        caches = ui.element("div").classes("links")
        ui.label("Created, started, ended")
        times = ui.element("div").classes("links")
        ui.label("Teacher's forward passes")
        forwards = ui.label()
        if page.job["webhook"]:
            ui.label("Webhook")
            webhook = ui.label()
        if page.job["retry_of"]:
            ui.label("Tries again")
            ui.link(page.job["retry_of"], f"/jobs/{page.job['retry_of']}")
    shown: list[object] = []

    async def update(_: bool) -> None:
        job = page.job
        counted = job["teacher_forwards"]
        forwards.set_text(f"{counted['run']:,} run, {counted['avoided']:,} avoided" if counted else NOTHING)
        if job["webhook"]:
            webhook.set_text(webhook_words(job["webhook"]))
        now = [job["caches"], job["started_at"], job["finished_at"]]
        if shown != now:
            shown[:] = now
            _show_times(times, job)
            _show_caches(caches, job["caches"])
            await _show_dataset(dataset, page)

    page.head.append(update)
    await update(True)


async def _teacher_name(page: JobPage, id: str) -> str:
    try:
        teacher = await page.api.get(f"/v1/teachers/{id}")
    except ApiProblem:
        # Deleted: its jobs stay.
        return id
    return str(teacher.get("name") or teacher["id"])


def _show_times(parent: ui.element, job: Document) -> None:
    parent.clear()
    with parent:
        for name in ("created_at", "started_at", "finished_at"):
            local_time(job[name])


def _show_caches(parent: ui.element, caches: dict[str, str] | None) -> None:
    parent.clear()
    with parent:
        if not caches:
            ui.label("none yet")
        for split, key in (caches or {}).items():
            ui.link(f"{split} {key[:12]}", f"/caches/{key}")


async def _show_dataset(parent: ui.element, page: JobPage) -> None:
    """Show the dataset, as a link to its pictures once a cache knows their fingerprint."""
    spec = page.job["plan"]["dataset"]
    name = " ".join(str(spec[part]) for part in ("kind", "path") if spec.get(part))
    caches = page.job["caches"] or {}
    fingerprint = ""
    if key := caches.get("test") or caches.get("validation"):
        # It may have been evicted or deleted since.
        with suppress(ApiProblem):
            fingerprint = (await page.api.get(f"/v1/caches/{key}"))["spec"]["dataset_fingerprint"]
    parent.clear()
    with parent:
        if fingerprint:
            ui.link(name, f"/datasets/{fingerprint}")
        else:
            ui.label(name)
