"""Tabs of a run's view: curves, files, log and configuration."""

import json
from collections.abc import Sequence

from nicegui import ui

from service.page.charts import Options, base_options, chart, colours_of, line
from service.page.elements import column, copyable, empty_state, section_heading, table
from service.page.job.events import event_words
from service.page.job.measures import MEASURES, Measure
from service.page.job.run_page import RunPage
from service.page.job.series import scaled, smooth, thinned
from service.page.job.words import percent
from service.page.paths import viewer_url
from service.page.viewer import NOT_FOUND, ApiProblem, Document
from service.units import size
from workers.texts import shortened

# Of the log, what is shown of its end; the whole one is a file.
_TAIL_BYTES = 20_000
_RANGE_NOT_SATISFIABLE = 416
_MEASURES = ("top1", "loss", "agreement", "kl", "ece", "nll", "teacher_t", "student_t")
_MARKED_MAX = 40
_SPLIT_MARKS = {"train": "triangle", "validation": "rect", "test": "circle", "": "circle"}


# ------------------------------------------------------------------------------------------------------------ curves


async def show_run_curves(page: RunPage) -> None:
    """Build a small chart for each measure that the run has; they follow it. Raises ApiProblem."""
    empty = ui.label("No epoch has ended yet: curves appear here by themselves.").classes("empty-text")
    grid = ui.element("div").classes("figures")
    charts: dict[str, ui.echart] = {}

    async def draw(_: bool = True) -> None:
        epochs = (await page.api.get(f"{page.path}/metrics"))["data"]
        empty.set_visibility(not epochs)
        for name in _MEASURES:
            series = run_series(epochs, MEASURES[name])
            if not series:
                continue
            if name not in charts:
                with grid:
                    charts[name] = chart(_small(MEASURES[name]), f"{MEASURES[name].label} over epochs")
            charts[name].options["series"] = series
            charts[name].update()

    seen = [(page.run["attempt"], page.run["epoch"])]

    async def follow(_: bool) -> None:
        now = (page.run["attempt"], page.run["epoch"])
        if [now] != seen:
            seen[:] = [now]
            await draw()

    page.listeners.append(follow)
    await draw()


def _small(measure: Measure) -> Options:
    options = base_options(measure.label, x="epoch", y=measure.label, zoom=False)
    options["xAxis"] |= {"minInterval": 1, "min": "dataMin", "max": "dataMax"}
    return options


def run_series(epochs: Sequence[Document], measure: Measure, smoothing: float = 0.0) -> list[Options]:
    """Lines of a run's measure, one for each split that has it."""
    colours = colours_of([*_SPLIT_MARKS])
    series = []
    for split, metric in measure.metrics.items():
        values = {int(each["epoch"]): each[metric] for each in epochs if each.get(metric) is not None}
        if not values:
            continue
        smoothed = smooth(values, smoothing)
        rows = [scaled((at, value, value, value), measure.factor) for at, value in smoothed.items()]
        points = [(at, value) for at, value, _, _ in thinned(rows)]
        look = {"symbol": _SPLIT_MARKS[split], "showSymbol": len(points) <= _MARKED_MAX, "symbolSize": 6}
        series.append(line(split or measure.label, points, colours[split], **look))
    return series


# ------------------------------------------------------------------------------------------------------------- files


async def show_files(page: RunPage) -> None:
    """Build the list of files to download, and what the exported student is. Raises ApiProblem."""
    files = (await page.api.get(f"{page.path}/artifacts"))["data"]
    if not files:
        empty_state(
            "This run has left no file yet.", "Student, metrics and evaluation are files once it has succeeded."
        )
        return
    columns = (
        column("name", "File: a click downloads it"),
        column("size", "Size", align="right"),
        column("what", "Content"),
        column("sha256", "SHA-256"),
    )
    rows = [
        {
            "id": file["name"],
            "name": file["name"],
            "url": viewer_url(f"{page.path}/artifacts/{file['name']}"),
            "size": size(file["size_bytes"]),
            "what": _CONTENTS.get(file["name"], file["media_type"]),
            "sha256": file["sha256"],
        }
        for file in files
    ]
    table(columns, rows, title="Files of the run").classes("files-table")
    _show_export(page.run["result"] or {})


