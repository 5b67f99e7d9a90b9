"""Option ``--dry-run`` of the commands that delete: what it would free, or why it is refused."""

from typing import Annotated

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import CliSession, CommandFailed
from service.client.client import Client

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would free; exit status 1 if refused.")]


def show_preview(options: CliSession, client: Client, kind: str, id: str) -> None:
    """Print what a deletion would free; ``kind`` and ``id`` are as ``Client.preview_deletion`` takes them."""
    preview = client.preview_deletion(kind, id)
    if preview["refused"] is not None and not options.as_json:
        raise CommandFailed(preview["refused"])
    options.show(preview, lambda: Text(f"would free {render.size(preview['frees_bytes'])}"))
    if preview["refused"] is not None:
        raise typer.Exit(1)
