"""Rendering of API documents as text for a terminal: tables, numbers with units, one console.

It only formats; it sends no request. Where output is not a terminal, tables are wide enough that
no cell is cut, so that logs and pipes get every character.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from service.client.transport import Document
from service.units import size as size
from workers.texts import printable

_PIPE_WIDTH = 240
COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "lost": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "paused": "magenta",
    "pausing": "magenta",
    "running": "cyan",
}


class PlainConsole(Console):
    """Console that writes control characters in text out, so that no text is a command to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments; only those of rich itself may hold commands to the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Make a console that leaves markup in names and messages alone."""
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else _PIPE_WIDTH
    return PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def shown(text: str | Text, style: str = "") -> Text:
    """Text as ``PlainConsole`` prints it, so that rich knows its width; a ``Text`` keeps its own style."""
    if isinstance(text, str):
        return Text(printable(text), style=style)
    safe = printable(text.plain)
    return text if safe == text.plain else Text(safe, style=text.style)


def table(headers: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Make a table without frames; a header that ends in ``>`` aligns its column to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        right = header.endswith(">")
        made.add_column(header.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(shown, row))
    return made


def facts(pairs: Mapping[str, str | Text | None]) -> Table:
    """Table of names and values, one pair a line; pairs without a value are left out."""
    made = Table.grid(padding=(0, 2, 0, 0))
    for name, value in pairs.items():
        if value is not None and str(value):
            made.add_row(shown(Text(name, style="bold")), shown(value))
    return made


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=COLOURS.get(name, ""))


def percent(fraction: float | None, digits: int = 1) -> str:
    """Percentage of a fraction: 0.953 -> ``95.3 %``."""
    return "" if fraction is None else f"{100 * fraction:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """Number with so many decimals; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Duration in seconds as ``7.2 s``, ``3:05`` or ``2:03:05``."""
    if seconds is None:
        return ""
    if seconds < 59.95:  # what is printed as 60.0 is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def left(eta: Document | None) -> str:
    """Time until an expected end: ``about 3:05 left``; empty where nothing is expected."""
    if eta is None:
        return ""
    seconds = (datetime.fromisoformat(eta["expected_at"]) - datetime.now(UTC)).total_seconds()
    return f"about {duration(seconds)} left" if seconds > 0 else "about to end"


def moment(iso: str | None) -> str:
    """Moment: an ISO 8601 time in this machine's zone, to the second: ``2026-11-29 16:05:00+01:00``."""
    if iso is None:
        return ""
    return datetime.fromisoformat(iso).astimezone().isoformat(sep=" ", timespec="seconds")


def totals(document: Document) -> Table:
    """Totals below the report of a job: the teacher's accuracy, and how often it was run."""
    teacher = document["teacher"]
    # A service of an earlier version knows no validation split.
    validation = (teacher.get("validation") or {}).get("top1")
    places = {
        "validation split": validation,
        "test split": teacher["accuracy"],
        "training views": teacher["views_accuracy"],
    }
    known = [f"{percent(accuracy)} on the {place}" for place, accuracy in places.items() if accuracy is not None]
    return facts(
        {
            "teacher": f"top-1 {', '.join(known)}" if known else None,
            "cost": forwards(document),
        }
    )


def report(document: Document) -> Table:
    """Table of the results of a job, a run a line; all but ``best``, which validation has chosen, are the last epoch's.

    Columns without information (one seed for all, every run succeeded, nothing chosen, no device) are left out.
    """
    rows = document["rows"]
    seeds = len({row["seed"] for row in rows}) > 1
    states = any(row["state"] != "succeeded" for row in rows)
    chosen = any(row["accuracy_best"] is not None for row in rows)
    devices = any(row["device"] for row in rows)
    # Without labels the teacher's answers are all that a split is measured by; without a test split, on validation.
    unlabelled = bool(rows) and all(row["accuracy_last"] is None for row in rows)
    if unlabelled:
        rows = [{**row, **_to_teacher(row)} for row in rows]
    headers = ["student", "method", *(["seed>"] if seeds else []), *(["state"] if states else [])]
    headers += ["top-1>", *(["best>"] if chosen else []), "agreement>", "ECE>", "T student>", "T teacher>", "seconds>"]
    headers += ["device"] if devices else []
    lines = [_report_row(row, seeds=seeds, states=states, chosen=chosen, devices=devices) for row in rows]
    if unlabelled:
        headers.append("KL>")
        lines = [[*line, number(row["kl_to_teacher"], 4)] for line, row in zip(lines, rows, strict=True)]
    return table(headers, lines)


def _to_teacher(row: Document) -> Document:
    """Agreement and KL on the test split, or where there is none on the validation split."""
    prefix = "" if row["agreement"] is not None else "validation_"
    return {name: row.get(f"{prefix}{name}") for name in ("agreement", "kl_to_teacher")}


def _report_row(row: Document, *, seeds: bool, states: bool, chosen: bool, devices: bool) -> list[str | Text]:
    return [
        row["student"],
        row["method"],
        *([str(row["seed"])] if seeds else []),
        *([state(row["state"])] if states else []),
        percent(row["accuracy_last"]),
        *([percent(row["accuracy_best"])] if chosen else []),
        percent(row["agreement"]),
        percent(row["ece"]),
        number(row["student_temperature"]),
        number(row["teacher_temperature"]),
        number(row["seconds"], 1),
        *([row["device"] or ""] if devices else []),
    ]


def forwards(document: Document) -> str:
    """Teacher forward passes of a job, and those that a live teacher would have needed on top."""
    counts = document.get("teacher_forwards")
    if not counts:
        return ""
    return f"{counts['run']:,} teacher forward passes used, {counts['avoided']:,} avoided"
