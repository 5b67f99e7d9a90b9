"""Scatter of accuracy against agreement, size, speed and other measures of runs that have succeeded."""

from collections.abc import Mapping, Sequence

from nicegui import ui

from service.page.charts import Options, base_options, chart, colours_of, marks_of
from service.page.elements import empty_state
from service.page.job.curve_groups import reference_line
from service.page.job.page import JobPage
from service.page.viewer import Document
from workers.texts import shortened

# Name of a column of a report's rows, label with unit, factor to the unit.
AXES = {
    "agreement": ("Agreement with the teacher, test (%)", 100.0),
    "parameters": ("Parameters of the student", 1.0),
    "images_per_s": ("Training throughput (pictures/s)", 1.0),
    "seconds": ("Training time (s)", 1.0),
    "ece": ("Expected calibration error, test (%)", 100.0),
    "nll": ("Negative log-likelihood, test (nats)", 1.0),
    "kl_to_teacher": ("KL(teacher || student), test (nats)", 1.0),
}
_SPLITS = {"accuracy": "Top-1, test (%)", "validation_accuracy": "Top-1, validation (%)"}
DEFAULTS = {"x": "agreement", "y": "accuracy"}
POINTS_MAX = 2000
Point = tuple[float, float, int]
"""Across, up, seed."""


async def show_scatter(page: JobPage) -> None:
    """Build the tab of the scatter; it follows the runs that end. Raises Problem."""
    with ui.element("div").classes("controls"):
        x = ui.select(
            {name: label for name, (label, _) in AXES.items()}, label="Across", value=page.url.choice("x", AXES)
        )
        y = ui.select(_SPLITS, label="Up", value=page.url.choice("y", _SPLITS))
        for each in (x, y):
            each.props("outlined dense options-dense").classes("control-wide")
    content = ui.element("div").classes("tab-content")
    listeners = page.listeners
    rows = await _rows(page)

    def draw() -> None:
        content.clear()
        with content:
            _show(page, rows, str(x.value), str(y.value))

    def choose() -> None:
        page.url.set(x=str(x.value), y=str(y.value))
        draw()

    async def follow(_: bool) -> None:
        if page.job["progress"]["runs"]["succeeded"] != len(rows):
            rows[:] = await _rows(page)
            draw()

    x.on_value_change(choose)
    y.on_value_change(choose)
    listeners.append(follow)
    draw()


async def _rows(page: JobPage) -> list[Document]:
    """Rows of the report that have succeeded, with the parameters of their student."""
    report = await page.api.get(f"{page.path}/report", {"group": "runs"})
    rows = [row for row in report["rows"] if row["state"] == "succeeded"]
    sizes: dict[str, int | None] = {}
    for row in rows:
        if row["student"] not in sizes:
            run = await page.api.get(f"/v1/runs/{row['run_id']}")
            sizes[row["student"]] = (run["result"] or {}).get("parameters")
        row["parameters"] = sizes[row["student"]]
    return rows


def _show(page: JobPage, rows: Sequence[Document], x: str, y: str) -> None:
    found = points_of(rows, x, y)
    if not found:
        empty_state("No run has succeeded with both measures yet.", "Points appear here by themselves, as runs end.")
        return
    label, _ = AXES[x]
    options = base_options(f"{_SPLITS[y]} against {label}", x=label, y=_SPLITS[y], zoom=False)
    options["tooltip"] = {"trigger": "item", "confine": True, "renderMode": "richText"}
    options["legend"]["itemWidth"] = 12
    # All of the job, as in its curves: some may have no point yet.
    options["series"] = _series(found, [run.method for run in page.store.runs.values()])
    split = "test" if y == "accuracy" else "validation"
    teacher = ((page.job.get("teacher_metrics") or {}).get(split) or {}).get("top1")
    if teacher is not None:
        values = [value for points in found.values() for value, _, _ in points]
        line = reference_line("teacher", 100.0 * teacher, 2)
        line["data"] = [[min(values), 100.0 * teacher], [max(values), 100.0 * teacher]]
        options["series"].append(line)
    chart(options, f"{_SPLITS[y]} against {label}").classes("chart-tall")
    ui.label("A point for each run that has succeeded, a shape and colour for each method.").classes("muted")


def points_of(rows: Sequence[Document], x: str, y: str) -> dict[tuple[str, str], list[Point]]:
    """Points by student and method, in their units; without rows that lack one of the two measures."""
    factor = AXES[x][1]
    found: dict[tuple[str, str], list[Point]] = {}
    for row in rows[:POINTS_MAX]:
        if row.get(x) is not None and row.get(y) is not None:
            point = float(f"{factor * row[x]:.6g}"), float(f"{100.0 * row[y]:.6g}"), row["seed"]
            found.setdefault((row["student"], row["method"]), []).append(point)
    return found


def _series(found: Mapping[tuple[str, str], list[Point]], of_job: Sequence[str]) -> list[Options]:
    methods = [*of_job, *(method for _, method in found)]
    colours, marks = colours_of(methods), marks_of(methods)
    has_students = len({student for student, _ in found}) > 1
    series = []
    for (student, method), points in found.items():
        name = shortened(f"{student} {method}" if has_students else method, 60)
        data = [{"value": [at, value], "name": f"{name} seed {seed}"} for at, value, seed in points]
        look = {"color": colours[method], "symbol": marks[method][0], "symbolSize": 12}
        series.append({"type": "scatter", "name": name, "data": data, **look})
    return series
