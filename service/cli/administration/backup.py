"""Commands backup and restore, which work on the files and the database of a service."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import session

if TYPE_CHECKING:
    from service.client.transport import Document
    from service.operations.backup_format import Manifest

PANEL = "The service"
DataDir = Annotated[Path | None, typer.Option(help="RETORT_DATA_DIR of the service.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for function in (backup, restore):
        app.command(rich_help_panel=PANEL)(function)


def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the backup goes; must not exist yet.")],
    data_dir: DataDir = None,
    with_caches: Annotated[
        bool,
        typer.Option(
            "--with-caches",
            help="All complete caches; without it those of imported logits, which nobody can compute again.",
        ),
    ] = False,
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="Though files are gone that the database names.")
    ] = False,
) -> None:
    """Copy database, teachers, jobs and imported logits to a new folder, while the service runs."""
    from service.operations.backup import backup as make
    from service.settings import Settings

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    manifest = make(settings, folder, with_caches=with_caches, accept_missing=accept_missing)
    missing = f"; {len(manifest.missing)} files are missing, see manifest.json" if manifest.missing else ""
    document = _document(manifest)
    session(context).show(document, lambda: Text(f"{folder} holds {_summary(manifest)}{missing}"))


def restore(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The backup.")],
    data_dir: DataDir = None,
    replace: Annotated[bool, typer.Option("--replace", help="Set aside what a service has kept there.")] = False,
) -> None:
    """Check a backup and put it in place, while no service runs."""
    from service.operations.restore import restore as put_back
    from service.settings import Settings

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    manifest, aside = put_back(settings, folder, replace=replace)
    document = {**_document(manifest), "set_aside": [str(path) for path in aside]}
    names = ", ".join(path.name for path in aside)
    told = f"; what was there is set aside: {names}" if aside else ""
    where = settings.data_dir.resolve()
    session(context).show(document, lambda: Text(f"{where} has {_summary(manifest)} again{told}"))


def _document(manifest: "Manifest") -> "Document":
    counted = {"files": len(manifest.files), "size_bytes": manifest.size_bytes}
    return {**manifest.model_dump(mode="json", exclude={"files"}), **counted}


def _summary(manifest: "Manifest") -> str:
    files = f"{len(manifest.files)} files, {render.size(manifest.size_bytes)}"
    imported = f" and {manifest.imported_caches} caches of imported logits" if manifest.imported_caches else ""
    return f"{manifest.jobs} jobs{imported} ({files}, of {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC)"
