"""Commands about results: report, compare."""

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, session
from service.client.choices import Choices, JobChoices
from service.client.transport import Document
from workers.texts import printable

_CONFIDENCE = 0.95


class TableFormat(StrEnum):
    """Format in which a table is printed; ``text`` is the terminal's."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


class Pairing(StrEnum):
    """Pairing with the baseline's results: by seeds or by samples."""

    SEEDS = "seeds"
    SAMPLES = "samples"


class Grouping(StrEnum):
    """Grouping of a table's lines: one per run, or one per student and method over seeds."""

    RUNS = "runs"
    SEEDS = "seeds"


Format = Annotated[TableFormat, typer.Option(help="How it is printed.")]
Baseline = Annotated[str | None, typer.Option(metavar="METHOD", help="Compare with this method; ce by default.")]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.")]
Paired = Annotated[Pairing, typer.Option(help="samples adds McNemar's exact test of each seed.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (report, compare):
        app.command(rich_help_panel="Jobs")(command)


def report(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    csv: Annotated[bool, typer.Option("--csv", help="As --format csv.")] = False,
    format: Format = TableFormat.TEXT,
    group: Annotated[Grouping | None, typer.Option(help="A line per run, or per method over its seeds.")] = None,
    baseline: Baseline = None,
    confidence: Confidence = _CONFIDENCE,
    paired: Paired = Pairing.SEEDS,
) -> None:
    """Show the table of a job's results, each run and each method over its seeds."""
    options = session(context)
    choices: Choices = {"baseline": baseline, "confidence": confidence, "paired": paired.value}
    if csv and format not in (TableFormat.TEXT, TableFormat.CSV):
        raise BadInput(f"--csv and --format {format} are two formats: name one")
    chosen = TableFormat.CSV if csv else format
    with options.client() as client:
        if chosen in (TableFormat.TEXT, TableFormat.JSON):
            document = client.report(id, **choices)
        else:
            _print(client.report_text(id, chosen, group=group, **choices))
            return
    if chosen is TableFormat.JSON:
        options = options.with_json()
    options.show(document, lambda: results(document, group))


def compare(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...")],
    format: Format = TableFormat.TEXT,
    baseline: Baseline = None,
    baseline_job: Annotated[str | None, typer.Option(metavar="JOB_ID", help="Compare with this job's runs.")] = None,
    confidence: Confidence = _CONFIDENCE,
    paired: Paired = Pairing.SEEDS,
    accept_different_data: Annotated[
        bool, typer.Option("--accept-different-data", help="Also where datasets or splits differ.")
    ] = False,
) -> None:
    """Show one table over several jobs on the same dataset."""
    options = session(context)
    choices: JobChoices = {
        "baseline": baseline,
        "baseline_job": baseline_job,
        "confidence": confidence,
        "paired": paired.value,
        "accept_different_data": accept_different_data,
    }
    with options.client() as client:
        if format in (TableFormat.TEXT, TableFormat.JSON):
            document = client.compare(ids, **choices)
        else:
            _print(client.compare_text(ids, format, **choices))
            return
    if format is TableFormat.JSON:
        options = options.with_json()
    options.show(document, lambda: Group(groups(document), *_notes(document)))


def results(document: Document, group: str | None = None) -> RenderableType:
    """The report of a job: a table of runs, one over seeds, the teacher's accuracy and what it has cost."""
    parts: list[RenderableType] = []
    if group != Grouping.SEEDS:
        parts += [render.report(document), Text()]
    # A service of an earlier version has no groups; of one seed without a baseline they say what the runs do.
    found = document.get("groups") or []
    if group == Grouping.SEEDS or (group is None and any(len(each["seeds"]) > 1 for each in found)):
        parts += [groups(document), Text()]
    return Group(*parts, render.totals(document), *_notes(document))


def groups(document: Document) -> RenderableType:
    """Table of methods over their seeds: mean ± standard deviation, and the difference with its interval."""
    found = document.get("groups") or []
    splits = [split for split in ("validation", "test") if any(group[split] for group in found)]
    is_named = len({(group["student"], group["method"]) for group in found}) < len(found)
    level = f"[{100 * document['confidence']:g} %]" if found else ""
    headers = [*(["job"] if is_named else []), "student", "method", "seeds>"]
    for split in splits:
        headers += [f"top-1 {split}>", f"difference {level}>", "ECE>", "worst class>"]
    # A split without labels is measured by the teacher's answers alone.
    unlabelled = [
        split for split in splits if not any(group[split]["top1"] for group in found if group[split] is not None)
    ]
    headers += [f"{name} {split}>" for split in unlabelled for name in ("agreement", "KL")]
    rows = [
        [
            *([group["job_id"]] if is_named else []),
            group["student"],
            group["method"],
            str(len(group["seeds"])),
            *(text for split in splits for text in _split(group[split], group["job_id"])),
            *(text for split in unlabelled for text in _to_teacher(group[split] or {})),
        ]
        for group in found
    ]
    return render.table(headers, rows)


def _split(found: Document | None, job_id: str) -> list[str]:
    if found is None:
        return [""] * 4
    worst = found["worst_class"]
    return [
        _spread(found["top1"]),
        _points(found["difference"], found["samples"] or [], job_id),
        _spread(found["ece"]),
        f"{worst['index']}: {render.percent(worst['accuracy'])}" if worst else "",
    ]


def _to_teacher(found: Document) -> list[str]:
    kl = found.get("kl")
    return [_spread(found.get("agreement")), render.number(kl and kl["mean"], 4)]


def _spread(found: Document | None) -> str:
    if found is None:
        return ""
    deviation = "" if found["std"] is None else f" ± {100 * found['std']:.2f}"
    return f"{100 * found['mean']:.2f}{deviation} %"


def _points(found: Document | None, tests: list[Document], job_id: str) -> str:
    if found is None:
        return ""
    interval = "" if found["low"] is None else f" [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"
    told = "".join(f"; seed {test['seed']} p {test['p_value']:.2g}" for test in tests)
    job = "" if found["baseline_job_id"] == job_id else f" to {found['baseline_job_id']}"
    return f"{100 * found['mean']:+.2f}{interval}{job}{told}"


def _notes(document: Document) -> list[RenderableType]:
    return [render.shown(f"note: {note}") for note in document.get("notes") or []]


def _print(text: str) -> None:
    """Print text whose lines a terminal does not obey; CSV keeps its line ends."""
    sys.stdout.write("\r\n".join(map(printable, text.split("\r\n"))))
