"""Temperatures of a job: of its methods and runs over the same bins, over epochs, and of a new expression."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from nicegui import ui

from service.page.charts import Options, base_options, chart, colours_of, line
from service.page.elements import empty_state, notify_problem, problem_card, section_heading
from service.page.forms.methods_field import EXPRESSION
from service.page.frame import view
from service.page.texts import count, percent
from service.page.viewer import NOT_FOUND, ApiProblem, Document, ViewerApi, resource

_KINDS = {"paper": "the paper's T", "divisor": "what divides the logits"}
_NETWORKS = ("teacher", "student")
# After the last key: the preview reads the whole cache.
_PREVIEW_AFTER_S = 0.5
_JOBS = 100
# Ratio of the ends of an axis from which it is logarithmic.
_LOG_BEYOND = 100
# Of the terms of one method, which has one colour.
_DASHES = ("solid", "dashed", "dotted")


class _Histogram(NamedTuple):
    name: str
    colour: str
    shares: Sequence[float]
    term: int = 0


@view("/temperatures", "Temperatures")
async def temperatures(api: ViewerApi, job: str = "", kind: str = "paper") -> None:
    """Build the histograms of a job's temperatures; of the newest job with a cache if none is named."""
    page = await api.get("/v1/jobs", {"limit": _JOBS})
    jobs = page["data"]
    if not jobs:
        empty_state("There is no job yet, and so no temperature.", "Make one", url="/new")
        return
    names = {each["id"]: each["name"] or each["id"] for each in jobs}
    newest = next((each for each in jobs if (each.get("caches") or {}).get("train")), jobs[0])
    chosen = job or newest["id"]
    names.setdefault(chosen, chosen)
    kind = kind if kind in _KINDS else "paper"
    with ui.element("div").classes("filters"):
        select = ui.select(names, value=chosen, label="Job", with_input=True)
        select.on_value_change(lambda event: ui.navigate.to(_address(event.value, kind)))
        shown_kind = ui.select(_KINDS, value=kind, label="Temperature")
        shown_kind.on_value_change(lambda event: ui.navigate.to(_address(chosen, event.value)))
    if page["has_more"]:
        ui.label(f"The newest {_JOBS} jobs can be chosen here; others link to their temperatures.").classes("muted")
    try:
        found = await api.get(f"{resource('jobs', chosen)}/temperatures", {"kind": kind})
    except ApiProblem as problem:
        if problem.status == NOT_FOUND:
            raise
        problem_card(problem)
        found = {}
    if found:
        # All of the job, in its order, as in its curves: a chart may lack some.
        colours = colours_of([each["method"] for each in found["methods"]])
        _methods(found, colours)
        _runs(found, colours)
        await _over_epochs(api, chosen, kind, colours)
    await _editor(api, chosen, found.get("cache"))


def _address(job_id: str, kind: str) -> str:
    return f"/temperatures?{urlencode({'job': job_id, 'kind': kind})}"


def _middles(edges: Sequence[float]) -> list[float]:
    """Middle of each bin on a logarithmic axis."""
    return [(low * high) ** 0.5 for low, high in itertools.pairwise(edges)]


def _histogram_options(title: str, edges: Sequence[float], series: Sequence[_Histogram]) -> Options:
    """Options of histograms over the same logarithmic bins, a stepped line for each."""
    options = base_options(title, x="temperature", y="share of rows")
    # A logarithmic axis has ticks at powers of 10 alone: a short one would have none.
    kind = "log" if edges[-1] / edges[0] > _LOG_BEYOND else "value"
    labels = {**options["xAxis"]["axisLabel"], "showMinLabel": False, "showMaxLabel": False}
    ends = {"min": edges[0], "max": edges[-1], "axisLabel": labels}
    options["xAxis"] = {**options["xAxis"], "type": kind, **ends}
    options["yAxis"]["scale"] = False
    middles = _middles(edges)
    options["series"] = [
        line(
            each.name,
            list(zip(middles, each.shares, strict=False)),
            each.colour,
            step="middle",
            areaStyle={"opacity": 0.12},
            lineStyle={"width": 2, "type": _DASHES[each.term % len(_DASHES)]},
        )
        for each in series
    ]
    return options


def _methods(found: Document, colours: Mapping[str, str]) -> None:
    """Histograms of what each method gives on every row of the training cache, before anything is trained."""
    rows = "" if found["rows"] is None else f", {count(found['rows'])} rows of view {found['view']}"
    section_heading(f"By each method on the same cache{rows}")
    reasons = [f"{each['method']}: {each['reason']}" for each in found["methods"] if each.get("reason")]
    for network in _NETWORKS:
        series = [
            _Histogram(_term_name(each, term), colours[each["method"]], term[network]["shares"], index)
            for each in found["methods"]
            for index, term in enumerate(each["terms"] or [])
            if term.get(network)
        ]
        if series:
            title = f"T_{network} by method"
            ui.label(title).classes("muted")
            chart(_histogram_options(title, found["edges"], series), title)
    for reason in reasons:
        ui.label(reason).classes("muted")


def _term_name(method: Document, term: Document) -> str:
    return method["method"] if len(method["terms"]) == 1 else f"{method['method']}: {' + '.join(term['parts'])}"


