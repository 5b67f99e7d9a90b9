"""Command preview: the temperatures of a method on a cache."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.base import json_or_name, session
from service.cli.inputs.cache_sources import ServiceCaches
from service.cli.inputs.resources import PANEL
from service.client.transport import Document

_BARS = " ▁▂▃▄▅▆▇█"
_SIDES = {"teacher": "T teacher", "student": "T student", "weight": "weight"}
CacheKey = Annotated[str, typer.Argument(metavar="CACHE", help="Key of a complete cache, or the beginning of one.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(preview)


def preview(
    context: typer.Context,
    method: Annotated[str, typer.Argument(metavar="METHOD", help='A name, or JSON: {"preset": "kd", ...}.')],
    cache: CacheKey,
    student_cache: Annotated[
        str | None,
        typer.Option(metavar="CACHE", help="Of a network that stands for the student; by default the teacher does."),
    ] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="In which epoch; the first by default.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of how many.")] = None,
    bins: Annotated[int | None, typer.Option(min=1, max=200, help="Of each histogram.")] = None,
) -> None:
    """Show the temperatures that a method would give on a cache, without training anything."""
    options = session(context)
    chosen = json_or_name(method, "METHOD")
    with options.client() as client:
        caches = ServiceCaches(client)
        document = client.preview_method(
            chosen,
            caches.resolve(cache),
            student_cache=None if student_cache is None else caches.resolve(student_cache),
            epoch=epoch,
            epochs=epochs,
            bins=bins,
        )
    options.show(document, lambda: _page(document))


def _page(document: Document) -> RenderableType:
    views = f"{document['views']} views of " if document["views"] > 1 else ""
    head = f"{document['method']} on {views}{document['samples']:,} samples, {document['classes']:,} classes"
    parts: list[RenderableType] = [Text(f"{head}, epoch {document['epoch']} of {document['epochs']}")]
    if not document["terms"]:
        parts.append(Text("no term takes a temperature"))
    for term in document["terms"]:
        title = f"{' + '.join(term['parts'])}: loss {term['loss']} at the temperatures of policy {term['policy']}"
        parts += [Text(), Text(title, style="bold"), *(Text(f"({note})") for note in term["notes"])]
        parts += [Text(), _summary(term), Text(), _histograms(term)]
        if rows := list(_extremes(term)):
            # The teacher's row alone: --json has the student's too.
            statistics = (f"{name}>" for name in term["teacher"]["lowest"][0]["teacher"])
            headers = ("", "value>", "view>", "sample>", *statistics)
            parts += [Text(), render.table(headers, rows)]
    return Group(*parts)


def _summary(term: Document) -> RenderableType:
    """Mean, standard deviation and quantiles, a side a column."""
    sides = [{"mean": side["mean"], "std": side["std"], **side["quantiles"]} for side in map(term.__getitem__, _SIDES)]
    rows = [(name, *(_short(side[name]) for side in sides)) for name in sides[0]]
    return render.table(("", *(f"{label}>" for label in _SIDES.values())), rows)


def _histograms(term: Document) -> RenderableType:
    """Histograms: a line of bars per side, between the least value and the greatest."""
    rows = []
    for key, label in _SIDES.items():
        edges = term[key]["histogram"]["edges"]
        rows.append((label, _short(edges[0]), _bars(term[key]["histogram"]["counts"]), _short(edges[-1])))
    return render.table(("", "from>", "", "to"), rows)


def _extremes(term: Document) -> Iterator[tuple[str, ...]]:
    """The rows of the lowest and highest temperatures, of each side that varies."""
    for key in ("teacher", "student"):
        side = term[key]
        if side["std"] == 0 or (key == "student" and side == term["teacher"]):
            continue
        for end, which in (("low", "lowest"), ("high", "highest")):
            for row in side[which]:
                place = (_short(row["value"]), str(row["view"]), str(row["sample"]))
                yield f"{end} {_SIDES[key]}", *place, *map(_short, row["teacher"].values())


def _bars(counts: Sequence[int]) -> str:
    """Bars, a character a bin; one that is not empty can be seen."""
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-count * steps // max(counts))] for count in counts)


def _short(value: float) -> str:
    return f"{value:.4g}"
