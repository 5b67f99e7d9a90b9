"""``retort extend``: more epochs for a run that has succeeded, as a new job."""

from typing import Annotated

import typer

from service.cli.base import parse_json, session
from service.cli.job_commands.jobs import show_or_watch


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel="Jobs")(extend)


def extend(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="RUN_ID")],
    epochs: Annotated[int, typer.Option(min=1, help="In all, those that it has included.")],
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='Of all epochs since the last restart: {"kind": "step", "milestones": [0.5]}; its own by default.',
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the added epochs, as a warm restart; --schedule is then theirs alone, of any kind."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the new job to its end.")] = False,
) -> None:
    """Let a run that has kept its checkpoint go on to more epochs, as a new job; its end is that of a longer run."""
    options = session(context)
    with options.client() as client:
        stated = None if schedule is None else parse_json(schedule, "--schedule")
        made = client.extend(id, epochs, schedule=stated, learning_rate=learning_rate)
        show_or_watch(options, client, made, watch=watch)
