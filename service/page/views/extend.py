"""More epochs for a run that has succeeded, as a new job."""

from nicegui import ui

from service.page.elements import facts
from service.page.forms.number_field import number_field
from service.page.forms.preview import HttpExample, columns
from service.page.forms.request_form import RequestForm
from service.page.forms.schema_form import SchemaForm
from service.page.frame import heading, view
from service.page.job.words import restart_words
from service.page.texts import count
from service.page.viewer import Document, ViewerApi, resource


@view("/runs/{run_id}/extend", "More epochs")
async def extend(api: ViewerApi, run_id: str) -> None:
    """Build the form of more epochs for a run."""
    run = await api.get(resource("runs", run_id))
    job = await api.get(f"/v1/jobs/{run['job_id']}")
    heading(f"More epochs for {run['name']}")
    training = job["plan"]["training"]
    with facts() as fact:
        fact("Run", lambda: ui.link(run["name"], f"/runs/{run['id']}"))
        fact("Epochs", f"{count(run['epoch'])} of {count(run['epochs'])}")
        fact("Schedule", _schedule_words(training))
        fact("Checkpoint", "kept" if training.get("keep_checkpoint") else "not kept: keep_checkpoint is off")
    if not training.get("keep_checkpoint"):
        ui.label(
            "A run goes on from its last checkpoint, which is kept where the job's training says keep_checkpoint. "
            "Post a job of more epochs instead: its caches are there."
        ).classes("warning")
        ui.link("This job, but ...", f"/new?job={run['job_id']}").classes("button-link")
    await _form(api, run)


def _schedule_words(training: Document) -> str:
    """Schedule that a run has ended with: that of its last warm restart, where there was one."""
    if restarts := training.get("restarts"):
        return f"a warm restart {restart_words(restarts[-1])}"
    return str(training["schedule"]["kind"])


async def _form(api: ViewerApi, run: Document) -> None:
    schemas = (await api.get("/openapi.json"))["components"]["schemas"]
    extension = schemas["ExtensionRequest"]
    schema = {**extension["properties"]["epochs"], "exclusiveMinimum": run["epoch"]}
    path = f"/v1/runs/{run['id']}/extend"
    place, beside = columns()
    with beside:
        example = HttpExample(path)
    with place:
        form = RequestForm({"epochs": 2 * run["epoch"]}, example.show)
        label = f"Epochs in all, the {count(run['epoch'])} that it has included"
        number_field(label, schema, form.document["epochs"], lambda epochs: form.set("epochs", epochs), step=1)
        ui.label(
            "A new job goes on where the run ended, and ends as a run of as many epochs from the start would, or is "
            "refused. The run stays as it is."
        ).classes("muted")

        def change(given: Document) -> None:
            for name in ("learning_rate", "schedule"):
                form.set(name, given.get(name))

        SchemaForm(extension, schemas, {}, change, left_out=frozenset({"epochs"}))
        ui.label(
            "With a learning rate the added epochs are a warm restart from it, and the schedule is theirs alone: a run "
            "of any schedule goes on so. Without one, the schedule is that of all epochs, and only steps can go on. "
            "If no schedule is chosen, it is the run's own."
        ).classes("muted")
        form.button("Train on", icon="forward", api=api, path=path, leads_to="/jobs/{id}".format_map)
    example.show(form.document)
