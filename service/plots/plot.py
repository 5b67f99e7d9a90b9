"""All figures of a job or run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from service.plots import style
from service.plots.confusion import draw_confusion
from service.plots.curves import draw_curves, draw_temperatures
from service.plots.data import JobData
from service.plots.methods import draw_methods
from service.plots.reliability import draw_reliability

# What draws figures, and why there may be none.
_KINDS: tuple[tuple[Callable[[JobData], Iterator[tuple[str, Figure]]], str], ...] = (
    (draw_curves, "no curves: no run has ended an epoch"),
    (draw_methods, "no comparison of methods: no run has succeeded and has a top-1 accuracy"),
    (draw_temperatures, "no temperatures: no run has a method with temperatures, or none has ended an epoch"),
    (
        draw_reliability,
        "no reliability diagram: no run has left bins of confidence (it has not ended, or an earlier version made it)",
    ),
    (
        draw_confusion,
        "no confusion matrix: no result has an evaluation with one (it has not ended, or an earlier version made it)",
    ),
)


@dataclass
class Plotted:
    """Files that were written, and a sentence for each kind of figure that there is none of."""

    files: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def plot(data: JobData, folder: Path) -> Plotted:
    """Write every figure of a job or run as SVG and PNG.

    Args:
        data: of ``service.plots.data.read``.
        folder: made if it is not there; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = Plotted()
    with style.rc():
        for draw, why_none in _KINDS:
            before = len(done.files)
            for name, figure in draw(data):
                done.files += style.save(figure, folder, name)
            if len(done.files) == before:
                done.skipped.append(why_none)
    return done
