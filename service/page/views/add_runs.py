"""More runs for a job: further students, methods and seeds, and what they would cost."""

from nicegui import ui

from service.page.forms.catalog import OF_RUNS, Catalog
from service.page.forms.preview import Preview, columns
from service.page.forms.request_form import RunsForm
from service.page.frame import heading, view
from service.page.viewer import Document, ViewerApi, resource


@view("/jobs/{job_id}/add-runs", "Add runs")
async def add_runs(api: ViewerApi, job_id: str) -> None:
    """Build the form of runs that are added to a job."""
    job = await api.get(resource("jobs", job_id))
    name = job["name"] or job["id"]
    heading(f"Add runs to {name}")
    catalog = await Catalog.load(api, OF_RUNS)
    path = f"/v1/jobs/{job['id']}/runs"
    ui.label(
        "Each student is trained by each method from each seed. Dataset, teacher, views and training are the job's."
    ).classes("muted")
    ui.link(name, f"/jobs/{job['id']}?tab=runs").classes("muted")
    place, beside = columns()
    with beside:
        preview = Preview(api, path, _missing)
    with place:
        form = RunsForm(catalog, another_seed(job["plan"]), preview.show)
        leads_to = "/jobs/{id}?tab=runs".format_map
        form.button("Add the runs", icon="playlist_add", api=api, path=path, leads_to=leads_to)
    preview.show(form.document)


def _missing(document: Document) -> str:
    is_whole = document.get("students") and document.get("methods")
    return "" if is_whole else "Choose students and methods."


def another_seed(plan: Document) -> Document:
    """Runs that a job has not: all of its students and methods, with the first seed that none of them has."""
    blocks: list[Document] = [plan, *plan.get("added", ())]
    found: dict[str, list[object]] = {"students": [], "methods": []}
    for field, kept in found.items():
        for each in (_short(each) for block in blocks for each in block[field]):
            if each not in kept:
                kept.append(each)
    return {**found, "seeds": [max(seed for block in blocks for seed in block["seeds"]) + 1]}


def _short(given: object) -> object:
    """A student of which nothing but the name is said, by that alone."""
    return given["name"] if isinstance(given, dict) and set(given) == {"name"} else given
