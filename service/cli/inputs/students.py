"""Commands about students: the networks, and the files of weights that they may begin with."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import session
from service.cli.deletions import DryRun, show_preview
from service.cli.inputs.resources import PANEL, InName

_DIGITS_SHOWN = 12
students = typer.Typer(
    invoke_without_command=True, help="The networks that can be trained, and files of their weights."
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(students, name="students", rich_help_panel=PANEL)


@students.callback()
def students_without_command(context: typer.Context) -> None:
    """List the networks that can be trained, where no command follows."""
    if context.invoked_subcommand is None:
        list_students(context)


@students.command("list")
def list_students(context: typer.Context) -> None:
    """List the networks that can be trained; so does `retort students`."""
    options = session(context)
    with options.client() as client:
        found = client.students()
    headers = ("name", "family", "parameters>", "summary")
    sizes = ["" if item["parameters_100"] is None else f"{item['parameters_100']:,}" for item in found]
    rows = [(item["name"], item["family"], size, item["summary"]) for item, size in zip(found, sizes, strict=True)]
    options.show(found, lambda: render.table(headers, rows))


@students.command("upload")
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    name: Annotated[str | None, typer.Option(help="For people; the file's by default.")] = None,
) -> None:
    """Upload weights that a student begins with, or a program of torch.export that is a student; prints its name.

    FILE is a safetensors file, whose id a job names as "init": {"upload": ID} of a student, or a .pt2 archive, which is
    the student uploaded/ID.
    """
    options = session(context)
    with options.client() as client:
        kept = client.upload_student_file(file, name=name)
    options.show(kept, lambda: Text(kept["student"] or kept["id"]))


@students.command("files")
def files(context: typer.Context, name: InName = None) -> None:
    """List the uploaded weights and programs."""
    options = session(context)
    with options.client() as client:
        found = list(client.student_files(name=name))
    headers = ("id", "kind", "name", "size>", "tensors>", "parameters>", "sha256", "created")
    rows = [
        (
            file["id"],
            file["kind"],
            file["name"],
            render.size(file["size_bytes"]),
            f"{file['tensors']:,}",
            f"{file['parameters']:,}",
            file["sha256"][:_DIGITS_SHOWN],
            render.moment(file["created_at"]),
        )
        for file in found
    ]
    options.show(found, lambda: render.table(headers, rows))


@students.command("delete")
def delete(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="STUDENT_FILE_ID")],
    dry_run: DryRun = False,
) -> None:
    """Delete an uploaded file of weights or a program that no live job needs."""
    options = session(context)
    with options.client() as client:
        if dry_run:
            show_preview(options, client, "student-files", id)
            return
        client.delete_student_file(id)
