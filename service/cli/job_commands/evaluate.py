"""``retort evaluate``: measure a student, or any ONNX classifier, on a dataset; nothing is trained."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, CommandFailed, json_or_name, session
from service.cli.inputs.resources import preprocessing_of
from service.cli.job_commands.follow import follow
from service.client.client import Client
from service.client.transport import Document

_FIGURES = ("top1", "top5", "nll", "ece")


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command(rich_help_panel="Jobs")(evaluate)


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="RUN_ID|FILE.onnx", help="A finished run, or a file.")],
    dataset: Annotated[str, typer.Option(help='A registered name, or JSON: {"kind": "folder", ...}.')],
    preprocessing: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|FILE|NAME", help="A file's preprocessing, as of `teachers upload`; a run has its own."
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Output of a file that holds the logits.")] = None,
    holdout: Annotated[
        float | None, typer.Option(min=0, max=1, help="Also measure this share of train, as a validation split.")
    ] = None,
    test: Annotated[bool, typer.Option(help="Measure the test split.")] = True,
) -> None:
    """Measure a student or an ONNX file on a dataset, as one job that trains nothing."""
    options = session(context)
    with options.client() as client:
        job: Document = {
            "name": f"evaluation of {model}"[:200],
            "teacher": _model(client, model, preprocessing, output)["id"],
            "dataset": json_or_name(dataset, "--dataset"),
            "evaluate": True,
            # A model that is no better than chance here is what somebody may want to know.
            "accept_teacher": True,
        }
        if holdout is not None:
            job["validation"] = {"holdout": holdout}
        if not test:
            job["test"] = None
        posted = client.submit(job)
        ended = follow(client, posted["id"], render.console(stderr=True))
        if ended["state"] != "succeeded":
            message = (ended["error"] or {}).get("message")
            raise CommandFailed(f"{posted['id']} {ended['state']}" + (f": {message}" if message else ""))
        [run] = client.runs(posted["id"])
    document = {"object": "evaluation", "model": model, "job": posted["id"], "splits": run["result"]["evaluation"]}
    options.show(document, lambda: _page(document))


def _model(client: Client, model: str, preprocessing: str | None, output: str | None) -> Document:
    """The model as a teacher of the service: a run's student with its own preprocessing, or a file."""
    if not model.startswith("run_"):
        path = Path(model)
        if not path.is_file():
            raise BadInput(f"{model!r} is neither a file nor an id of a run (run_...)")
        given = None if preprocessing is None else preprocessing_of(preprocessing)
        return client.upload_teacher(path, preprocessing=given, output=output)
    if preprocessing is not None or output is not None:
        raise BadInput(f"{model} has a preprocessing and an output of its own: leave --preprocessing and --output out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("student.onnx", "config.json"):
            client.download(model, file, folder / file)
        config = json.loads((folder / "config.json").read_text())
        return client.upload_teacher(
            folder / "student.onnx",
            name=f"{client.run(model)['name']} ({model})"[:200],
            preprocessing=config["preprocessing"],
            output="logits",
        )


def _page(document: Document) -> RenderableType:
    """A row for each split; then the accuracy of each class, the lowest first, where it is known."""
    splits: Document = document["splits"]
    rows = [
        (split, str(found.get("rows", "")), *(_figure(name, found.get(name)) for name in _FIGURES))
        for split, found in splits.items()
    ]
    parts: list[RenderableType] = [render.table(("split", "rows>", "top-1>", "top-5>", "NLL>", "ECE>"), rows)]
    for split, found in splits.items():
        classes = [(top1, number) for number, top1 in enumerate(found.get("per_class") or ()) if top1 is not None]
        if classes:
            worst = ", ".join(f"{number}: {render.percent(top1)}" for top1, number in sorted(classes)[:5])
            parts.append(Text(f"{split}, classes with the lowest accuracy: {worst}"))
    return Group(*parts)


def _figure(name: str, value: float | None) -> str:
    return render.number(value, 4) if name == "nll" else render.percent(value)
