"""New job: the form, what it would cost, its JSON and the ``curl`` line; also "this job, but ..."."""

import json
from typing import Any

from nicegui import ui

from service.page.forms.catalog import OF_JOBS, Catalog
from service.page.forms.job_form import JobForm
from service.page.forms.methods_field import expression_method
from service.page.forms.preview import Preview, columns
from service.page.frame import view
from service.page.viewer import Document, ViewerApi, resource

# Where no dataset has a name, the form asks for the path of a folder of pictures; until it has one, none is chosen.
_FOLDER: Document = {"kind": "folder"}
# Of a job's document, what makes another job like it.
_COPIED = ("name", "teacher", "tags", "note", "priority", "parallel_runs")
_EXAMPLE: Document = {"students": ["resnet8"], "methods": ["ce", "kd"], "training": {"epochs": 20}}


@view("/new", "New job")
async def new_job(
    api: ViewerApi,
    job: str = "",
    teacher: str = "",
    dataset: str = "",
    expression: str = "",
    cache: str = "",
    student_file: str = "",
) -> None:
    """Build the form of a job: from an old one, or with a teacher, dataset, imported logits or a student's upload."""
    catalog = await Catalog.load(api, OF_JOBS)
    document = request_like(await api.get(resource("jobs", job))) if job else dict(_EXAMPLE)
    if cache:
        document |= on_logits(await api.get(resource("caches", cache)))
    if student_file:
        document["students"] = with_file(document, await api.get(resource("student-files", student_file)))
    has_teachers = "teachers" in document or "caches" in document
    teachers = catalog.lists["teachers"]
    if not has_teachers and (teacher or len(teachers) == 1):
        document.setdefault("teacher", teacher or teachers[0]["id"])
    if dataset:
        document["dataset"] = described(dataset)
    elif not catalog.lists["datasets"]:
        document.setdefault("dataset", _FOLDER)
    if expression:
        document["methods"] = [*document.get("methods", []), expression_method(expression, "mine")]
    if job:
        ui.label("Change what should differ from this job:").classes("muted")
        ui.link(str(document.get("name") or job), f"/jobs/{job}").classes("muted")
    place, beside = columns()
    with beside:
        preview = Preview(api, "/v1/jobs", _missing)
    with place:
        form = JobForm(catalog, document, preview.show)
        leads_to = "/jobs/{id}".format_map
        form.button("Start the job", icon="play_arrow", api=api, path="/v1/jobs", leads_to=leads_to)
    preview.show(form.document)


def described(dataset: str) -> str | Document:
    """Dataset of an address: JSON of its description, or its id or name."""
    try:
        found = json.loads(dataset)
    except ValueError:
        return dataset
    return found if isinstance(found, dict) else dataset


def _missing(document: Document) -> str:
    has_teacher = any(document.get(name) for name in ("teacher", "teachers", "caches"))
    is_missing = not has_teacher or document.get("dataset") in (None, _FOLDER)
    return "Choose a teacher and a dataset." if is_missing else ""


def request_like(old: Document) -> Document:
    """Request that makes a job like another one, by that one's document."""
    plan: dict[str, Any] = dict(old.get("plan") or {})
    # Said by the service alone: a job of as many epochs from the start is like it.
    plan.pop("extends", None)
    recipe = plan.pop("recipe", None)
    if isinstance(recipe, dict):
        plan["recipe"] = recipe["name"]
    copied = {**plan, **{name: old[name] for name in _COPIED if old.get(name)}}
    if len(old["teachers"]) > 1:
        copied.pop("teacher", None)
        names = ("id", "caches", "weight")
        copied["teachers"] = [{name: each[name] for name in names if each[name]} for each in old["teachers"]]
    elif old["teachers"][0]["caches"]:
        copied["caches"] = old["teachers"][0]["caches"]
    return copied


def on_logits(cache: Document) -> Document:
    """Fields of a job that learns from the imported logits of a cache; its students see the views that these are of."""
    spec = cache["spec"]
    fields: Document = {"caches": {spec["split"]: cache["key"]}}
    if spec["split"] == "train":
        fields["views"] = {
            "augmentation": spec["augmentation"],
            "count": spec["views"],
            "seed": spec["augmentation_seed"],
        }
    return fields


def with_file(document: Document, file: Document) -> list[Any]:
    """Students of a job with an upload: the program itself, or the first student, which begins with the weights."""
    if file["student"]:
        return [file["student"]]
    first, *others = document["students"]
    name = first if isinstance(first, str) else first["name"]
    return [{"name": name, "init": {"upload": file["id"]}}, *others]
