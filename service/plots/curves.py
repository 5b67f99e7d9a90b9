"""Curves over epochs: a figure for each metric, a panel for each student, a line with its band for each method."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from service.plots import text
from service.plots.data import JobData
from service.plots.metrics import Axis, axis_of
from service.plots.series import Band, band, metric_names
from service.plots.style import Stroke, add_legend, new_figure, strokes

_BAND = "line: mean over seeds; band: mean ± standard deviation over seeds"
_SAMPLES = "line: mean over samples and seeds; band: ± standard deviation over samples"
_MEAN, _STD = "_temperature_mean", "_temperature_std"


def draw_curves(data: JobData) -> Iterator[tuple[str, Figure]]:
    """``curve-METRIC`` for every metric but temperatures."""
    for metric in metric_names(data.runs):
        if "_temperature_" not in metric:
            yield f"curve-{metric}", _draw(data, metric, _BAND)


def draw_temperatures(data: JobData) -> Iterator[tuple[str, Figure]]:
    """``temperature-NETWORK`` (what divides the logits) and ``temperature-NETWORK_paper`` (the paper's T): the mean
    over an epoch's samples, and how they spread."""
    for metric in metric_names(data.runs):
        if metric.endswith(_MEAN):
            yield f"temperature-{metric.removesuffix(_MEAN)}", _draw(data, metric, _SAMPLES)


def _draw(data: JobData, metric: str, caption: str) -> Figure:
    axis = axis_of(metric)
    figure, axes = new_figure(data.name, caption, data.students)
    panels = dict(zip(data.students, axes, strict=True))
    look = strokes(data.methods)
    drawn: dict[str, tuple[object, int]] = {}
    for student, method, runs in data.groups():
        found = band(runs, metric)
        if found is None:
            continue
        spread = band(runs, metric.removesuffix(_MEAN) + _STD) if metric.endswith(_MEAN) else None
        line = _draw_band(panels[student], found, spread, axis=axis, look=look[method])
        drawn[method] = line, max(found.seeds, drawn[method][1] if method in drawn else 0)
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[0].set_ylabel(axis.label)
    labels = [f"{name} (n = {n})" for name, (_, n) in zip(text.labels(list(drawn)), drawn.values(), strict=True)]
    add_legend(figure, [line for line, _ in drawn.values()], labels)
    return figure


def _draw_band(ax: Axes, found: Band, spread: Band | None, *, axis: Axis, look: Stroke) -> object:
    mean_E = found.mean_E * axis.factor
    std_E = (found.std_E if spread is None else spread.mean_E) * axis.factor
    if len(mean_E) == 1:
        # One epoch is neither a line nor a band.
        ax.set_xlim(found.epochs_E[0] - 1, found.epochs_E[0] + 1)
        return ax.errorbar(found.epochs_E, mean_E, std_E, color=look.color, marker="o", capsize=3)
    [line] = ax.plot(found.epochs_E, mean_E, color=look.color, linestyle=look.linestyle)
    if std_E.any():
        ax.fill_between(found.epochs_E, mean_E - std_E, mean_E + std_E, color=look.color, alpha=0.2, linewidth=0)
    return line
