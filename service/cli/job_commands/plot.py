"""Command that draws: plot."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from service.cli.base import BadInput, session


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel="Jobs")(plot)


def plot(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="Of a job or of a run.")],
    out: Annotated[Path, typer.Option(help="The folder for the files; made if it is not there.")],
) -> None:
    """Draw a job or run as SVG and PNG: curves, methods, temperatures, reliability, confusion.

    It needs matplotlib: pip install 'retort[plots]'.
    """
    if not id.startswith(("job_", "run_")):
        raise BadInput(f"{id!r} is no id of a job (job_...) or run (run_...)")
    from service.plots.data import read
    from service.plots.plot import plot as draw

    options = session(context)
    with options.client() as client:
        data = read(client, id)
    done = draw(data, out)
    document = {"files": [str(path) for path in done.files], "skipped": done.skipped}
    options.show(document, lambda: Group(*map(Text, [*document["files"], *done.skipped])))
