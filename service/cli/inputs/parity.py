"""Command parity: whether training on cached logits is the same as training with the live teacher.

It works on a service's folder on this machine, because it runs the teacher and trains; the API process can do neither.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.progress import Progress
from rich.text import Text

from service.cli import render
from service.cli.base import CommandFailed, json_or_name, session
from service.cli.inputs.caches import KeyArgument
from service.cli.inputs.resources import PANEL
from service.client.transport import Document

if TYPE_CHECKING:
    from workers.tools.parity_report import ParityReport

_DIGITS_SHOWN = 12


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=PANEL)(parity)


def parity(
    context: typer.Context,
    key: KeyArgument,
    data_dir: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The service's folder.")],
    method: Annotated[str, typer.Option(help='A name, or JSON: {"preset": "kd", ...}.')] = "kd",
    student: Annotated[str, typer.Option(help="As `retort students` lists them.")] = "resnet8",
    batch_size: Annotated[int, typer.Option(min=1, max=65_536)] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the first weights and of the order.")] = 0,
    epoch: Annotated[int, typer.Option(min=1, help="Sets the view and the method's warm-up.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many; the whole epoch by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="One per core by default.")] = None,
) -> None:
    """Train on a cache and beside its live teacher, and compare each step; exit status 1 if they differ."""
    # torch and ONNX Runtime: seconds to load, and not installed beside a mere client.
    from workers.methods.catalog import parse_method
    from workers.tools.parity import check_parity

    preset = parse_method(json_or_name(method, "--method"))
    with _bar() as progress:
        report = check_parity(
            data_dir,
            key,
            preset,
            student=student,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            steps=steps,
            threads=threads or os.cpu_count() or 1,
            progress=progress,
        )
    session(context).show(_document(report), lambda: _page(report))
    if not report.ok:
        raise CommandFailed(report.verdict)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Progress bar on standard error, if that is a terminal."""
    console = render.console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _document(report: "ParityReport") -> Document:
    return {"object": "parity_report", **asdict(report), "ok": report.ok, "verdict": report.verdict}


def _page(report: "ParityReport") -> RenderableType:
    """Page of the comparisons, a line each, and of a good verdict; a bad one is the command's failure."""
    head = (
        f"{report.method}, {report.student}, epoch {report.epoch}: {report.rows:,} rows in {report.steps:,} steps, "
        f"loss {report.loss:.3f}, "
        f"cache {report.key[:_DIGITS_SHOWN]} ({report.dtype}), teacher on {report.provider}"
    )
    compared = {"live teacher": report.live, "live teacher, rounded to float16": report.rounded}
    headers = (
        "cached against",
        "loss: median>",
        "worst>",
        "gradient: median>",
        "worst>",
        "1 - cosine: median>",
        "worst>",
    )
    rows = [
        (
            name,
            *(f"{value:.2g}" for spread in (one.loss, one.gradient) for value in (spread.median, spread.worst)),
            *(f"{1 - value:.2g}" for value in (one.cosine.median, one.cosine.worst)),
        )
        for name, one in compared.items()
        if one is not None
    ]
    logits = report.logits
    differ = (
        f"logits: {logits.unlike:,} of {logits.compared:,} are not the teacher's in {report.dtype}; "
        f"the largest difference is {logits.difference:.3g}, the largest logit {logits.largest:.3g}"
    )
    verdict = [Text(report.verdict)] if report.ok else []
    return Group(Text(head), render.table(headers, rows), Text(differ), *verdict)
