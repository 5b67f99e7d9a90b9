"""Teachers: upload of an ONNX classifier, its graph, and how right it is where jobs have measured it."""

import json

from nicegui import ui

from service.page.charts import bars, chart
from service.page.deletion import ask_and_delete
from service.page.elements import column, empty_state, facts, local_time, paged_table, section_heading, table
from service.page.forms.file_upload import FileUpload
from service.page.frame import heading, view
from service.page.texts import count, percent
from service.page.viewer import ApiProblem, Document, ViewerApi, resource
from service.units import size

PAGE_ROWS = 100
_JOBS = 20
_COLUMNS = (
    column("name", "Name"),
    column("classes", "Classes", align="right"),
    column("input", "Input"),
    column("size", "Size", align="right"),
    column("smoke_run", "First run"),
    column("created_at", "Uploaded", kind="time"),
)


@view("/teachers", "Teachers")
async def teachers(api: ViewerApi, after: str = "") -> None:
    """Build the list of teachers and the form to upload one."""
    page = await api.get("/v1/teachers", {"limit": PAGE_ROWS, "after": after})
    if page["data"]:
        paged_table(_COLUMNS, page, _row, title="Teachers", more=("More teachers", "/teachers"))
    else:
        empty_state("There is no teacher yet.", "Upload an ONNX classifier below.")
    _upload_form()


def _row(teacher: Document) -> Document:
    return {
        "id": teacher["id"],
        "name": teacher["name"],
        "classes": teacher["classes"] or "open",
        "input": _shape(teacher["inputs"][0]) if teacher["inputs"] else "",
        "size": size(teacher["size_bytes"]),
        "smoke_run": teacher["smoke_run"],
        "created_at": teacher["created_at"],
        "url": f"/teachers/{teacher['id']}",
    }


def _shape(value: Document) -> str:
    return f"{value['name']} {value['dtype']} [{', '.join(map(str, value['shape']))}]"


def _upload_form() -> None:
    section_heading("Upload a teacher")
    with ui.column().classes("form"):
        ui.label("An ONNX classifier: pictures in, logits out.")
        upload = FileUpload(
            "teacher-file", "ONNX file", accept=".onnx", path="/v1/teachers", command="retort teachers upload FILE"
        )
        name = ui.input("Name (the file's by default)").props("maxlength=128")
        mean = ui.input("Mean of each channel (one: grey), for pictures of 0 to 1", value="0.485, 0.456, 0.406")
        std = ui.input("Standard deviation of each channel", value="0.229, 0.224, 0.225")
        side = ui.number("Side that pictures are resized to, in pixels; empty leaves them", min=1, precision=0)

        def fields() -> dict[str, str]:
            try:
                preprocessing: Document = {"mean": _numbers(mean.value), "std": _numbers(std.value)}
            except ValueError as error:
                text = f"mean and standard deviation are numbers, separated by commas: {error}"
                raise ApiProblem(0, {"title": "Nothing was uploaded", "detail": text}) from error
            if len(preprocessing["mean"]) == 1:
                preprocessing["channels"] = "gray"
            if side.value:
                preprocessing["size"] = [int(side.value)] * 2
            return {"name": name.value, "preprocessing": json.dumps(preprocessing)}

        upload.button(fields, lambda made: ui.navigate.to(f"/teachers/{made['id']}"))


def _numbers(text: str) -> list[float]:
    """Numbers of a text that commas separate. Raises ValueError."""
    return [float(part) for part in text.split(",")]


