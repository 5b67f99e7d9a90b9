"""How time and memory grow with rows and classes: ``python -m tests.benchmarks.scaling [--json FILE] [--plot FILE]``.

Each point of a sweep is a cache of its own, float16, written by one process and read by another
(``tests.benchmarks.scaling_process``):

- write: every block with its statistics, checksums and fsync, and the end of the cache.
- open: a reader; it reads every commit record and statistic, and maps every chunk.
- row map: locating the rows of a shuffled epoch.
- epoch: gathering them in batches of 256, warm.
- private memory of either process: what it asked for beyond its interpreter and libraries. Mapped chunks are not in it;
  they belong to the page cache, which all readers share.

Exponents are slopes of a line through the points on logarithmic axes: 1 is "twice as many take twice as long". Less is
the share of what every cache costs once; more is what small caches gain from lying in the processor's own. Either fades
as the work grows, so the exponent of the last two points is told, too. Private memory is fitted as a constant and bytes
per row (or class). Points take turns, each round in another order; figures are medians of the rounds.

The files go to the folder of temporary files (TMPDIR), which must be on a disk: 2.1 GB at a time. Each part takes a
minute or two.
"""

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from tests.benchmarks.bench import options, show, write
from tests.benchmarks.plot import Chart, write_svg

ROUNDS = 3
TIMES = {"write": "write_s", "open": "open_s", "row map": "row_map_s", "epoch": "epoch_s"}
MEMORY = {"writer": "writer_bytes", "reader": "reader_bytes"}

ROWS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
Point = tuple[int, int]  # samples, classes
SWEEPS: dict[str, list[Point]] = {
    "rows-100": [(samples, 100) for samples in ROWS],
    "rows-1000": [(samples, 1000) for samples in ROWS],
    "classes": [(100_000, classes) for classes in (10, 100, 1000, 10_000)],
}
QUICK: dict[str, list[Point]] = {"rows-100": [(500, 100), (5000, 100)]}


@dataclass(frozen=True)
class Sweep:
    """What was measured of a sweep.

    Attributes:
        figures: by point: seconds and bytes by name (TIMES, MEMORY).
    """

    name: str
    figures: Mapping[Point, Mapping[str, float]]

    @property
    def grows(self) -> str:
        return "classes" if self.name == "classes" else "rows"

    @property
    def sizes(self) -> list[int]:
        """What grows, at each point."""
        return [point[self.grows == "classes"] for point in self.figures]

    @property
    def title(self) -> str:
        samples, classes = next(iter(self.figures))
        return f"{samples:,} rows, growing classes" if self.grows == "classes" else f"{classes} classes, growing rows"

    def column(self, name: str) -> list[float]:
        return [figures[name] for figures in self.figures.values()]

    def exponent(self, name: str, last: int = 0) -> float:
        """Of the power law that fits the times of all points, or of the last ones, best."""
        return float(np.polyfit(np.log(self.sizes[-last:]), np.log(self.column(name)[-last:]), 1)[0])

    def memory(self, name: str) -> tuple[float, float]:
        """The straight line that fits the memory best: bytes at none, bytes more for each."""
        slope, constant = np.polyfit(self.sizes, self.column(name), 1)
        return float(constant), float(slope)


# ------------------------------------------------------------------------------------------------------------- measured


def run(action: str, folder: str, point: Point) -> dict[str, float]:
    """One process of ``scaling_process``."""
    command = [sys.executable, "-m", "tests.benchmarks.scaling_process", action, folder, *map(str, point)]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return figures


def measure_point(point: Point) -> dict[str, float]:
    """A cache written and read; it is deleted again."""
    with TemporaryDirectory(prefix="retort-scaling-") as folder:
        written, found = run("write", folder, point), run("read", folder, point)
    return {
        **{name: {**written, **found}[name] for name in TIMES.values()},
        "writer_bytes": written["private_bytes"],
        "reader_bytes": found["private_bytes"],
    }


