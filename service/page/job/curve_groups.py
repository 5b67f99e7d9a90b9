"""Lines of a chart of curves: groups of runs that differ in their seeds alone, and the series that draw them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from service.page.charts import Options, band, colours_of, line, marks_of
from service.page.job.measures import Measure, RunCurve
from service.page.job.series import POINTS_MAX, Row, over_seeds, scaled, smooth
from workers.texts import shortened

# Drawn at once: of more, nobody tells the colours apart, and a browser is slow.
GROUPS_MAX = 12
SEED_LINES_MAX = 60
_MARKS_OF_A_LINE = 8
_DASHES = ("solid", "dashed", "dotted")
_LABEL_CHARS = 60


@dataclass(frozen=True)
class CurveGroup:
    """Runs of one student and method.

    Attributes:
        symbol, glyph: shape of its points, and a character that looks like it.
    """

    index: int
    label: str
    colour: str
    symbol: str
    glyph: str
    dash: str
    runs: Sequence[RunCurve]


@dataclass(frozen=True)
class CurveStyle:
    """Settings of a chart of curves.

    Attributes:
        seeds: ``range`` and ``std`` are bands around the mean, ``each`` a line for every seed.
        smoothing: weight of what came before, 0 to below 1.
    """

    measure: Measure
    metric: str
    seeds: str
    smoothing: float
    is_log: bool


def group_runs(runs: Collection[RunCurve]) -> list[CurveGroup]:
    """Groups of runs in their order: one colour and shape for each method, one dash for each student."""
    colours, marks = colours_of([run.method for run in runs]), marks_of([run.method for run in runs])
    students = list(dict.fromkeys(run.student for run in runs))
    found: dict[tuple[str, str], list[RunCurve]] = {}
    for run in runs:
        found.setdefault((run.student, run.method), []).append(run)
    groups = []
    for index, ((student, method), members) in enumerate(found.items()):
        symbol, glyph = marks[method]
        label = method if len(students) == 1 else f"{student} {method}"
        dash = _DASHES[students.index(student) % len(_DASHES)]
        look = {"colour": colours[method], "symbol": symbol, "glyph": glyph, "dash": dash}
        groups.append(CurveGroup(index=index, label=shortened(label, _LABEL_CHARS), runs=members, **look))
    return groups


def draw_groups(groups: Sequence[CurveGroup], style: CurveStyle) -> tuple[list[Options], str]:
    """Series of the groups, and what was left out, in words (empty if nothing was)."""
    series: list[Options] = []
    left_out = 0
    drawn = 0
    for group in groups:
        curves = [(run, smooth(run.values.get(style.metric) or {}, style.smoothing)) for run in group.runs]
        curves = [(run, curve) for run, curve in curves if curve]
        if style.seeds == "each":
            kept = curves[: max(0, SEED_LINES_MAX - drawn)]
            left_out += len(curves) - len(kept)
            drawn += len(kept)
            series += [_line(group, [curve], style, f"{group.label} seed {run.seed}") for run, curve in kept]
        elif curves:
            series += _mean(group, [curve for _, curve in curves], style)
    words = f"{left_out} lines of seeds are left out: {SEED_LINES_MAX} are drawn at most." if left_out else ""
    return series, words


def _rows(curves: Sequence[dict[int, float]], style: CurveStyle) -> list[Row]:
    rows = over_seeds(curves, "std" if style.seeds == "std" else "range")
    return [scaled(row, style.measure.factor) for row in rows]


def _mean(group: CurveGroup, curves: Sequence[dict[int, float]], style: CurveStyle) -> list[Options]:
    rows = _rows(curves, style)
    if style.is_log:
        # A logarithm has no place for what is not positive.
        rows = [(epoch, mean, min(mean, max(low, mean / 100)), high) for epoch, mean, low, high in rows if mean > 0]
    # Of one seed it would have no width.
    widths = [(epoch, low, high) for epoch, _, low, high in rows] if len(curves) > 1 else []
    return [_drawn(group, group.label, rows), *(band(group.label, widths, group.colour) if widths else [])]


def _line(group: CurveGroup, curves: Sequence[dict[int, float]], style: CurveStyle, name: str) -> Options:
    rows = [row for row in _rows(curves, style) if not style.is_log or row[1] > 0]
    return {**_drawn(group, name, rows), "lineStyle": {"width": 1.2, "type": group.dash}}


def _drawn(group: CurveGroup, name: str, rows: Sequence[Row]) -> Options:
    """Line with the group's shape on a few of its points, the last one among them."""
    step = max(1, len(rows) // _MARKS_OF_A_LINE)
    marked = {*range(len(rows) - 1, -1, -step)}
    points = tuple(
        {"value": (epoch, mean), "symbol": group.symbol} if index in marked else (epoch, mean)
        for index, (epoch, mean, _, _) in enumerate(rows)
    )
    look = {
        "symbol": "none",
        "symbolSize": 7,
        "showSymbol": True,
        "lineStyle": {"width": 2, "type": group.dash},
        "z": 3,
    }
    return line(name, [], group.colour, data=points, **look)


def reference_line(name: str, value: float, epochs: int) -> Options:
    """Dashed line at one value, such as the teacher's."""
    look = {"symbol": "none", "lineStyle": {"width": 1.5, "type": "dashed"}}
    return line(name, [(1, value), (max(2, epochs), value)], "#888888", **look)


def are_thinned(groups: Sequence[CurveGroup]) -> bool:
    """Whether lines have more epochs than points."""
    return any(run.epochs > POINTS_MAX for group in groups for run in group.runs)
