"""Labels of a job, which people may change: its name, tags and note."""

from collections.abc import Callable

from nicegui import ui

from service.page.elements import attempt
from service.page.job.actions import Done
from service.page.viewer import Document, ViewerApi


def show_labels(job: Document) -> Callable[[Document], None]:
    """Build tags and note. Returns a function that shows those of a newer document."""
    with ui.element("div").classes("labels") as labels:
        tags = ui.element("div").classes("tags").props("role=list aria-label=Tags")
        note = ui.label().classes("note")
    shown: list[object] = []

    def update(now: Document) -> None:
        if shown == [now.get("tags"), now.get("note")]:
            return
        shown[:] = [now.get("tags"), now.get("note")]
        tags.clear()
        with tags:
            for tag in now.get("tags") or ():
                ui.label(str(tag)).classes("tag").props("role=listitem")
        note.set_text(str(now.get("note") or ""))
        tags.set_visibility(bool(now.get("tags")))
        note.set_visibility(bool(now.get("note")))
        labels.set_visibility(bool(now.get("tags") or now.get("note")))

    update(job)
    return update


async def edit_labels(api: ViewerApi, job_id: str, done: Done) -> None:
    """Ask for name, tags and note, as they are now, and change what was changed."""
    job = await api.get(f"/v1/jobs/{job_id}")
    with ui.dialog() as dialog, ui.card().classes("dialog-card").props("role=dialog aria-label='Name, tags, note'"):
        ui.label("Name, tags, note").classes("section-heading")
        name = ui.input("Name", value=job["name"]).props("outlined dense autofocus").classes("wide")
        tags = ui.input_chips("Tags: type one, then Enter", value=list(job.get("tags") or ()))
        tags.props("outlined dense new-value-mode=add-unique").classes("wide")
        note = ui.textarea("Note", value=job.get("note") or "").props("outlined dense autogrow").classes("wide")

        async def save() -> None:
            fields = {"name": name.value, "tags": tags.value or [], "note": note.value}
            now = {"name": job["name"], "tags": job.get("tags") or [], "note": job.get("note") or ""}
            changed = {key: value for key, value in fields.items() if value != now[key]}
            if not changed or await attempt(api.patch(f"/v1/jobs/{job_id}", changed), "Saved"):
                dialog.submit(True)

        with ui.row():
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
            ui.button("Save", on_click=save).props("no-caps")
    if await dialog:
        await done()
    dialog.delete()
