"""Live chart of the curves of all runs, with its settings in the URL."""

import asyncio
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

from service.page.charts import Options, base_options, chart
from service.page.elements import Newest, attempt
from service.page.job.curve_groups import (
    GROUPS_MAX,
    CurveGroup,
    CurveStyle,
    are_thinned,
    draw_groups,
    group_runs,
    reference_line,
)
from service.page.job.health import HEALTH_METRICS
from service.page.job.measures import MEASURES
from service.page.job.page import JobPage
from service.page.job.series import POINTS_MAX

SEEDS = {"range": "mean, least to greatest", "std": "mean ± standard deviation", "each": "a line for each seed"}
DEFAULTS = {"measure": "top1", "split": "", "seeds": "range", "smooth": "0", "log": "", "only": "", "zoom": ""}
SMOOTHING_MAX = 0.95
_EMPTY = "No run has ended an epoch with this measure yet: curves appear here by themselves."
_TEACHER = "t"
# Of the teacher, what is known on a split.
_OF_TEACHER = ("top1", "top5", "nll", "ece")


class CurveChart:
    """Chart of one measure of all runs, with the controls that choose what is drawn."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self.url = page.url

    @property
    def measure_name(self) -> str:
        """Measure that is chosen."""
        return self.url.choice("measure", MEASURES)

    @property
    def split(self) -> str:
        """Split that is chosen, or the first that the measure and the job have."""
        metrics = MEASURES[self.measure_name].metrics
        chosen = self.url["split"]
        if chosen in metrics:
            return chosen
        has_test = (self.page.job.get("plan") or {}).get("test", "dataset") is not None
        return "validation" if "validation" in metrics and not has_test else next(iter(metrics))

    async def build(self) -> None:
        """Build controls, legend and chart, and read the curves. Raises Problem."""
        with ui.element("div").classes("controls"):
            self._controls()
        self.legend = ui.element("div").classes("legend").props("role=group aria-label='Lines of the chart'")
        self.buttons: dict[str, ui.button] = {}
        self.empty = ui.label().classes("empty-text")
        self.chart = chart(self._base(), "Curves of all runs over epochs").on(
            "chart:datazoom", self._zoom, ["start", "end", "batch"], throttle=0.5
        )
        self._newest = Newest(self.chart)
        self.notes = ui.label().classes("muted").props("aria-live=polite")
        self.page.listeners.append(self._follow)
        await self._read()

    def _controls(self) -> None:
        names = {name: measure.label for name, measure in MEASURES.items()}
        measure = ui.select(names, label="Measure", value=self.measure_name)
        measure.on_value_change(lambda e: self._set(measure=e.value))
        measure.props("outlined dense options-dense").classes("control-wide")
        self.splits = ui.toggle([""], on_change=lambda e: self._set(split=e.value) if e.value else None)
        self.splits.props("no-caps dense unelevated aria-label=Split")
        self._show_splits()
        seeds = ui.select(SEEDS, label="Seeds", value=self.url.choice("seeds", SEEDS))
        seeds.on_value_change(lambda e: self._set(seeds=e.value))
        seeds.props("outlined dense options-dense").classes("control")
        with ui.element("div").classes("slider-control"):
            ui.label("Smoothing").props("id=smoothing-label")
            slider = ui.slider(
                min=0, max=SMOOTHING_MAX, step=0.05, value=self.url.number("smooth", 0, SMOOTHING_MAX)
            ).on_value_change(lambda e: self._set(smooth=f"{e.value:g}"))
            slider.props("label aria-label='Smoothing: weight of the epochs before'")
        ui.checkbox("Log axis", value=self.url["log"] == "1", on_change=lambda e: self._set(log="1" if e.value else ""))

    def _show_splits(self) -> None:
        options = [name for name in MEASURES[self.measure_name].metrics if name]
        self.splits.set_visibility(len(options) > 1)
        self.splits.set_options(options or [""], value=self.split)

    async def _set(self, **changes: str) -> None:
        if all(self.url[name] == value for name, value in changes.items()):
            return
        self.url.set(**changes)
        if "measure" in changes:
            self._show_splits()
        await attempt(self._read())

    def _style(self) -> CurveStyle:
        measure = MEASURES[self.measure_name]
        return CurveStyle(
            measure=measure,
            metric=measure.metric(self.split),
            seeds=self.url.choice("seeds", SEEDS),
            smoothing=self.url.number("smooth", 0, SMOOTHING_MAX),
            is_log=self.url["log"] == "1",
        )

    async def _read(self) -> None:
        """Read the chosen metric where it is not known yet, and draw."""
        self.page.store.want([*HEALTH_METRICS, self._style().metric])
        if not self.page.store.is_read:
            await self.page.refresh()
        else:
            await self._draw()

    async def _follow(self, is_changed: bool) -> None:
        if is_changed:
            await self._draw()

    async def _draw(self) -> None:
        groups = group_runs(self.page.store.runs.values())
        style = self._style()
        shown = self._shown(groups)
        self._show_legend(groups, shown)
        # Thousands of points are not worked on where all others wait.
        chosen = [group for group in groups if str(group.index) in shown]
        drawn = await self._newest.of(asyncio.to_thread(draw_groups, chosen, style))
        if drawn is None:
            return
        series, left_out = drawn
        self.empty.set_text("" if series else _EMPTY)
        self.empty.set_visibility(not series)
        self.chart.set_visibility(bool(series))
        teacher = self._teacher(style)
        if teacher is not None and _TEACHER in shown and series:
            epochs = max(run.epochs for run in self.page.store.runs.values())
            series.append(reference_line("teacher", teacher, epochs))
        options = self._base()
        options["series"] = series
        self.chart.options.clear()
        self.chart.options.update(options)
        self.chart.update()
        self.notes.set_text(self._words(groups, shown, left_out))

    def _base(self) -> Options:
        style = self._style()
        on = f", {self.split}" if self.split else ""
        label = f"{style.measure.label}{on}"
        options = base_options(f"{label} over epochs", x="epoch", y=label, log=style.is_log)
        options["legend"] = {"show": False}
        options["grid"]["top"] = 28
        options["xAxis"] |= {"minInterval": 1, "min": "dataMin", "max": "dataMax"}
        start, _, end = self.url["zoom"].partition("-")
        if start.isdigit() and end.isdigit():
            for each in options["dataZoom"]:
                each |= {"start": int(start), "end": int(end)}
        return options

    def _teacher(self, style: CurveStyle) -> float | None:
        found = ((self.page.job.get("teacher_metrics") or {}).get(self.split) or {}).get(self.measure_name)
        return found * style.measure.factor if self.measure_name in _OF_TEACHER and found is not None else None

    def _shown(self, groups: list[CurveGroup]) -> set[str]:
        names = [str(group.index) for group in groups]
        if not self.url["only"]:
            return {*names[:GROUPS_MAX], _TEACHER}
        wanted = self.url["only"].split(",")
        drawn = [name for name in wanted if name in names][:GROUPS_MAX]
        return {*drawn, _TEACHER} if _TEACHER in wanted else {*drawn}

    def _show_legend(self, groups: list[CurveGroup], shown: set[str]) -> None:
        entries = {str(group.index): (group.glyph, group.label, group.colour) for group in groups}
        if self._teacher(self._style()) is not None:
            entries[_TEACHER] = ("┄", "teacher", "#888888")
        if list(entries) != list(self.buttons):
            self.legend.clear()
            with self.legend:
                self.buttons = {name: self._legend_button(name, *entry) for name, entry in entries.items()}
        for name, button in self.buttons.items():
            button.props(f"aria-pressed={'true' if name in shown else 'false'}")
            button.classes(remove="off") if name in shown else button.classes(add="off")

    def _legend_button(self, name: str, glyph: str, label: str, colour: str) -> ui.button:
        button = ui.button(on_click=lambda: self._toggle(name)).props("flat dense no-caps").classes("legend-entry")
        with button:
            ui.label(glyph).style(f"color: {colour}").classes("glyph").props("aria-hidden=true")
            ui.label(label).classes("legend-label")
        return button

    async def _toggle(self, name: str) -> None:
        groups = group_runs(self.page.store.runs.values())
        shown = self._shown(groups)
        if name not in shown and name != _TEACHER and len(shown - {_TEACHER}) >= GROUPS_MAX:
            ui.notify(f"{GROUPS_MAX} lines are drawn at once: hide another one first")
            return
        now = shown ^ {name}
        order = [*(str(group.index) for group in groups), _TEACHER]
        await self._set(only=",".join(each for each in order if each in now) or "none")

    def _words(self, groups: list[CurveGroup], shown: set[str], left_out: str) -> str:
        runs = len(self.page.store.runs)
        drawn = sum(str(group.index) in shown for group in groups)
        words = [f"{drawn} of {len(groups)} groups of seeds, {runs} runs."]
        if len(groups) > GROUPS_MAX:
            words.append(f"At most {GROUPS_MAX} are drawn at once; choose others above.")
        if left_out:
            words.append(left_out)
        if are_thinned(groups):
            words.append(f"Of runs with more than {POINTS_MAX} epochs every n-th is drawn.")
        return " ".join(words)

    def _zoom(self, event: GenericEventArguments) -> None:
        found: dict[str, Any] = event.args
        part = found if found.get("start") is not None else (found.get("batch") or [{}])[0]
        if part.get("start") is None:
            return
        start, end = round(part["start"]), round(part["end"])
        self.url.set(zoom="" if (start, end) == (0, 100) else f"{start}-{end}")


async def show_curves(page: JobPage) -> None:
    """Build the tab of curves."""
    await CurveChart(page).build()
