"""Command gc: list and delete what is beyond the limits, through the service."""

import re
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, session
from service.client.transport import Document

PANEL = "The service"
_DIGITS_SHOWN = 12
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_POWERS = {unit: power for power, unit in enumerate(("", "k", "m", "g", "t"))}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?) ?([smhdw])")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=PANEL)(gc)


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Jobs that ended longer ago go: 30d, 12h.")
    ] = None,
    keep: Annotated[int | None, typer.Option(min=0, help="Of the jobs that have ended, so many stay.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The files of all jobs may take so much: 10GB, 500MiB.")
    ] = None,
    decoded_max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="All decoded datasets may take so much.")
    ] = None,
    compact_events: Annotated[
        bool, typer.Option("--compact-events", help="Compact the events of every job that has ended.")
    ] = False,
) -> None:
    """Delete ended jobs, decoded datasets and events beyond limits; those of the service where none is given.

    The jobs that ended first go first. Jobs that are pinned, live, or needed by a live retry stay.
    """
    options = session(context)
    limits = {
        "jobs_max_age_s": None if older_than is None else _age_s(older_than),
        "jobs_max_count": keep,
        "jobs_max_bytes": None if max_bytes is None else _bytes(max_bytes, "--max-bytes"),
        "decoded_max_bytes": None if decoded_max_bytes is None else _bytes(decoded_max_bytes, "--decoded-max-bytes"),
        "events_max_age_s": 0.0 if compact_events else None,
    }
    with options.client() as client:
        report = client.gc(dry_run=dry_run, **limits)
    options.show(report, lambda: _page(report))


def _age_s(text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None:
        raise BadInput(f"--older-than {text!r} is no age: give a number and s, m, h, d or w, such as 30d")
    return float(found[1]) * _SECONDS[found[2]]


def _bytes(text: str, option: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise BadInput(
            f"{option} {text!r} is no size: give bytes, or a number and kB, MB, GB, TB, KiB, MiB, GiB or TiB"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()])


def _page(report: Document) -> RenderableType:
    verb = "would go" if report["dry_run"] else "have gone"
    parts: list[RenderableType] = []
    if report["jobs"]:
        columns = ("job", "state", "ended", "size>", "name", "because")
        parts += [render.table(columns, map(_job, report["jobs"])), Text()]
    if report["decoded"]:
        headers = ("decoded data", "split", "samples>", "size>", "last used")
        parts += [render.table(headers, map(_copy, report["decoded"])), Text()]
    counts = f"{len(report['jobs'])} jobs and {len(report['decoded'])} decoded datasets {verb}"
    rests = f", {render.size(report['rests_bytes'])} of earlier deletions" if report["rests_bytes"] else ""
    parts.append(Text(f"{counts}: {render.size(report['files_bytes'])} of files{rests}"))
    if report["compacted_events"]:
        how = "would be compacted" if report["dry_run"] else "compacted"
        parts.append(Text(f"{report['compacted_events']:,} events of {report['compacted_jobs']} jobs {how}"))
    return Group(*parts, Text(), _usage(report["usage"]))


def _job(job: Document) -> Sequence[str | Text]:
    ended, size = render.moment(job["ended_at"]), render.size(job["size_bytes"])
    return job["id"], render.state(job["state"]), ended, size, job["name"], job["reason"]


def _copy(copy: Document) -> Sequence[str]:
    size, used = render.size(copy["size_bytes"]), render.moment(copy["used_at"])
    return copy["fingerprint"][:_DIGITS_SHOWN], copy["split"], f"{copy['samples']:,}", size, used


def _usage(usage: Document) -> RenderableType:
    """Usage of the disk, from which a user sees which limits could be set."""
    free = usage["database_free_bytes"]
    rows = [
        ("jobs", f"{usage['jobs']}, {usage['ended_jobs']} ended, {usage['pinned_jobs']} pinned", usage["jobs_bytes"]),
        ("decoded data", "", usage["decoded_bytes"]),
        ("caches", "", usage["caches_bytes"]),
        ("teachers", "", usage["teachers_bytes"]),
        # A service of an earlier version has none.
        ("files of students", "", usage.get("student_files_bytes", 0)),
        ("database", f"{render.size(free)} of it to be used again" if free else "", usage["database_bytes"]),
    ]
    return render.table(("kept", "", "size>"), [(name, note, render.size(size)) for name, note, size in rows])
