"""Commands about teachers, datasets and methods."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, parse_json, read_json, session
from service.cli.deletions import DryRun, show_preview
from service.cli.inputs.dataset_fields import EPILOG, KIND_HELP, with_dataset_fields
from service.client.transport import Document
from workers.config.published_preprocessing import NAMED

PANEL = "What jobs are made of"
_DIGITS_SHOWN = 12
OutputKindName = Literal["logits", "log_probabilities", "probabilities", "sigmoid", "percent"]
InName = Annotated[str | None, typer.Option(help="Only those whose name holds this.")]

teachers = typer.Typer(no_args_is_help=True, help="The ONNX classifiers that teach.")
datasets = typer.Typer(no_args_is_help=True, help="Datasets below the service's data root.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, group in (("teachers", teachers), ("datasets", datasets)):
        app.add_typer(group, name=name, rich_help_panel=PANEL)
    app.command(rich_help_panel=PANEL)(methods)


# ----------------------------------------------------------------------------------------- teachers


@teachers.command("list")
def list_teachers(context: typer.Context, name: InName = None) -> None:
    """List the uploaded teachers."""
    options = session(context)
    with options.client() as client:
        found = list(client.teachers(name=name))
    headers = ("id", "name", "size>", "classes>", "sha256", "created")
    rows = [
        (
            teacher["id"],
            teacher["name"],
            render.size(teacher["size_bytes"]),
            str(teacher["classes"] or ""),
            teacher["sha256"][:_DIGITS_SHOWN],
            render.moment(teacher["created_at"]),
        )
        for teacher in found
    ]
    options.show(found, lambda: render.table(headers, rows))


@teachers.command("upload")
def upload_teacher(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", exists=True, dir_okay=False, readable=True)],
    name: Annotated[str | None, typer.Option(help="For people; the file's by default.")] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|FILE|NAME",
            help='How pictures are prepared: {"size": [32, 32], "mean": [...], "std": [...]}, imagenet, or the file '
            "config.json of timm or preprocessor_config.json of Hugging Face.",
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Which output holds the logits, if there are several.")] = None,
    output_kind: Annotated[
        OutputKindName | None, typer.Option(help="What that output holds; told by its values by default.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx.data", exists=True, dir_okay=False, help="Its weights, if they lie beside it."),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(metavar="JSON|FILE", help="Names of the output's columns: JSON, or a file with one a line."),
    ] = None,
    class_map: Annotated[
        str | None,
        typer.Option(metavar="JSON|FILE", help="Columns or names of classes that a dataset calls otherwise."),
    ] = None,
    input: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Value of a scalar input beside the pictures.")
    ] = None,
) -> None:
    """Upload a teacher; the same file again is the same teacher.

    FILE may be a zip or tar archive of the ONNX file and the files of its weights.
    """
    options = session(context)
    with options.client() as client:
        teacher = client.upload_teacher(
            file,
            name=name,
            preprocessing=None if preprocessing is None else preprocessing_of(preprocessing),
            output=output,
            data=data,
            output_kind=output_kind,
            class_names=None if class_names is None else names_of(class_names),
            class_map=None if class_map is None else json_object(class_map, "--class-map"),
            input_values=_input_values(input or []) or None,
        )
    options.show(teacher, lambda: Text(teacher["id"]))


@teachers.command("delete")
def delete_teacher(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="TEACHER_ID")],
    dry_run: DryRun = False,
) -> None:
    """Delete a teacher that no live job uses."""
    options = session(context)
    with options.client() as client:
        if dry_run:
            show_preview(options, client, "teachers", id)
            return
        client.delete_teacher(id)


# ----------------------------------------------------------------------------------------- datasets


@datasets.command("list")
def list_datasets(context: typer.Context, name: InName = None) -> None:
    """List the registered datasets."""
    options = session(context)
    with options.client() as client:
        found = list(client.datasets(name=name))
    headers = ("id", "name", "kind", "path", "classes>", "samples")
    rows = [
        (
            item["id"],
            item["name"],
            item["spec"]["kind"],
            item["spec"].get("path", ""),
            str(item["classes"] or ""),
            ", ".join(f"{split} {count:,}" for split, count in (item["samples"] or {}).items()),
        )
        for item in found
    ]
    options.show(found, lambda: render.table(headers, rows))


@datasets.command("add", epilog=EPILOG)
@with_dataset_fields
def add_dataset(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help=KIND_HELP)],
    **fields: object,
) -> None:
    """Give a dataset a name that jobs can use. KIND folder is a folder of pictures per class."""
    options = session(context)
    spec: Document = {"kind": kind, **{field: value for field, value in fields.items() if value is not None}}
    with options.client() as client:
        made = client.create_dataset(name, spec)
    for note in made.get("notes") or ():
        render.console(stderr=True).print(f"note: {note}")
    options.show(made, lambda: Text(made["id"]))


@datasets.command("bad-pictures")
def bad_pictures(context: typer.Context, id: Annotated[str, typer.Argument(metavar="DATASET_ID")]) -> None:
    """List the pictures that cannot be decoded, as jobs have found, with the reasons."""
    options = session(context)
    with options.client() as client:
        found = list(client.bad_pictures(id))
    rows = [(item["split"], item["sample_id"], item["reason"], "yes" if item["left_out"] else "no") for item in found]
    options.show(found, lambda: render.table(("split", "sample", "reason", "left out"), rows))


@datasets.command("delete")
def delete_dataset(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="DATASET_ID")],
    dry_run: DryRun = False,
) -> None:
    """Forget a name that no live job uses, and what it was decoded to; the pictures stay."""
    options = session(context)
    with options.client() as client:
        if dry_run:
            show_preview(options, client, "datasets", id)
            return
        client.delete_dataset(id)


# ------------------------------------------------------------------------------------------ methods


def methods(context: typer.Context) -> None:
    """List the methods; --json has their parameters."""
    options = session(context)
    with options.client() as client:
        found = client.methods()
    headers = ("id", "title", "paper", "formula")
    rows = [(item["id"], item["title"], item["paper"], item["formula"]) for item in found]
    options.show(found, lambda: render.table(headers, rows))


def names_of(text: str) -> Document | list[str]:
    """Class names: JSON in the command line or a file, or a file with one in each line."""
    path = Path(text)
    content = text if text.lstrip().startswith(("[", "{")) else path.read_text() if path.is_file() else None
    if content is None:
        raise BadInput(f"--class-names {text!r} is neither JSON nor a file")
    if content.lstrip().startswith(("[", "{")):
        found: Document | list[str] = _json(content, "--class-names")
        return found
    return [line.strip() for line in content.splitlines() if line.strip()]


def _input_values(given: list[str]) -> Document:
    """Values by name, of NAME=VALUE each."""
    values: Document = {}
    for each in given:
        name, equals, text = each.rpartition("=")
        if not (name and equals):
            raise BadInput(f"--input {each!r} is not NAME=VALUE")
        values[name] = _json(text.lower(), f"--input {name}")
    return values


def _json(text: str, option: str) -> Any:  # noqa: ANN401  # JSON as it comes
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"{option} is not JSON: {error}") from None


def is_description(dataset: str) -> bool:
    """Whether a dataset is given by its description, as JSON or the name of its file, and not by its name."""
    return dataset.lstrip().startswith("{") or Path(dataset).suffix == ".json"


def json_object(text: str, option: str) -> Document:
    """JSON object that is given in the command line itself, or as the name of its file."""
    if text.lstrip().startswith("{"):
        return parse_json(text, option)
    path = Path(text)
    if not path.is_file():
        raise BadInput(f"{option} {text!r} is neither a JSON object nor a file")
    return read_json(path)


def preprocessing_of(text: str) -> Document | str:
    """Preprocessing that is given in the command line itself, as the name of its file, or by its name."""
    if text.lstrip().startswith("{"):
        return parse_json(text, "--preprocessing")
    path = Path(text)
    if path.is_file():
        return read_json(path)
    if text not in NAMED:
        raise BadInput(f"--preprocessing {text!r} is neither a JSON object nor a file nor a name ({', '.join(NAMED)})")
    return text