@view("/teachers/{teacher_id}", "Teacher")
async def teacher(api: ViewerApi, teacher_id: str) -> None:
    """Build the view of one teacher."""
    shown = await api.get(resource("teachers", teacher_id))
    heading(shown["name"])
    with ui.row():
        ui.button(
            "New job with it", icon="add_circle", on_click=lambda: ui.navigate.to(f"/new?teacher={teacher_id}")
        ).props("no-caps")
        _delete_button(api, shown)
    with facts() as fact:
        fact("Id", shown["id"])
        fact("SHA-256", shown["sha256"])
        fact("Size", size(shown["size_bytes"]))
        fact("Inputs", "; ".join(map(_shape, shown["inputs"])))
        fact("Outputs", "; ".join(map(_shape, shown["outputs"])))
        fact("Logits", f"output {shown['output']!r}, {shown['classes'] or 'an open number of'} classes")
        fact("Preprocessing", _preprocessing(shown["preprocessing"]))
        fact("First run in the sandbox", _first_run(shown["smoke_run"]))
        fact("Uploaded", lambda: local_time(shown["created_at"]))
    await _measured(api, shown)


def _preprocessing(given: Document) -> str:
    resized = f"resized to {given['size']}" if given.get("size") else "not resized"
    if given.get("resize"):
        resized = f"resized to {given['resize']}, {given['size']} cut out of the centre"
    if given.get("interpolation"):
        resized = f"{resized} ({given['interpolation']})"
    return f"mean {given['mean']}, std {given['std']}, {given['channels']}, {given['layout']}, {resized}"


def _first_run(state: str) -> str:
    if state == "passed":
        return "passed: it answers pictures with finite logits, alike in batches and alone"
    return f"{state}: the first job runs it on its own pictures before it computes a cache"


def _delete_button(api: ViewerApi, shown: Document) -> None:
    async def delete() -> None:
        path, what = f"/v1/teachers/{shown['id']}", f"the teacher {shown['name']}"
        also = "Its caches stay until they are deleted."
        await ask_and_delete(api, path, what, also=also, leads_to="/teachers")

    ui.button("Delete", icon="delete", on_click=delete, color="negative").props("no-caps outline")


async def _measured(api: ViewerApi, shown: Document) -> None:
    """Accuracy of the teacher on the datasets of its newest jobs, and per class as the newest has measured it."""
    page = await api.get("/v1/jobs", {"teacher": shown["id"], "limit": _JOBS})
    jobs = page["data"]
    section_heading("Jobs with this teacher")
    if not jobs:
        empty_state("No job has measured it yet.", "Make one", url=f"/new?teacher={shown['id']}")
        return
    columns = (
        column("name", "Job"),
        column("state", "State", kind="state"),
        column("test", "Top-1, test", align="right"),
        column("validation", "Top-1, validation", align="right"),
        column("views", "Top-1, training views", align="right"),
        column("ece", "ECE, test", align="right"),
    )
    table(columns, [_job_row(job) for job in jobs], title="Jobs with this teacher")
    if page["has_more"]:
        ui.link("All jobs with this teacher", f"/jobs?teacher={shown['id']}")
    measured = next((job for job in jobs if job.get("teacher_metrics")), None)
    if measured is not None:
        await _per_class(api, measured)


def _job_row(job: Document) -> Document:
    measured = job.get("teacher_metrics") or {}
    test, validation = measured.get("test") or {}, measured.get("validation") or {}
    return {
        "id": job["id"],
        "name": job["name"] or job["id"],
        "state": job["state"],
        "test": percent(test.get("top1")),
        "validation": percent(validation.get("top1")),
        "views": percent(job.get("teacher_views_accuracy")),
        "ece": percent(test.get("ece")),
        "url": f"/jobs/{job['id']}",
    }


async def _per_class(api: ViewerApi, job: Document) -> None:
    try:
        report = await api.get(f"/v1/jobs/{job['id']}/report", {"group": "seeds"})
    except ApiProblem:
        return
    accuracies = (report["teacher"]["test"] or {}).get("per_class")
    if not accuracies:
        return
    section_heading(f"Accuracy by class on the test split of {job['name'] or job['id']}")
    rows = [(str(index), accuracy) for index, accuracy in enumerate(accuracies)]
    known = [value for value in accuracies if value is not None]
    worst = min(known, default=None)
    options = bars("accuracy by class", rows, y="accuracy")
    chart(options, f"accuracy by class, {count(len(accuracies))} classes, the worst {percent(worst)}")
