"""Methods beside each other: accuracy of the weights that runs leave, over seeds, with 95 % t intervals."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from service.client.kept_metrics import kept_prefix
from service.plots import text
from service.plots.data import JobData, RunData
from service.plots.metrics import axis_of
from service.plots.style import PANEL_H, add_legend, new_figure, strokes

_CONFIDENCE = 0.95
_ROW_IN = 0.4
_ROW_COLUMNS = 24
_METRICS = {"test": "top1", "validation": "validation_top1"}


def draw_methods(data: JobData) -> Iterator[tuple[str, Figure]]:
    """``methods-SPLIT``: a panel for each student, a row for each method."""
    for split, metric in _METRICS.items():
        if any(_kept(runs, metric) for _, _, runs in data.groups()):
            yield f"methods-{split}", _draw(data, split, metric)


def _draw(data: JobData, split: str, metric: str) -> Figure:
    caption = "circles: seeds; diamond and bar: mean with 95 % t interval over seeds (no bar for one seed)"
    height = max(PANEL_H - 1.0, 1.2 + _ROW_IN * len(data.methods))
    figure, axes = new_figure(data.name, caption, data.students, height=height)
    panels = dict(zip(data.students, axes, strict=True))
    look = strokes(data.methods)
    rows = {method: -number for number, method in enumerate(data.methods)}
    for student, method, runs in data.groups():
        values = 100.0 * np.array(_kept(runs, metric))
        if len(values):
            _draw_row(panels[student], rows[method], values, look[method].color)
    for ax in axes:
        ax.set_xlabel(f"{axis_of(metric).label},\nof the weights that leave")
        ax.set_yticks(list(rows.values()), text.labels(data.methods, columns=_ROW_COLUMNS))
        ax.set_ylim(-len(rows) + 0.4, 0.6)
    _draw_teacher(data, split, figure, axes)
    return figure


def _draw_row(ax: Axes, row: int, values: np.ndarray, color: str) -> None:
    ax.plot(values, np.full(len(values), row - 0.15), "o", color=color, markersize=3.5, fillstyle="none")
    mean = float(values.mean())
    ax.plot([mean], [row], "D", color=color, markersize=5)
    if len(values) > 1:
        low, high = interval(values)
        ax.plot([low, high], [row, row], "-", color=color, linewidth=1.8)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t; a point where all values are the same."""
    error = stats.sem(values)
    if error == 0.0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(_CONFIDENCE, len(values) - 1, loc=values.mean(), scale=error)
    return float(low), float(high)


def _draw_teacher(data: JobData, split: str, figure: Figure, axes: Sequence[Axes]) -> None:
    told = (data.job.get("teacher_metrics") or {}).get(split) or {}
    top1 = told.get("top1", data.job.get("teacher_accuracy") if split == "test" else None)
    if top1 is None:
        return
    lines = [ax.axvline(100.0 * top1, color="#666666", linestyle="--", linewidth=1.2) for ax in axes]
    add_legend(figure, lines[:1], ["teacher"])


def _kept(runs: Sequence[RunData], metric: str) -> list[float]:
    """The metric of the epoch whose weights each run has left; of runs that have succeeded."""
    values = [
        run.metrics[int(run.result.get("selected_epoch") or len(run.metrics)) - 1].get(
            metric.replace("top1", f"{kept_prefix(run.result)}top1")
        )
        for run in runs
        if run.metrics and run.document["state"] == "succeeded"
    ]
    return [value for value in values if value is not None]
