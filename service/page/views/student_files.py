"""Uploaded files of students: weights that students begin with, and torch.export programs, which are students."""

from urllib.parse import urlencode

from nicegui import ui

from service.page.deletion import ask_and_delete
from service.page.elements import column, copyable, empty_state, facts, local_time, paged_table, section_heading
from service.page.forms.file_upload import FileUpload
from service.page.frame import heading, view
from service.page.texts import count
from service.page.viewer import Document, ViewerApi, resource
from service.units import size

PAGE_ROWS = 100
_COLUMNS = (
    column("name", "Name"),
    column("kind", "Kind"),
    column("parameters", "Parameters", align="right"),
    column("tensors", "Tensors", align="right"),
    column("size", "Size", align="right"),
    column("takes", "Pictures and classes"),
    column("created_at", "Uploaded", kind="time"),
)


@view("/student-files", "Student files")
async def student_files(api: ViewerApi, after: str = "") -> None:
    """Build the list of uploaded files and the form to upload one."""
    page = await api.get("/v1/student-files", {"limit": PAGE_ROWS, "after": after})
    if page["data"]:
        paged_table(_COLUMNS, page, _row, title="Student files", more=("More files", "/student-files"))
    else:
        empty_state("Nothing was uploaded yet.", "Upload weights, or a network of your own, below.")
    _upload_form()


def _row(file: Document) -> Document:
    return {
        "id": file["id"],
        "name": file["name"],
        "kind": file["kind"],
        "parameters": count(file["parameters"]),
        "tensors": count(file["tensors"]),
        "size": size(file["size_bytes"]),
        "takes": _takes(file),
        "created_at": file["created_at"],
        "url": f"/student-files/{file['id']}",
    }


def _takes(file: Document) -> str:
    """Input and output of a program; empty of weights."""
    if not file["student"]:
        return ""
    channels, height, width = ("any" if each is None else str(each) for each in file["shape"])
    return f"{channels} x {height} x {width}, {count(file['classes'])} classes"


def _upload_form() -> None:
    section_heading("Upload weights or a program")
    with ui.column().classes("form"):
        ui.label(
            "Weights that a student begins with, as a safetensors file; or a network of your own, as a torch.export "
            "program, exported in training mode. No pickle is opened."
        )
        upload = FileUpload(
            "student-file",
            "Safetensors file or .pt2 program",
            accept=".safetensors,.pt2",
            path="/v1/student-files",
            command="retort students upload FILE",
        )
        name = ui.input("Name (the file's by default)").props("maxlength=128")
        upload.button(lambda: {"name": name.value}, lambda made: ui.navigate.to(f"/student-files/{made['id']}"))


@view("/student-files/{student_file_id}", "Student file")
async def student_file(api: ViewerApi, student_file_id: str) -> None:
    """Build the view of one uploaded file."""
    path = resource("student-files", student_file_id)
    shown = await api.get(path)
    heading(shown["name"])

    async def delete() -> None:
        also = "The results of its jobs stay."
        await ask_and_delete(api, path, f"the file {shown['name']}", also=also, leads_to="/student-files")

    url = f"/new?{urlencode({'student_file': shown['id']})}"
    with ui.row():
        ui.button("New job with it", icon="add_circle", on_click=lambda: ui.navigate.to(url)).props("no-caps")
        ui.button("Delete", icon="delete", on_click=delete, color="negative").props("no-caps outline")
    with facts() as fact:
        fact("Id", shown["id"])
        fact("Kind", "a program, which is a student" if shown["student"] else "weights that a student begins with")
        if shown["student"]:
            fact("Pictures and classes", _takes(shown))
        fact("Parameters", f"{count(shown['parameters'])} in {count(shown['tensors'])} tensors")
        fact("Types", ", ".join(shown["dtypes"]))
        fact("Size", size(shown["size_bytes"]))
        fact("SHA-256", shown["sha256"])
        fact("Uploaded", lambda: local_time(shown["created_at"]))
    section_heading("In the students of a job")
    own = f'"{shown["student"]}"'
    copyable(own if shown["student"] else f'{{"name": "resnet8", "init": {{"upload": "{shown["id"]}"}}}}', "json")
