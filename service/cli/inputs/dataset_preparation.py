"""Command ``retort datasets prepare``: decode a dataset into the data directory of a service."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, session
from service.cli.inputs.resources import datasets, is_description, json_object
from service.cli.service_files import settings_to_write


def register() -> None:
    """Add the command of this module to those about datasets."""
    datasets.command("prepare")(prepare_dataset)


def prepare_dataset(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="NAME|ID|JSON|FILE")],
    split: Annotated[
        Literal["train", "validation", "test"] | None, typer.Option(help="Of the dataset; all of them by default.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="RETORT_DATA_DIR of the service; also one that none was started on yet.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="RETORT_DATA_ROOT of the service.")] = None,
) -> None:
    """Decode a dataset where the service runs, as its user, as its first job would; again is at once."""
    from service.db.queries.api_queries import DATASET
    from workers.data.preparation.discovery import examine
    from workers.data.preparation.prepare import prepare_splits
    from workers.events import Log

    options, console = session(context), render.console(stderr=True)
    settings = settings_to_write(data_dir, data_root)
    if is_description(dataset):
        spec = json_object(dataset, "DATASET")
    else:
        with options.client() as client:
            known = [each for each in client.datasets() if dataset in (each["id"], each["name"])]
        if not known:
            raise BadInput(f"{dataset!r} is neither the name nor the id of a dataset, nor its description as JSON")
        spec = known[0]["spec"]
    kind = DATASET.validate_python(spec)

    def emit(event: object) -> None:
        if isinstance(event, Log):
            console.print(event.message)

    folder = settings.datasets_dir
    splits = [split] if split else examine(kind, settings.data_root, folder).splits
    found = prepare_splits(kind, splits, settings.data_root, folder, emit=emit)
    counts = {name: {"samples": each.samples, "fingerprint": each.fingerprint} for name, each in found.items()}
    told = "\n".join(
        f"{name}: {each.samples:,} pictures, in {folder / each.fingerprint}" for name, each in found.items()
    )
    options.show({"folder": str(folder), "splits": counts}, lambda: Text(told))
