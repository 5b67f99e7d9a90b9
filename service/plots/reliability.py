"""Reliability diagrams: accuracy against confidence, in the bins that runs have kept."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from service.plots import text
from service.plots.bins import Reliability
from service.plots.data import JobData, RunData
from service.plots.style import COLOURS, PANEL_COLUMNS, PANEL_H, PANEL_W, add_legend

# Panels beside each other; more begin another row.
_COLUMNS = 3
_CAPTION = "a line for each seed; bars: share of rows in each of 15 bins of confidence, mean over seeds"


def draw_reliability(data: JobData) -> Iterator[tuple[str, Figure]]:
    """``reliability-SPLIT``: a panel for each student and method; calibrated beside plain where a run has both."""
    for split in ("validation", "test"):
        groups = [
            (f"{student}, {method}", [run for run in runs if split in run.calibrations])
            for student, method, runs in data.groups()
        ]
        with_rows = [(name, runs) for name, runs in groups if runs]
        if with_rows:
            yield f"reliability-{split}", _draw(data, split, with_rows)


def _draw(data: JobData, split: str, groups: list[tuple[str, list[RunData]]]) -> Figure:
    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    width = max(PANEL_W * columns, PANEL_W + 1.0)
    figure = Figure(figsize=(width, (PANEL_H + 0.3) * rows + 0.8), layout="constrained")
    figure.suptitle(text.heading(data.name, _CAPTION, width))
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    handles: dict[str, object] = {}
    for ax, (name, runs) in zip(axes, groups, strict=False):
        ax.set_title(text.label(name, columns=PANEL_COLUMNS))
        handles |= _draw_panel(ax, split, runs)
        ax.set_xlabel("confidence (%)")
        ax.set_ylabel(f"accuracy, {split} (%)")
        ax.tick_params(labelbottom=True, labelleft=True)
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    add_legend(figure, list(handles.values()), list(handles))
    return figure


def _draw_panel(ax: Axes, split: str, runs: list[RunData]) -> dict[str, object]:
    handles: dict[str, object] = {}
    [handles["perfectly calibrated"]] = ax.plot([0, 100], [0, 100], color="#666666", linestyle="--", linewidth=1.0)
    plain = [run.calibrations[split].plain for run in runs]
    share_B = 100.0 * np.mean([each.share_B for each in plain], axis=0)
    bins = len(share_B)
    edges_B = 100.0 * np.arange(bins) / bins
    handles["share of rows"] = ax.bar(edges_B, share_B, 100.0 / bins, align="edge", color="#cccccc", linewidth=0)
    texts = [f"ECE {100 * np.mean([each.ece for each in plain]):.1f} %"]
    handles["as trained"] = _draw_lines(ax, plain, COLOURS[1], "o")
    calibrated = [each for run in runs if (each := run.calibrations[split].calibrated) is not None]
    if calibrated:
        handles["calibrated by one temperature"] = _draw_lines(ax, calibrated, COLOURS[0], "s")
        texts.append(f"calibrated {100 * np.mean([each.ece for each in calibrated]):.1f} %")
    # Not within the panel, where a line may cross it.
    ax.set_title(f"{ax.get_title()}\n{', '.join(texts)}")
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    return handles


def _draw_lines(ax: Axes, found: list[Reliability], color: str, marker: str) -> object:
    line: object = None
    for each in found:
        kept_B = each.share_B > 0
        [line] = ax.plot(
            100.0 * each.confidence_B[kept_B],
            100.0 * each.accuracy_B[kept_B],
            color=color,
            marker=marker,
            markersize=3.5,
            linewidth=1.2,
        )
    return line