def measure(name: str, points: Sequence[Point], rounds: int) -> Sweep:
    """The points of a sweep in turns."""
    found: dict[Point, list[dict[str, float]]] = {point: [] for point in points}
    generator, order = random.Random(0), list(points)
    for _ in range(rounds):
        generator.shuffle(order)
        for point in order:
            found[point].append(measure_point(point))
    medians = {
        point: {figure: median(one[figure] for one in each) for figure in each[0]} for point, each in found.items()
    }
    return Sweep(name, medians)


# --------------------------------------------------------------------------------------------------------- what is told


def report(sweep: Sweep) -> None:
    print(sweep.title)
    rows = [
        [
            f"{size:,}",
            f"{samples * classes * 2 / 1e6:,.1f}",
            *(f"{1e3 * figures[name]:,.2f}" for name in TIMES.values()),
            *(f"{figures[name] / 1e6:.1f}" for name in MEMORY.values()),
        ]
        for size, ((samples, classes), figures) in zip(sweep.sizes, sweep.figures.items(), strict=True)
    ]
    for told, last in (("exponent", 0), ("of the last two", 2)):
        rows.append([told, "", *(f"{sweep.exponent(name, last):.2f}" for name in TIMES.values()), "", ""])
    headers = [f"{sweep.grows}>", "logits, MB>", *(f"{name}, ms>" for name in TIMES)]
    show([*headers, *(f"{name}'s memory, MB>" for name in MEMORY)], rows)
    for name, figure in MEMORY.items():
        constant, slope = sweep.memory(figure)
        each = {"rows": "row", "classes": "class"}[sweep.grows]
        print(f"The {name}'s private memory: {constant / 1e6:.1f} MB and {slope:.1f} bytes per {each}")
    print(flush=True)


def charts(sweep: Sweep) -> list[Chart]:
    """Times, and memory beside the logits themselves."""
    sizes = sweep.sizes

    def line(values: Sequence[float], scale: float) -> list[tuple[float, float]]:
        return [(size, value * scale) for size, value in zip(sizes, values, strict=True) if value > 0]

    times = {f"{name}: exponent {sweep.exponent(key):.2f}": line(sweep.column(key), 1.0) for name, key in TIMES.items()}
    logits = [2.0 * samples * classes for samples, classes in sweep.figures]
    memory = {"logits on disk": line(logits, 1e-6)}
    memory |= {f"{name}, private": line(sweep.column(key), 1e-6) for name, key in MEMORY.items()}
    return [
        Chart(f"Time: {sweep.title}", sweep.grows, "seconds", times),
        Chart(f"Memory: {sweep.title}", sweep.grows, "MB", memory),
    ]


def as_json(sweep: Sweep) -> dict[str, object]:
    """The figures; seconds and bytes."""
    return {
        "sweep": sweep.name,
        "points": [
            {"samples": samples, "classes": classes, **figures} for (samples, classes), figures in sweep.figures.items()
        ],
        "exponents": {name: sweep.exponent(name) for name in TIMES.values()},
        "last_exponents": {name: sweep.exponent(name, 2) for name in TIMES.values()},
        "memory_bytes": {
            name: dict(zip(("constant", "slope"), sweep.memory(name), strict=True)) for name in MEMORY.values()
        },
    }


def main() -> None:
    given = options("How time and memory grow with rows and classes.", tuple(SWEEPS), tuple(QUICK), plots=True)
    sweeps = []
    for name in given.parts:
        sweeps.append(measure(name, (QUICK if given.quick else SWEEPS)[name], 1 if given.quick else ROUNDS))
        report(sweeps[-1])
    write(given, {"benchmark": "scaling", "sweeps": [as_json(sweep) for sweep in sweeps]})
    if given.plot is not None:
        write_svg(given.plot, [chart for sweep in sweeps for chart in charts(sweep)])


if __name__ == "__main__":
    main()
