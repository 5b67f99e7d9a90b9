"""Command doctor: whether everything is there that the service needs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli import render
from service.cli.base import session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.doctor.finding import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel="The service")(doctor)


def doctor(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option(help="RETORT_DATA_DIR of the service to look at.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="RETORT_DATA_ROOT of that service.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="RETORT_PORT of that service.")] = None,
) -> None:
    """Look at disk, database, Ray, GPU and the rest, and say what to do; exit status 1 if something fails."""
    from service.doctor import diagnose
    from service.settings import Settings

    options = session(context)
    given = {"data_dir": data_dir, "data_root": data_root, "port": port}
    findings = diagnose(
        Settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    )
    document = {
        "ok": all(finding.status != "fail" for finding in findings.values()),
        "checks": [{"check": name, **asdict(finding)} for name, finding in findings.items()],
    }
    options.show(document, lambda: _table(findings))
    if not document["ok"]:
        raise typer.Exit(1)


def _table(findings: "Mapping[str, Finding]") -> Table:
    rows: list[list[str | Text]] = []
    for name, finding in findings.items():
        status = Text(finding.status, style=_STYLES[finding.status])
        advice = f"\n-> {finding.advice}" if finding.advice else ""
        rows.append([status, name, finding.found + advice])
    return render.table(("", "check", "found"), rows)
