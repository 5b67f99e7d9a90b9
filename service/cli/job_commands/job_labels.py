"""Command that changes what people write on a job: its name, tags and note."""

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

from service.cli import render
from service.cli.base import BadInput, session
from service.client.transport import Document

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
NewTags = Annotated[list[str] | None, typer.Option("--tag", help="A tag to add; may be given several times.")]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel="Jobs")(edit)


def edit(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    name: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    note: Annotated[str | None, typer.Option(help='Its new note; "" takes it away.')] = None,
    tag: NewTags = None,
    untag: Annotated[
        list[str] | None, typer.Option("--untag", help="A tag to take away; may be given several times.")
    ] = None,
) -> None:
    """Change name, note or tags of a job, in any state."""
    if name is None and note is None and not tag and not untag:
        raise BadInput("nothing to change: give --name, --note, --tag or --untag")
    options = session(context)
    with options.client() as client:
        tags = None
        if tag or untag:
            tags = _changed(client.job(id)["tags"], tag or [], untag or [])
        job = client.update_job(id, name=name, tags=tags, note=note)
    options.show(job, lambda: render.facts({"job": job["id"], **labels(job)}))


def labels(job: Document) -> dict[str, str]:
    """Name, tags and note of a job as facts; a service of an earlier version has no tags and notes."""
    return {"name": job["name"], "tags": ", ".join(job.get("tags", [])), "note": job.get("note", "")}


def moment_of(since: str) -> str:
    """ISO 8601 time of a date, a time (of this machine's zone unless it names one), or an age such as ``7d``.

    Raises:
        BadInput: it is none of these.
    """
    try:
        if age := re.fullmatch(r"(\d{1,6})([mhdw])", since):
            return (datetime.now().astimezone() - timedelta(**{_UNITS[age[2]]: int(age[1])})).isoformat()
        return datetime.fromisoformat(since).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise BadInput(f"--since {since!r} is no date (2026-11-30), time (2026-11-30T08:00) or age (12h, 7d)") from None


def _changed(tags: list[str], added: list[str], removed: list[str]) -> list[str]:
    gone = {tag.casefold() for tag in removed}
    unknown = gone - {tag.casefold() for tag in tags}
    if unknown:
        has = ", ".join(tags) or "none"
        raise BadInput(f"the job has no tag {', '.join(sorted(unknown))}; it has {has}")
    return list(dict.fromkeys([*(tag for tag in tags if tag.casefold() not in gone), *added]))
