"""Final evaluation of a run: reliability diagram, confusion matrix, and accuracy of each class beside the teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nicegui import ui

from service.page.charts import PALETTE, Options, base_options, chart
from service.page.elements import column, empty_state, section_heading, table
from service.page.job.confusion import show_confused, show_confusion
from service.page.job.words import NOTHING, percent
from service.page.viewer import NOT_FOUND, ApiProblem, Document, ViewerApi

EVALUATION_FILE = "evaluation.json"
_CONFIG_FILE = "config.json"
# Rows of the table of classes; of more, those with the largest gap to the teacher.
CLASSES_MAX = 200
_BARS: Options = {"color": "#8a939b", "itemStyle": {"opacity": 0.45}}


class Evaluation(NamedTuple):
    """Evaluation of a run, with the names of its classes; the document is empty where the run has left none."""

    document: Document
    class_names: Sequence[str]


async def read_evaluation(api: ViewerApi, run_id: str) -> Evaluation:
    """Read the final evaluation of a run from its files. Raises ApiProblem."""
    document = await _artifact(api, run_id, EVALUATION_FILE) or {}
    config = await _artifact(api, run_id, _CONFIG_FILE) if document else None
    return Evaluation(document, [str(name) for name in (config or {}).get("class_names") or ()])


def show_evaluation(evaluation: Evaluation, split: str, teacher: Mapping[str, Any] | None) -> None:
    """Build the figures of a run that has succeeded.

    Args:
        split: ``test`` or ``validation``.
        teacher: its metrics by split, with ``per_class``; None where they are not known.
    """
    found = (evaluation.document.get("splits") or {}).get(split)
    if found is None:
        next_step = "It is written when a run ends; choose another run or split."
        empty_state(f"This run has no evaluation on the {split} split.", next_step)
        return
    names = evaluation.class_names
    per_class = found.get("per_class")
    with ui.element("div").classes("figures"):
        with ui.element("div").classes("figure"):
            _show_reliability(found, evaluation.document.get("calibration") or {}, split)
        if found.get("confusion_cells") and per_class:
            with ui.element("div").classes("figure"):
                show_confusion(found["confusion_cells"], per_class, names)
            show_confused(found["confusion_cells"], names)
        if per_class:
            with ui.element("div").classes("figure"):
                _show_classes(per_class, ((teacher or {}).get(split) or {}).get("per_class"), names)


async def _artifact(api: ViewerApi, run_id: str, name: str) -> Document | None:
    """JSON of a file that a run has left; None without it."""
    try:
        return await api.get(f"/v1/runs/{run_id}/artifacts/{name}")
    except ApiProblem as problem:
        if problem.status == NOT_FOUND:
            return None
        raise


# ------------------------------------------------------------------------------------------------------- reliability


def _show_reliability(found: Document, calibration: Document, split: str) -> None:
    section_heading("Reliability")
    if found.get("reliability") and found.get("ece") is None:
        ui.label(f"No picture of the {split} split has a label: whether the student is right is not known.")
        return
    if not found.get("reliability"):
        ui.label("This run has kept no bins of confidence: an earlier version has made it.")
        return
    calibrated = found.get("calibrated")
    words = [f"ECE {percent(found['ece'])}"]
    if calibrated:
        words.append(f"{percent(calibrated['ece'])} with logits divided by T = {calibration.get('temperature', 0):.3f}")
        words.append(f"which fits {calibration.get('split', 'validation')} best")
    ui.label(", ".join(words) + ". Above the diagonal the student is too cautious, below it too confident.")
    title = f"Reliability on the {split} split: accuracy against confidence"
    options = reliability_options(found["reliability"], (calibrated or {}).get("reliability"), title)
    chart(options, title).classes("chart-square")


def reliability_options(before: Document, after: Document | None, title: str) -> Options:
    """Chart of bins of confidence: rows of each bin as bars, accuracy against mean confidence as lines (percent)."""
    options = base_options(title, x="confidence (%)", y="accuracy (%), share of rows (%)", zoom=False)
    options["xAxis"] |= {"min": 0, "max": 100}
    options["yAxis"] |= {"min": 0, "max": 100}
    rows = before["rows"]
    width = 100.0 / len(rows)
    shares = [[(index + 0.5) * width, round(100.0 * count / max(1, sum(rows)), 2)] for index, count in enumerate(rows)]
    options["series"] = [
        {"type": "bar", "name": "share of rows", "data": shares, "barWidth": "85%", **_BARS},
        {
            **{"type": "line", "name": "perfectly calibrated", "data": [[0, 0], [100, 100]], "symbol": "none"},
            **{"color": "#888888", "lineStyle": {"type": "dashed", "width": 1.5}},
        },
        _bins("as trained", before, PALETTE[1], "circle"),
    ]
    if after is not None:
        options["series"].append(_bins("calibrated by one temperature", after, PALETTE[0], "rect"))
    return options


def _bins(name: str, bins: Document, colour: str, symbol: str) -> Options:
    pairs = zip(bins["confidence"], bins["accuracy"], strict=True)
    data = [
        [round(100.0 * at, 2), round(100.0 * value, 2)] for at, value in pairs if at is not None and value is not None
    ]
    look = {"color": colour, "symbol": symbol, "symbolSize": 7, "lineStyle": {"width": 2}}
    return {"type": "line", "name": name, "data": data, **look}


# ----------------------------------------------------------------------------------------------------------- classes


def _show_classes(
    per_class: Sequence[float | None], teacher: Sequence[float | None] | None, names: Sequence[str]
) -> None:
    section_heading("Classes: student and teacher")
    rows = class_rows(per_class, teacher, names)
    columns = (
        column("name", "Class"),
        column("student", "Student's top-1", align="right"),
        column("teacher", "Teacher's top-1", align="right"),
        column("gap", "Student less teacher, points", align="right"),
    )
    if len(rows) < len(per_class):
        ui.label(f"The {len(rows)} of {len(per_class)} classes on which the student is furthest behind.").classes(
            "muted"
        )
    table(columns, rows, title="Accuracy of each class, student and teacher")


def class_rows(
    per_class: Sequence[float | None], teacher: Sequence[float | None] | None, names: Sequence[str]
) -> list[Document]:
    """Rows of classes, those on which the student is furthest behind the teacher first."""
    taught = list(teacher or [])
    found = []
    for index, accuracy in enumerate(per_class):
        of_teacher = taught[index] if index < len(taught) else None
        gap = None if accuracy is None or of_teacher is None else 100.0 * (accuracy - of_teacher)
        row = {"id": index, "name": class_name(index, names), "student": percent(accuracy, 1)}
        row |= {"teacher": percent(of_teacher, 1), "gap": NOTHING if gap is None else f"{gap:+.1f}"}
        found.append((gap if gap is not None else (accuracy or 0.0) * 100.0, row))
    return [row for _, row in sorted(found, key=lambda each: each[0])[:CLASSES_MAX]]


def class_name(index: int, names: Sequence[str]) -> str:
    """Number of a class, with its name where that is known, and says more."""
    return f"{index} {names[index]}" if index < len(names) and names[index] != str(index) else str(index)
