"""Line charts with two logarithmic axes as SVG, written by hand: no plotting library is installed for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 540, 380  # of a chart, in pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 40, 50  # margins; the names of the lines stand in the right one

# Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Chart:
    """Lines of points (x, y), both positive, by name."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def write_svg(path: Path, charts: Sequence[Chart]) -> None:
    """The charts, two beside each other."""
    rows = math.ceil(len(charts) / 2)
    drawn = [
        f'<g transform="translate({WIDTH * (number % 2)} {HEIGHT * (number // 2)})">{_draw(chart)}</g>'
        for number, chart in enumerate(charts)
    ]
    size = f'width="{2 * WIDTH}" height="{HEIGHT * rows}"'
    style = 'font-family="sans-serif" font-size="12" stroke-linejoin="round"'
    body = "\n".join(['<rect width="100%" height="100%" fill="white"/>', *drawn])
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n')


def _draw(chart: Chart) -> str:
    points = [point for line in chart.lines.values() for point in line]
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(x: float) -> float:
        return LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (right - LEFT)

    def down(y: float) -> float:
        return bottom - (math.log10(y) - y_low) / (y_high - y_low) * (bottom - TOP)

    made = [_text(LEFT, TOP - 16, chart.title, weight="bold")]
    for decade in range(x_low, x_high + 1):
        x = across(10.0**decade)
        made += [_grid(x, TOP, x, bottom), _text(x, bottom + 16, _power(decade), anchor="middle")]
    for decade in range(y_low, y_high + 1):
        y = down(10.0**decade)
        made += [_grid(LEFT, y, right, y), _text(LEFT - 6, y + 4, _power(decade), anchor="end")]
    made.append(_text((LEFT + right) / 2, bottom + 38, chart.x_label, anchor="middle"))
    made.append(
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{_text(16, HEIGHT / 2, chart.y_label, anchor="middle")}</g>'
    )
    for number, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across(x), down(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        made.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        made += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        made.append(_text(right + 10, TOP + 16 * (number + 1), name, colour=colour))
    return "".join(made)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values, at least two."""
    low = math.floor(math.log10(min(values)))
    return low, max(math.ceil(math.log10(max(values))), low + 1)


def _power(decade: int) -> str:
    return f"{10**decade:,}" if decade >= 0 else f"{10.0**decade:.{-decade}f}"


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", colour: str = "#333") -> str:
    attributes = f'text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
