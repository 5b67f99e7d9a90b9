"""Style of figures: colours that colour-blind readers tell apart, plain text, the same bytes for the same data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from service.plots import text

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which a white page swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Beyond seven, another stroke: two lines of one colour are told apart by it.
_STROKES = ("-", "--", ":", "-.")
# Of one panel, in inches, and the pixels of an inch in a PNG.
PANEL_W, PANEL_H = 4.6, 3.4
_DPI = 150
# Of a legend's row, of a character in it, and of the stroke before it, in inches.
_LEGEND_ROW_IN = 0.2
_LEGEND_CHAR_IN = 0.085
_LEGEND_STROKE_IN = 0.75
# Of a panel's title.
PANEL_COLUMNS = 40

_RC: dict[str, Any] = {
    # Names hold dollar signs and backslashes, which are no formulas here.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "figure.titlesize": 10.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Text stays text: it can be searched, and a browser draws what no font here has.
    "svg.fonttype": "none",
    # Ids of elements are made of it, and not of chance.
    "svg.hashsalt": "retort",
}


@contextmanager
def rc() -> Iterator[None]:
    """Within it, figures are made and saved in this style."""
    settings: dict[Any, Any] = {**_RC, "font.family": list(text.families())}
    with matplotlib.rc_context(settings):
        yield


@dataclass(frozen=True)
class Stroke:
    """Colour and stroke of the line of one series."""

    color: str
    linestyle: str


def strokes(names: Sequence[str]) -> dict[str, Stroke]:
    """A stroke for each name, in their order."""
    return {
        name: Stroke(COLOURS[number % len(COLOURS)], _STROKES[number // len(COLOURS) % len(_STROKES)])
        for number, name in enumerate(names)
    }


def new_figure(
    job_name: str, subtitle: str, panels: Sequence[str], *, height: float = PANEL_H
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each name beside the other, the job's name as its title.

    No window system and no global state: the figure is not pyplot's.
    """
    width = max(PANEL_W * len(panels), PANEL_W + 1.0)
    figure = Figure(figsize=(width, height + 0.6), layout="constrained")
    figure.suptitle(text.heading(job_name, subtitle, width))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, panels, strict=True):
        ax.set_title(text.label(name, columns=PANEL_COLUMNS))
    return figure, list(axes)


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend below all panels; the figure grows by its height."""
    entry_in = _LEGEND_STROKE_IN + _LEGEND_CHAR_IN * max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() / entry_in)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW_IN * rows)
    legend = figure.legend(handles, ["?"] * len(labels), loc="outside lower center", ncols=columns, frameon=False)
    # Set here: a legend leaves out labels that begin with an underscore.
    for drawn, label in zip(legend.get_texts(), labels, strict=True):
        drawn.set_text(label)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.svg`` and ``NAME.png``; the same figure has the same bytes, whenever it is drawn."""
    # The layout is found once, and is the same in both.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    figure.savefig(png, dpi=_DPI, metadata={"Software": None})
    return [svg, png]