_CONTENTS = {
    "student.onnx": "the student, for ONNX Runtime",
    "student.int8.onnx": "the student with 8-bit weights",
    "student.safetensors": "the student's weights",
    "model.zip": "the student with what it needs to be loaded",
    "config.json": "method, training, preprocessing, class names",
    "bundle.json": "what the run was made from, to train it again",
    "metrics.jsonl": "metrics of every epoch",
    "result.json": "result of the run",
    "evaluation.json": "confusion, reliability, accuracy of each class",
    "logits.safetensors": "logits of the evaluated splits",
    "temperatures.json": "histograms of both temperatures",
    "events.out.tfevents.retort": "for TensorBoard",
    "log.jsonl": "log of the run",
}


def _show_export(result: Document) -> None:
    int8 = result.get("int8") or {}
    if not int8:
        return
    test = int8.get("test") or int8.get("validation") or {}
    words = f"refused: {int8['refused']}" if int8.get("refused") else f"{size(int8.get('bytes') or 0)}"
    if test.get("top1") is not None:
        words += f", top-1 {percent(test['top1'])} against {percent(test['top1_float'])} as float"
    ui.label(f"8-bit student: {words}").classes("muted")


# --------------------------------------------------------------------------------------------------------------- log


async def show_log(page: RunPage) -> None:
    """Build the end of the newest attempt's log; it follows it. Raises ApiProblem."""
    ui.link("The whole log as a file", viewer_url(f"{page.path}/log"))
    text = ui.label().classes("log").props("role=log tabindex=0 aria-label='End of the log'")

    async def draw(_: bool = True) -> None:
        text.set_text(await _tail(page) or "Nothing was logged yet: the log begins when an engine takes the run up.")

    page.listeners.append(draw)
    await draw()


async def _tail(page: RunPage) -> str:
    """Last lines of the log, newest last; empty without any."""
    try:
        response = await page.api.request("GET", f"{page.path}/log", headers={"Range": f"bytes=-{_TAIL_BYTES}"})
    except ApiProblem as problem:
        if problem.status in (NOT_FOUND, _RANGE_NOT_SATISFIABLE):
            return ""
        raise
    lines = response.content.decode(errors="replace").splitlines()
    # The first one may have lost its beginning.
    whole = lines[1:] if len(response.content) >= _TAIL_BYTES else lines
    return "\n".join(map(log_line, whole))


def log_line(text: str) -> str:
    """Line of a log for people: time, level, event, and what else it says."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, dict):
        return text
    at, level, event = (str(found.pop(name, "")) for name in ("at", "level", "event"))
    rest = {name: value for name, value in found.items() if name not in ("job_id", "run_id", "attempt")}
    exception = str(rest.pop("exception", "") or "")
    said = f" {shortened(event_words(event, rest), 300)}" if rest else ""
    return f"{at[:19].replace('T', ' ')} {level:<7} {event}{said}" + (f"\n{exception}" if exception else "")


# ------------------------------------------------------------------------------------------------------------ config


async def show_config(page: RunPage) -> None:
    """Build what the run was made from: its method, and the job's training, views and dataset."""
    plan = page.job["plan"]
    parts = {"Method": page.run["method_spec"]}
    names = {"Training": "training", "Views": "views", "Dataset": "dataset", "Validation": "validation"}
    parts |= {label: plan.get(name) for label, name in names.items()}
    for label, part in parts.items():
        if part is not None:
            section_heading(label)
            copyable(json.dumps(part, indent=2, ensure_ascii=False), "json")
