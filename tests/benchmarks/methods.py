"""What a method costs a step: ``python -m tests.benchmarks.methods [--json FILE] [--quick]``.

A student's step is one update of resnet20 on 32 x 32 colour pictures with cross-entropy, as
``workers/training/loop.py`` makes it. A method's overhead is the time of its objective and the backward pass to the
student's logits, less the same of ``ce``; teacher logits and statistics are at hand, as from a cache. The figure is
overhead / student's step. A method of two views also runs the student twice, which is the student's time and not the
method's.

The bar is for losses that treat each sample by itself; those that compare a whole batch (``needs_batch``) work on
matrices of B x B, C x C or more. Their memory is small all the same (``ranks.py`` compares in pieces), their time is
not: a call that could take longer than ``CALL_LIMIT_S`` is skipped, and the output says so.

Shapes: B batch, C classes; z_BC logits, y_B labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.benchmarks.bench import EITHER, Options, Timing, interleaved, options, show, write
from workers.config.training import Sgd
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.methods.method import Method
from workers.objective.objective import objective
from workers.objective.statistics import batch_as_cache, row_statistics
from workers.objective.view import View
from workers.precision import choose_precision, float32_as
from workers.students.build import build_student

BAR, BAR_CLASSES = 0.03, 100
CALL_LIMIT_S = 10.0

EXPRESSION = {"kind": "expression", "temperature": "clip(max / log(classes), 1, 16)"}
METHODS: dict[str, Method] = {
    **{name: parse_method(name).expand() for name in PRESETS if name != "custom"},
    "expression": parse_method({"preset": "custom", "name": "expression", "terms": [{"policy": EXPRESSION}]}).expand(),
}
"""``ce`` among them, which the others are compared with."""


@dataclass(frozen=True)
class Cell:
    """What was measured at one number of classes and one batch size.

    Attributes:
        step: the student's.
        losses: objective and backward pass, by method.
        skipped: the seconds that a call was expected to take at most, by method.
    """

    classes: int
    batch: int
    step: Timing
    losses: dict[str, Timing]
    skipped: dict[str, float]

    def overhead(self, name: str) -> float:
        """A share of the student's step; may be a little below 0 by chance."""
        return (self.losses[name].median_s - self.losses["ce"].median_s) / self.step.median_s

    def spread(self, name: str) -> float:
        """Of the method's times, in the unit of ``overhead``."""
        return self.losses[name].spread_s / self.step.median_s

    def predicted_s(self, name: str, batch: int) -> float:
        """The most that a call should take at a larger batch: as if every pair of samples were compared."""
        known = self.losses[name].median_s if name in self.losses else self.skipped[name]
        return known * (batch / self.batch) ** 2


def whole_batch(name: str) -> bool:
    """Whether a sample's loss depends on the other samples of its batch."""
    return any(term.loss.needs_batch for term in METHODS[name].terms)


# -------------------------------------------------------------------------------------------------------- what is timed


def student_step(classes: int, batch: int, device: torch.device) -> Callable[[], object]:
    """One training step with the default optimizer, in the precision that a run chooses."""
    network = build_student("resnet20", classes, in_channels=3, image_side=32).to(device)
    network.to(memory_format=torch.channels_last)
    precision, _ = choose_precision("auto", device, network, batch, (3, 32, 32))
    optimizer = torch.optim.SGD(network.parameters(), **Sgd().model_dump(exclude={"kind"}), fused=True)
    not_finite, one = torch.zeros((), device=device), torch.ones((), device=device)
    optimizer.found_inf = not_finite
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y_B = torch.randint(classes, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            z_BC = network(images)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(objective(METHODS["ce"], z_BC, y_B, epoch=1).total)
        gradients = [parameter.grad for parameter in network.parameters()]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, not_finite, one)
        optimizer.step()

    return step


def view(y_B: Tensor, classes: int) -> View:
    """Logits of a teacher that is usually right, in a cache's default float16, and of a student on its way there."""
    z_t_BC = 3.0 * torch.randn(len(y_B), classes, device=y_B.device)
    z_t_BC[torch.arange(len(y_B)), y_B] += 10.0
    z_s_BC = (0.5 * z_t_BC + torch.randn_like(z_t_BC)).requires_grad_()
    return View(z_s_BC, z_t_BC.half(), row_statistics(z_t_BC))