def _runs(found: Document, colours: Mapping[str, str]) -> None:
    """Histograms that the runs have measured in their last epochs."""
    measured = [run for run in found["runs"] if run.get("teacher") or run.get("student")]
    if not measured:
        return
    section_heading("By each run, measured in its last epoch")
    for network in _NETWORKS:
        series = [
            _Histogram(run["method"], colours[run["method"]], run[network]["shares"])
            for run in measured
            if run.get(network)
        ]
        if series:
            title = f"T_{network} by run, all seeds of a method in one colour"
            ui.label(title).classes("muted")
            chart(_histogram_options(title, found["edges"], series), title)


async def _over_epochs(api: ViewerApi, job_id: str, kind: str, colours: Mapping[str, str]) -> None:
    """Medians with the band from the 5 % to the 95 % quantile, epoch by epoch, of the first seed of each method."""
    middle = f"teacher_{kind}_temperature_q50" if kind == "paper" else "teacher_temperature_q50"
    prefix = middle.removesuffix("_q50")
    wanted = [f"{prefix}_{name}" for name in ("q05", "q50", "q95")]
    try:
        found = await api.get(f"/v1/jobs/{job_id}/curves", {"metric": wanted})
    except ApiProblem as problem:
        notify_problem(problem)
        return
    runs = [run for run in found["runs"] if any(v is not None for v in run["metrics"].get(middle) or [])]
    if not runs:
        return
    section_heading("Over the epochs, of each method's first seed: median, and from the 5 % to the 95 % quantile")
    firsts = {(run["student"], run["method"]): run for run in reversed(runs)}
    # Of two methods with one name, curves have that name, histograms others.
    colours = colours_of([*colours, *(method for _, method in firsts)])
    options = base_options("T_teacher over the epochs", x="epoch", y="temperature", log=True)
    options["xAxis"]["minInterval"] = 1
    options["yAxis"]["logBase"] = 2
    for (student, method), run in sorted(firsts.items()):
        name = method if len({student for student, _ in firsts}) == 1 else f"{method}, {student}"
        for metric in wanted:
            style = {"width": 2, "type": "solid"} if metric == middle else {"width": 1, "type": "dashed"}
            points = list(zip(run["epoch"], run["metrics"].get(metric) or [], strict=False))
            options["series"].append(line(name, points, colours[method], lineStyle=style))
    chart(options, "T_teacher over the epochs")


async def _editor(api: ViewerApi, job_id: str, cache: str | None) -> None:
    """Expression over the statistics of a cache, with the temperatures that it gives."""
    section_heading("Try an expression")
    key = cache or ((await api.get(f"/v1/jobs/{job_id}")).get("caches") or {}).get("train")
    if key is None:
        empty_state("This job has no cache of its training pictures yet.", "It makes one when it runs.")
        return
    names = "max, min, mean, std, sharpness, classes, epoch, epochs; min, max, clip, log, exp, sqrt, abs, tanh, where"
    ui.label(f"Of the teacher's statistics on this job's training cache: {names}.").classes("muted")
    with ui.row().classes("wide"):
        text = ui.input("Expression of the temperature", value=EXPRESSION).classes("grow mono")
        use = ui.button("Use it in a job", icon="add_circle").props("no-caps outline")
    place = ui.element("div").props("aria-live=polite")
    timer: list[ui.timer] = []
    use.on_click(lambda: ui.navigate.to(f"/new?{urlencode({'job': job_id, 'expression': text.value})}"))

    async def preview() -> None:
        method = {"preset": "custom", "terms": [{"policy": {"kind": "expression", "temperature": text.value}}]}
        try:
            found = await api.post("/v1/methods/preview", {"cache": key, "method": method})
        except ApiProblem as problem:
            place.clear()
            with place:
                problem_card(problem)
            return
        place.clear()
        with place:
            _preview(found)

    def later() -> None:
        for each in timer:
            each.cancel()
        with place:
            timer[:] = [ui.timer(_PREVIEW_AFTER_S, preview, once=True)]

    text.on_value_change(later)
    later()


def _preview(found: Document) -> None:
    term = found["terms"][0]
    shown = term["teacher"]
    histogram, total = shown["histogram"], sum(shown["histogram"]["counts"]) or 1
    quantiles = shown["quantiles"]
    summary = (
        f"T from {quantiles['p0']:.3g} to {quantiles['p100']:.3g}, median {quantiles['p50']:.3g}, "
        f"mean {shown['mean']:.3g}, over {count(found['samples'] * found['views'])} rows"
    )
    ui.label(summary)
    options = base_options(summary, x="temperature", y="share of rows", zoom=False)
    edges = histogram["edges"]
    points = [
        ((low + high) / 2, rows / total) for low, high, rows in zip(edges, edges[1:], histogram["counts"], strict=False)
    ]
    options["legend"] = {"show": False}
    options["yAxis"]["scale"] = False
    options["series"] = [line("T_teacher", points, "#0072B2", step="middle", areaStyle={"opacity": 0.15})]
    chart(options, summary)
    outside = term.get("outside_domain")
    if outside:
        ui.label(f"{percent(outside)} of rows are outside the expression's domain.").classes("warning")
