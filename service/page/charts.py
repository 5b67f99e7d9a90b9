"""Charts of the page: ECharts, with a colour-blind-safe palette and a description for screen readers.

Curves, bars and points of all views are made by these functions, so that one method has one colour everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from service.page.elements import set_props

# Okabe and Ito (2008), black left out: it cannot be seen on dark ground.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999933", "#882255", "#44AA99", "#888888")
# Shapes of points in ECharts, each with a character that looks like it: methods differ in more than colour.
MARKS = (
    *(("circle", "●"), ("rect", "■"), ("triangle", "▲"), ("diamond", "◆")),
    *(("emptyCircle", "○"), ("emptyRect", "□"), ("emptyTriangle", "△"), ("emptyDiamond", "◇")),
)
# In dark mode page.css replaces these two, which nothing else in a chart has.
TEXT = "#4b5661"
GRID = "#dde2e7"
Options = dict[str, Any]
# Room above a chart for the name of its axis alone; of a legend on a phone, at about this size of text.
_TOP_ALONE = 28
_PHONE_PX, _ENTRY_PX, _CHARACTER_PX, _LINE_PX, _LEGEND_LINES_MAX = 340, 42, 7, 22, 4
# Beyond so many names on an axis, part of it is shown at a time.
_NAMES_SHOWN = 30


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Colour of each name, in their order; beyond the palette's length colours come again."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(dict.fromkeys(names))}


def marks_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Shape of the points of each name, and a character that looks like it, in their order; they come again, too."""
    return {name: MARKS[index % len(MARKS)] for index, name in enumerate(dict.fromkeys(names))}


def axis_look(align: str = "center") -> Options:
    """Colours of an axis, which follow dark and light; ``align`` is of its name."""
    return {
        "axisLabel": {"color": TEXT},
        "axisLine": {"lineStyle": {"color": TEXT}},
        "axisTick": {"lineStyle": {"color": TEXT}},
        "splitLine": {"lineStyle": {"color": GRID}},
        "nameTextStyle": {"color": TEXT, "align": align},
    }


def base_options(title: str, *, x: str, y: str, log: bool = False, zoom: bool = True) -> Options:
    """Options that charts share.

    Args:
        title: says what is shown; screen readers read it.
        x, y: names of the axes, with their units.
        log: whether ``y`` is logarithmic.
        zoom: whether wheel and slider zoom into ``x``.
    """
    x_axis = {"type": "value", "name": x, "nameLocation": "middle", "nameGap": 24, "scale": True}
    y_axis = {"type": "log" if log else "value", "name": y, "scale": True}
    options: Options = {
        "aria": {"enabled": True, "label": {"general": {"withTitle": title}}},
        "animation": False,
        "backgroundColor": "transparent",
        "color": list(PALETTE),
        "textStyle": {"color": TEXT},
        "tooltip": {"trigger": "axis", "confine": True, "renderMode": "richText"},
        "legend": {"type": "scroll", "top": 0, "itemHeight": 12, "textStyle": {"color": TEXT}},
        "grid": {"left": 8, "right": 16, "top": 56, "bottom": 64 if zoom else 28, "containLabel": True},
        "xAxis": {**axis_look(), **x_axis},
        "yAxis": {**axis_look(align="left"), **y_axis},
        "series": [],
    }
    if zoom:
        options["dataZoom"] = [{"type": "inside"}, {"type": "slider", "height": 18, "bottom": 4}]
    return options


def line(name: str, points: Sequence[Sequence[float | None]], colour: str, **options: object) -> Options:
    """Series of a line through points (x, y); None in place of y leaves a gap.

    Data are tuples: NiceGUI watches every list and dictionary of a chart for changes, which costs more than to draw it.
    """
    return {
        "type": "line",
        "name": name,
        "data": tuple(map(tuple, points)),
        "showSymbol": len(points) < 2,
        "color": colour,
        "lineStyle": {"width": 2},
        **options,
    }


def band(name: str, rows: Sequence[tuple[float, float, float]], colour: str) -> list[Options]:
    """Series of the area between lower and upper values (x, lower, upper), such as the range over seeds."""
    hidden: Options = {"type": "line", "symbol": "none", "silent": True, "lineStyle": {"opacity": 0}, "color": colour}
    hidden["tooltip"] = {"show": False}
    stack = f"band of {name}"
    return [
        {**hidden, "name": name, "stack": stack, "data": tuple((x, lower) for x, lower, _ in rows)},
        {
            **hidden,
            "name": name,
            "stack": stack,
            "data": tuple((x, upper - lower) for x, lower, upper in rows),
            "areaStyle": {"opacity": 0.18},
        },
    ]


def bars(title: str, rows: Sequence[tuple[str, float | None]], *, y: str) -> Options:
    """Options of bars from zero, one for each (name, value)."""
    options = base_options(title, x="", y=y, zoom=len(rows) > _NAMES_SHOWN)
    names = [name for name, _ in rows]
    options["xAxis"] = {
        "type": "category",
        "data": names,
        "axisLabel": {"rotate": 30, "width": 90, "overflow": "truncate"},
    }
    options["yAxis"]["scale"] = False
    hide_legend(options)
    options["series"] = [{"type": "bar", "data": [value for _, value in rows], "color": PALETTE[0]}]
    return options


def hide_legend(options: Options) -> None:
    """Leave the legend out, and its room."""
    options["legend"] = {"show": False}
    options["grid"]["top"] = _TOP_ALONE


def on_phones(options: Mapping[str, Any]) -> Options:
    """Options for a narrow chart: a legend of a few lines is shown whole, where it would be cut at the right."""
    lines, left = 1, _PHONE_PX
    for name in dict.fromkeys(each.get("name", "") for each in options["series"]):
        width = _ENTRY_PX + _CHARACTER_PX * len(name)
        if width > left:
            lines, left = lines + 1, _PHONE_PX
        left -= width
    if lines == 1 or lines > _LEGEND_LINES_MAX or not options["legend"].get("show", True):
        return {}
    changed = {"legend": {**options["legend"], "type": "plain"}, "grid": {"top": _TOP_ALONE + _LINE_PX * lines}}
    wide = {"legend": options["legend"], "grid": {"top": options["grid"]["top"]}}
    # The second is what holds where no query does: a chart may begin narrow and grow.
    return {"media": [{"query": {"maxWidth": 500}, "option": changed}, {"option": wide}]}


def chart(options: Mapping[str, Any], title: str) -> ui.echart:
    """Element of a chart; change its ``options`` to redraw it. ``title`` is read by screen readers."""
    shown = ui.echart({**options, **on_phones(options)}, renderer="svg").classes("chart")
    set_props(shown, role="img", aria_label=title)
    return shown
