"""Confusion matrix of a run: a heat map of true and predicted classes, and its largest confusions as a table."""

from collections.abc import Sequence

from nicegui import ui

from service.page.charts import TEXT, Options, axis_look, chart
from service.page.elements import column, section_heading, table
from service.page.viewer import Document
from workers.texts import shortened

# Classes of a heat map; of more, those with the most mistakes.
CLASSES_MAX = 40
_NUMBERED_MAX = 15
_PAIRS = 10
_NAME_CHARS = 16
Cell = Sequence[int]
"""True class, predicted class, rows."""


def show_confusion(cells: Sequence[Cell], per_class: Sequence[float | None], names: Sequence[str]) -> None:
    """Build the heat map.

    Args:
        cells: that are not 0.
        per_class: accuracy of each class, whose number is that of the classes.
    """
    section_heading("Confusion")
    classes = chosen_classes(cells, len(per_class))
    if len(classes) < len(per_class):
        words = f"The {len(classes)} of {len(per_class)} classes with the most mistakes."
        ui.label(f"{words} Shares are of all rows of a class.").classes("muted")
    title = "Confusion matrix: true classes down, predicted ones across"
    chart(confusion_options(cells, classes, names, title), title).classes("chart-square")


def show_confused(cells: Sequence[Cell], names: Sequence[str]) -> None:
    """Build the table of the pairs of classes that are confused most."""
    columns = (
        column("true", "True class"),
        column("predicted", "Taken for"),
        column("rows", "Rows", align="right"),
        column("share", "Of the class", align="right"),
    )
    with ui.element("div").classes("figure"):
        section_heading("Confused most")
        table(columns, confused_rows(cells, names), title="Classes that are confused most")


def chosen_classes(cells: Sequence[Cell], count: int) -> list[int]:
    """Classes of the heat map, in their order: all, or those that take part in the most mistakes."""
    if count <= CLASSES_MAX:
        return list(range(count))
    mistakes = [0] * count
    for true, predicted, rows in cells:
        if true != predicted:
            mistakes[true] += rows
            mistakes[predicted] += rows
    return sorted(sorted(range(count), key=lambda index: -mistakes[index])[:CLASSES_MAX])


def confused_rows(cells: Sequence[Cell], names: Sequence[str]) -> list[Document]:
    """Rows of the pairs of different classes that are confused most."""
    totals = _totals(cells)
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:_PAIRS]
    return [
        {
            "id": f"{true}-{predicted}",
            "true": _label(true, names),
            "predicted": _label(predicted, names),
            "rows": rows,
            "share": f"{100 * rows / totals[true]:.1f} %",
        }
        for true, predicted, rows in wrong
    ]


def _totals(cells: Sequence[Cell]) -> dict[int, int]:
    totals: dict[int, int] = {}
    for true, _, rows in cells:
        totals[true] = totals.get(true, 0) + rows
    return totals


def _label(index: int, names: Sequence[str]) -> str:
    is_told = index < len(names) and names[index] != str(index)
    return f"{index} {shortened(names[index], _NAME_CHARS)}" if is_told else str(index)


def confusion_options(cells: Sequence[Cell], classes: Sequence[int], names: Sequence[str], title: str) -> Options:
    """Heat map of the share of each true class (percent) that is taken for each class."""
    totals = _totals(cells)
    rows_of = {(true, predicted): rows for true, predicted, rows in cells}
    data = [
        [across, down, round(100.0 * rows_of.get((true, predicted), 0) / max(1, totals.get(true, 0)), 1)]
        for down, true in enumerate(classes)
        for across, predicted in enumerate(classes)
    ]
    labels = [_label(index, names) for index in classes]
    axis = {**axis_look(), "type": "category", "data": labels}
    return {
        "aria": {"enabled": True, "label": {"general": {"withTitle": title}}},
        "animation": False,
        "backgroundColor": "transparent",
        "tooltip": {"trigger": "item", "confine": True, "renderMode": "richText"},
        "grid": {"left": 8, "right": 8, "top": 8, "bottom": 64, "containLabel": True},
        "xAxis": {**axis, "axisLabel": {"rotate": 60, "fontSize": 11, "color": TEXT}},
        "yAxis": {**axis, "inverse": True, "axisLabel": {"fontSize": 11, "color": TEXT}},
        # Viridis, which is read without colour vision as well: from dark to light.
        "visualMap": {
            **{"min": 0, "max": 100, "calculable": True, "orient": "horizontal", "left": "center", "bottom": 0},
            **{"text": ["100 %", "0 %"], "textStyle": {"color": TEXT}, "itemHeight": 160, "itemWidth": 12},
            "inRange": {"color": ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]},
        },
        "series": [
            {
                "type": "heatmap",
                "name": "share of the true class (%)",
                "data": data,
                "label": {"show": len(classes) <= _NUMBERED_MAX, "fontSize": 10},
            }
        ],
    }
