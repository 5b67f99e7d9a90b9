"""Table of results: students and methods over their seeds, differences to a baseline, and the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from service.page.elements import Newest, attempt, column, empty_state, section_heading, table
from service.page.job.page import JobPage
from service.page.job.words import NOTHING, number, percent, spread
from service.page.paths import viewer_url
from service.page.viewer import Document

# Columns that can be chosen, beside the name, which is always there.
_CHOICES = {
    "n": "Seeds",
    "top1": "Top-1",
    "difference": "Difference",
    "mcnemar": "McNemar's test",
    "agreement": "Agreement",
    "nll": "NLL",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "top5": "Top-5",
    "worst": "Worst class",
}
# As many as a desk's screen takes.
_SHOWN = ("top1", "difference", "mcnemar", "agreement", "ece", "ece_calibrated", "worst")
DEFAULTS = {"baseline": "", "confidence": "0.95", "paired": "seeds", "columns": ",".join(_SHOWN)}
SPLITS = ("test", "validation")
_CONFIDENCES = {"0.9": "90 %", "0.95": "95 %", "0.99": "99 %"}
_PAIRED = {"seeds": "paired by seed", "samples": "and McNemar's test of each seed"}
_FORMATS = {"csv": "CSV", "markdown": "Markdown", "latex": "LaTeX"}


async def show_results(page: JobPage) -> None:
    """Build the tab of results; it follows the runs that end. Raises Problem."""
    with ui.element("div").classes("controls"):
        methods = list(dict.fromkeys(run.method for run in page.store.runs.values()))
        chosen = page.url["baseline"] if page.url["baseline"] in methods else "ce"
        baseline = ui.select(sorted({*methods, "ce"}), label="Difference to", value=chosen)
        confidence = ui.select(_CONFIDENCES, label="Interval", value=page.url.choice("confidence", _CONFIDENCES))
        paired = ui.select(_PAIRED, label="Differences", value=page.url.choice("paired", _PAIRED))
        columns = ui.select(_CHOICES, label="Columns", value=_chosen(page), multiple=True)
        for each in (baseline, confidence, paired, columns):
            each.props("outlined dense options-dense").classes("control")
    content = ui.element("div").classes("tab-content")

    newest = Newest(content)

    async def draw() -> None:
        report = await newest.of(page.api.get(f"{page.path}/report", _params(page)))
        if report is None:
            return
        content.clear()
        with content:
            _show(page, report)

    async def choose() -> None:
        picked = "" if baseline.value == "ce" else str(baseline.value)
        shown = ",".join(name for name in _CHOICES if name in columns.value)
        page.url.set(baseline=picked, confidence=str(confidence.value), paired=str(paired.value), columns=shown)
        await attempt(draw())

    for each in (baseline, confidence, paired, columns):
        each.on_value_change(choose)
    succeeded = [page.job["progress"]["runs"]["succeeded"]]

    async def follow(_: bool) -> None:
        now = page.job["progress"]["runs"]["succeeded"]
        if [now] != succeeded:
            succeeded[:] = [now]
            await draw()

    page.listeners.append(follow)
    await draw()


def _chosen(page: JobPage) -> list[str]:
    """Columns that are shown beside the name."""
    return [name for name in page.url["columns"].split(",") if name in _CHOICES]


def _params(page: JobPage) -> dict[str, str]:
    chosen = {"confidence": page.url.choice("confidence", _CONFIDENCES), "paired": page.url.choice("paired", _PAIRED)}
    return {"baseline": page.url["baseline"], **chosen}


def _show(page: JobPage, report: Document) -> None:
    if not any(group[split] for group in report["groups"] for split in SPLITS):
        empty_state(
            "No run has succeeded yet.", "Results appear here by themselves, as runs end. Curves show them before."
        )
        return
    for split in SPLITS:
        rows = group_rows(report, split)
        if rows:
            section_heading(f"{split.capitalize()} split")
            columns = columns_of(report, split, _chosen(page))
            table(columns, rows, title=f"Results on the {split} split").classes("results-table")
    _show_epochs(report)
    for note in report["notes"]:
        ui.label(f"Note: {note}").classes("muted")
    with ui.element("div").classes("links"):
        ui.label("As a file:")
        query = urlencode({name: value for name, value in _params(page).items() if value})
        for name, label in _FORMATS.items():
            ui.link(label, viewer_url(f"{page.path}/report?format={name}&group=seeds&{query}"))
        ui.link("CSV of every run", viewer_url(f"{page.path}/report?format=csv&group=runs"))


def columns_of(report: Document, split: str, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Columns of a split's table: the name, and those that are chosen."""
    level = f"{100 * report['confidence']:g} %"
    baseline = report["baseline"] or "baseline"
    columns = [
        column("name", "Student and method"),
        column("n", "Seeds", align="right"),
        column("top1", "Top-1", align="right"),
        column("difference", f"Difference to {baseline} [{level}]", align="right"),
        column("agreement", "Agreement", align="right"),
        column("nll", "NLL", align="right"),
        column("ece", "ECE", align="right"),
        column("ece_calibrated", "ECE, calibrated", align="right"),
        column("top5", "Top-5", align="right"),
        column("worst", "Worst class: top-1 (teacher)", align="right"),
    ]
    if not any((group[split] or {}).get("top1") for group in report["groups"]):
        # Without labels the teacher's answers are all that the split is measured by.
        columns.insert(5, column("kl", "KL(teacher || student)", align="right"))
    if any((group[split] or {}).get("samples") for group in report["groups"]):
        columns.insert(4, column("mcnemar", "McNemar, p of each seed"))
    return [each for each in columns if each["name"] in ("name", "kl", *chosen)]


