"""What the benchmarks share: options, interleaved timing, a printed table, figures as JSON.

A benchmark compares: its figures are ratios of medians that were measured side by side in one run. Seconds are in the
JSON for a person to read; nothing is asserted, and the exit status is 0.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import torch

from service.cli.render import console, table
from workers.devices import cuda_failure

CPU_ONLY, EITHER, GPU_ONLY = ("cpu",), ("cpu", "cuda"), ("cuda",)
"""Devices that a program can measure on, the usual one first."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        json: where to write the figures; None for nowhere.
        quick: few rounds of the smallest case, to see that the benchmark runs.
        device: where to measure; a GPU with its index, as a run has it.
        parts: which parts of the program to run; none where it has no parts.
        plot: where to draw the figures as SVG; None for nowhere.
    """

    json: Path | None
    quick: bool
    device: torch.device
    parts: tuple[str, ...] = ()
    plot: Path | None = None


def options(
    description: str,
    parts: Sequence[str] = (),
    quick_parts: Sequence[str] = (),
    *,
    plots: bool = False,
    devices: Sequence[str] = CPU_ONLY,
) -> Options:
    """Read the command line and set torch's threads.

    Args:
        description: for ``--help``.
        parts: what ``--parts`` may choose from; all of them unless it is given.
        quick_parts: those of ``--quick``.
        plots: whether the program draws.
        devices: one of the tuples above.

    Raises:
        SystemExit: there is no such device, saying why.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="few rounds of the smallest case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's (default %(default)s)")
    parser.set_defaults(device=devices[0])
    if len(devices) > 1:
        parser.add_argument("--device", choices=devices, help="(default %(default)s)")
    if parts:
        choices = [*dict.fromkeys([*parts, *quick_parts])]
        parser.add_argument("--parts", nargs="+", choices=choices, metavar="PART", help=f"of {', '.join(choices)}")
    if plots:
        parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG (default: beside the figures)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    chosen = (quick_parts if given.quick else parts) if not parts or given.parts is None else given.parts
    plot = given.plot if plots else None
    if plots and plot is None and given.json is not None:
        plot = given.json.with_suffix(".svg")
    return Options(given.json, given.quick, _device(given.device), tuple(chosen), plot)


def _device(wanted: str) -> torch.device:
    if wanted == "cpu":
        return torch.device("cpu")
    why_not = cuda_failure()
    if why_not is not None:
        sys.exit(f"This measures on a GPU, and there is none that works: {why_not}")
    return torch.device("cuda", torch.cuda.current_device())


def synchronize(device: torch.device | None) -> None:
    """Wait until a CUDA device has done its work; nothing else has work that is not done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Timing:
    """Seconds of every call, in the order they were made."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    @property
    def spread_s(self) -> float:
        """Half of the interquartile range."""
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    turn_s: float = 0.0,
    most: int = 20,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time several calls in turns, each round in another order, so that all see the same machine.

    Args:
        calls: by name; each is made once, untimed, before the first round.
        rounds: at least 2.
        turn_s: a call shorter than this is repeated within its turn; every repetition is timed.
        most: repetitions in a turn.
        device: if it is a CUDA device, the clock is read when its work is done.
    """

    def timed(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - started

    repetitions = {name: min(max(int(turn_s / timed(call)), 1), most) for name, call in calls.items()}
    timings = {name: Timing() for name in calls}
    generator, order = random.Random(0), list(calls)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            timings[name].seconds += [timed(calls[name]) for _ in range(repetitions[name])]
    return timings


def show(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a header that ends in ``>`` aligns its column to the right."""
    console().print(table(headers, rows))


def write(given: Options, figures: Mapping[str, object]) -> None:
    """The figures and where they were measured, as JSON, if that was asked for."""
    if given.json is None:
        return
    cuda = given.device.type == "cuda"
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(given.device) if cuda else given.device.type,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1min": os.getloadavg()[0],
    }
    given.json.write_text(json.dumps({"environment": environment, **figures}, indent=2) + "\n")
