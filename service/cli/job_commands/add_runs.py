"""``retort add-runs``: more students, methods or seeds for a job, on its caches."""

from typing import Annotated

import typer

from service.cli.base import json_or_name, session
from service.cli.job_commands.job_pages import preview_page
from service.cli.job_commands.jobs import JobId, show_or_watch
from service.client.transport import Document


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel="Jobs")(add_runs)


def add_runs(
    context: typer.Context,
    id: JobId,
    student: Annotated[list[str], typer.Option(metavar="NAME|JSON", help="A student; as often as you like.")],
    method: Annotated[list[str], typer.Option(metavar="NAME|JSON", help="A method, likewise.")],
    seed: Annotated[list[int] | None, typer.Option(help="A seed, likewise; 0 by default.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show these runs and their cost.")] = False,
) -> None:
    """Add runs to a job: students x methods x seeds, on the same caches. One that has ended goes on."""
    options = session(context)
    runs: Document = {
        "students": [json_or_name(each, "--student") for each in student],
        "methods": [json_or_name(each, "--method") for each in method],
        "seeds": seed or [0],
    }
    with options.client() as client:
        if dry_run:
            preview = client.add_runs(id, runs, dry_run=True)
            options.show(preview, lambda: preview_page(preview))
            return
        job = client.add_runs(id, runs)
        text = f"{job['id']} has {len(job['run_ids'])} runs"
        show_or_watch(options, client, job, watch=watch, text=text)