def loss_call(method: Method, y_B: Tensor, first: View, second: View) -> Callable[[], object]:
    """Objective and backward pass to the logits."""
    learned = {place: torch.tensor(theta, device=y_B.device) for place, theta in method.learned.items()}
    leaves = [
        first.student_logits_BC,
        second.student_logits_BC,
        *(theta.requires_grad_() for theta in learned.values()),
    ]

    assert first.teacher_logits_BC is not None
    over_cache = batch_as_cache(method.cache_statistics, first.teacher_logits_BC)

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        outcome = objective(
            method,
            first.student_logits_BC,
            y_B,
            epoch=1,
            epochs=240,
            teacher_logits_BC=first.teacher_logits_BC,
            teacher_statistics=first.teacher_statistics,
            second=second,
            learned=learned,
            cache_statistics=over_cache,
        )
        torch.autograd.backward(outcome.total)

    return call


def measure(given: Options, classes: int, batch: int, before: Cell | None) -> Cell:
    """One cell; the one of the next smaller batch tells which calls would take too long."""
    torch.manual_seed(0)
    y_B = torch.randint(classes, (batch,), device=given.device)
    first, second = view(y_B, classes), view(y_B, classes)
    expected = {name: before.predicted_s(name, batch) if before else 0.0 for name in METHODS}
    skipped = {name: seconds for name, seconds in expected.items() if seconds > CALL_LIMIT_S}
    calls = {name: loss_call(method, y_B, first, second) for name, method in METHODS.items() if name not in skipped}
    calls["student"] = student_step(classes, batch, given.device)
    rounds, turn_s = (3, 0.002) if given.quick else (5, 0.04)
    with float32_as("float32"):
        losses = interleaved(calls, rounds=rounds, turn_s=turn_s, device=given.device)
    return Cell(classes, batch, losses.pop("student"), losses, skipped)


# --------------------------------------------------------------------------------------------------------- what is told


def report(cells: list[Cell]) -> None:
    """One table of a number of classes: a column per batch size."""
    rows = [["student's step, ms", "", *(f"{1000 * cell.step.median_s:.1f}" for cell in cells)]]
    rows += [["ce, ms", "", *(f"{1000 * cell.losses['ce'].median_s:.2f}" for cell in cells)]]
    for name, method in METHODS.items():
        notes = ["whole batch"] * whole_batch(name) + ["2 views"] * (method.views == 2)
        figures = (
            "skipped" if name in cell.skipped else f"{100 * cell.overhead(name):.2f} ±{100 * cell.spread(name):.2f}"
            for cell in cells
        )
        if name != "ce":
            rows.append([name, ", ".join(notes), *figures])
    print(f"Overhead in % of the student's step, ± half the interquartile range; {cells[0].classes} classes")
    show(["method", "note", *(f"B={cell.batch}>" for cell in cells)], rows)
    for cell in cells:
        for name, seconds in cell.skipped.items():
            print(
                f"{name} at B={cell.batch} is skipped: a call could take {seconds:.0f} s, the limit is {CALL_LIMIT_S:g}"
            )
    print(flush=True)


def verdict(cells: list[Cell]) -> str:
    """Which methods miss the bar, where it applies."""
    figures = {
        f"{name} at B={cell.batch}": cell.overhead(name)
        for cell in cells
        for name in cell.losses
        if cell.classes == BAR_CLASSES and name != "ce" and not whole_batch(name)
    }
    missed = [f"{where} ({100 * share:.1f} %)" for where, share in figures.items() if share >= BAR]
    outcome = f"missed by {', '.join(missed)}" if missed else f"all {len(figures)} figures are"
    return f"Under {100 * BAR:g} % at {BAR_CLASSES} classes on a CPU, whole-batch losses apart: {outcome}"


def as_json(cell: Cell) -> dict[str, object]:
    """The cell's figures; times in seconds, overheads as shares."""
    return {
        "classes": cell.classes,
        "batch": cell.batch,
        "student_s": cell.step.median_s,
        "ce_s": cell.losses["ce"].median_s,
        "methods": {
            name: {
                "overhead": cell.overhead(name),
                "spread": cell.spread(name),
                "median_s": timing.median_s,
                "calls": len(timing.seconds),
                "whole_batch": whole_batch(name),
                "views": METHODS[name].views,
            }
            for name, timing in cell.losses.items()
            if name != "ce"
        },
        "skipped": cell.skipped,
    }


def main() -> None:
    given = options("What each method costs a step, as a share of a student's step.", devices=EITHER)
    every: list[Cell] = []
    for classes in (100,) if given.quick else (100, 1000):
        cells: list[Cell] = []
        for batch in (64,) if given.quick else (64, 128, 256, 512, 1024):
            cells.append(measure(given, classes, batch, cells[-1] if cells else None))
        report(cells)
        every += cells
    print(verdict(every))
    write(given, {"benchmark": "methods", "bar": BAR, "cells": [as_json(cell) for cell in every]})


if __name__ == "__main__":
    main()
