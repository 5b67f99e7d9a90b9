"""Confusion matrices of the weights that runs leave: which class is taken for which."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from service.plots import text
from service.plots.data import JobData, RunData
from service.plots.style import PANEL_W

# Above so many classes cells have no numbers, and above so many axes no names.
_NUMBERS_MAX = 20
_NAMES_MAX = 60
_NAME_CHARS = 18
_CELL_IN = 0.34
# What names, colour bar and title leave of a side.
_BESIDE_IN = 2.6
_SIDE_MAX_IN = 11.0
# Share of a row from which a number is white on its cell.
_DARK = 0.5


def draw_confusion(data: JobData) -> Iterator[tuple[str, Figure]]:
    """``confusion-SPLIT-NUMBER`` for each student and method, summed over seeds; rows are labels."""
    for split in ("validation", "test"):
        for number, (student, method, runs) in enumerate(data.groups(), 1):
            matrices = [run.confusions[split] for run in runs if split in run.confusions]
            if matrices:
                counts_CC = np.sum(matrices, axis=0)
                caption = f"{text.label(f'{student}, {method}')}, {split}, {_seeds(len(matrices))}"
                yield f"confusion-{split}-{number}", _draw(data, counts_CC, _names(runs, len(counts_CC)), caption)


def _draw(data: JobData, counts_CC: np.ndarray, names: Sequence[str], caption: str) -> Figure:
    classes = len(counts_CC)
    side = min(_SIDE_MAX_IN, max(PANEL_W, _CELL_IN * classes + _BESIDE_IN))
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    figure.suptitle(text.heading(data.name, caption, side + 1.0))
    ax = figure.subplots()
    rows_C1 = counts_CC.sum(axis=1, keepdims=True)
    share_CC = np.divide(counts_CC, rows_C1, out=np.zeros(counts_CC.shape), where=rows_C1 > 0)
    # One hue, from white on: in grey, and to colour-blind readers, it is the same map.
    drawn = ax.imshow(100.0 * share_CC, cmap="Blues", vmin=0.0, vmax=100.0)
    figure.colorbar(drawn, ax=ax, label="share of the label's rows (%)", shrink=0.8)
    ax.grid(visible=False)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("label")
    if classes <= _NAMES_MAX:
        shown = text.labels(names, _NAME_CHARS)
        ax.set_xticks(range(classes), shown, rotation=90)
        ax.set_yticks(range(classes), shown)
    if classes <= _NUMBERS_MAX:
        for (row, column), count in np.ndenumerate(counts_CC):
            if count:
                color = "white" if share_CC[row, column] > _DARK else "black"
                ax.text(column, row, str(count), ha="center", va="center", color=color, fontsize=7)
    return figure


def _names(runs: Sequence[RunData], classes: int) -> Sequence[str]:
    known = [run.class_names for run in runs if len(run.class_names) == classes]
    return known[0] if known else [str(number) for number in range(classes)]


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"sum over {number} seeds"