def group_rows(report: Document, split: str) -> list[Document]:
    """Rows of a split's table: the teacher's, then each group that has results there."""
    students = {group["student"] for group in report["groups"]}
    rows = [_teacher_row(report["teacher"].get(split))]
    for group in report["groups"]:
        if (found := group[split]) is None:
            continue
        name = group["method"] if len(students) == 1 else f"{group['student']} {group['method']}"
        rows.append({"id": f"{group['student']} {group['method']}", "name": name, **_cells(found)})
    return [row for row in rows if row] if len(rows) > 1 else []


def _teacher_row(teacher: Document | None) -> Document:
    if teacher is None:
        return {}
    return {
        "id": "the teacher",
        "name": "teacher",
        "n": NOTHING,
        "top1": percent(teacher["top1"]),
        "difference": NOTHING,
        "agreement": NOTHING,
        "kl": NOTHING,
        "nll": number(teacher["nll"]),
        "ece": percent(teacher["ece"]),
        "ece_calibrated": NOTHING,
        "top5": percent(teacher["top5"]),
        "worst": NOTHING,
    }


def _cells(found: Document) -> dict[str, Any]:
    worst = found["worst_class"]
    return {
        "n": (found["top1"] or found["agreement"] or {"n": 0})["n"],
        "top1": spread(found["top1"], 100.0, unit=" %"),
        "difference": difference_words(found["difference"]),
        "mcnemar": "; ".join(f"{test['seed']}: {test['p_value']:.2g}" for test in found["samples"] or ()),
        "agreement": spread(found["agreement"], 100.0, unit=" %"),
        "kl": spread(found.get("kl"), digits=4),
        "nll": spread(found["nll"], digits=3),
        "ece": spread(found["ece"], 100.0, unit=" %"),
        "ece_calibrated": spread(found["ece_calibrated"], 100.0, unit=" %"),
        "top5": spread(found["top5"], 100.0, unit=" %"),
        "worst": f"{worst['index']}: {percent(worst['accuracy'], 1)} ({percent(worst['teacher'], 1)})"
        if worst
        else NOTHING,
    }


def difference_words(found: Mapping[str, Any] | None) -> str:
    """Difference in percentage points, with its interval and what it says about 0."""
    if found is None:
        return NOTHING
    mean = f"{100 * found['mean']:+.2f}"
    if found["low"] is None:
        return f"{mean} (no interval: {found['n']} pair{'s' if found['n'] > 1 else ''})"
    sign = "above" if found["low"] > 0 else "below" if found["high"] < 0 else "includes 0"
    verdict = sign if sign == "includes 0" else f"{sign} 0"
    return f"{mean} [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}] {verdict}"


def _show_epochs(report: Document) -> None:
    """Show the accuracy of the last and of the best epoch of each group, the latter chosen on validation."""
    rows = epoch_rows(report["rows"])
    if not rows:
        return
    section_heading("Last and best epoch")
    columns = (
        column("name", "Student and method"),
        column("last", "Last epoch: top-1 on test", align="right"),
        column("best", "Best epoch: top-1 on validation, which chose it", align="right"),
        column("epochs", "Best epoch of each seed"),
    )
    table(columns, rows, title="Accuracy of the last and of the best epoch")


def epoch_rows(rows: Sequence[Document]) -> list[Document]:
    """Means over seeds of the last epoch's accuracy, and of the best one's with its number; of runs that succeeded."""
    groups: dict[str, list[Document]] = {}
    students = {row["student"] for row in rows}
    for row in rows:
        if row["state"] == "succeeded":
            name = row["method"] if len(students) == 1 else f"{row['student']} {row['method']}"
            groups.setdefault(name, []).append(row)
    shown = []
    for name, members in groups.items():
        best = [row["best_epoch"] for row in members if row["best_epoch"] is not None]
        shown.append(
            {
                "id": name,
                "name": name,
                "last": _mean([row["accuracy_last"] for row in members]),
                "best": _mean([row["accuracy_best"] for row in members]),
                "epochs": ", ".join(map(str, best)) or "no validation split: none is called best",
            }
        )
    return shown


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return percent(sum(known) / len(known)) if known else NOTHING
