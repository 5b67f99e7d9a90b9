"""Run our code on golden inputs and compare, in differences that mean something.

The reference gives a gradient as four numbers and five entries. Each is compared on its own scale: the norm and the
absolute sum relative to themselves, the checksum (a sum with cancellation) relative to the gradient's norm at least,
the five entries relative to the largest of them or the root mean square of all, whichever is larger. A learned
temperature's gradient, all cancellation (d(T^2 KL)/dT tends to 0 as T grows), is compared on the scale of the norm.
What differs by ``FLOOR`` at most agrees.

The teacher's statistics are computed here with numpy, so that nothing under test supplies its own reference.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.golden.recipes import RECIPES, Recipe
from workers.errors import NotFinite
from workers.methods.catalog import parse_method
from workers.methods.policies.dtkd import MAX_RATIO
from workers.objective.objective import objective
from workers.objective.results import Objective
from workers.objective.view import View

HERE = Path(__file__).parent
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    name: method["hyperparameters"]
    for name, method in json.loads((HERE / "golden.json").read_text())["methods"].items()
}
"""For which hyper-parameters the recipes are written."""

FLOOR = 1e-12
"""Absolute difference that is rounding in float64, whatever the reference: of one that is 1e-15 no digit counts."""

Reference = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One golden input: B samples of C classes, float64; one view of them, or two.

    Attributes:
        settings: the hyper-parameters that the file gives for each id.
    """

    name: str
    teachers: Sequence[npt.NDArray[np.float64]]
    students: Sequence[npt.NDArray[np.float64]]
    labels_B: npt.NDArray[np.int64]
    results: Mapping[str, Reference]
    settings: Mapping[str, Mapping[str, Any]]


@dataclass
class Outcome:
    """One id on one case.

    Attributes:
        differences: worst relative difference of "total", "terms" and "gradient", where they were compared.
        problem: what is wrong, if anything is.
        note: how a reference that is no number, or lies outside our domain, was met.
    """

    differences: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    note: str | None = None


def load(folder: Path) -> list[Case]:
    """The cases of a ``golden.json`` / ``golden.npz`` pair."""
    document = json.loads((folder / "golden.json").read_text())
    settings = {name: method["hyperparameters"] for name, method in document.get("methods", {}).items()}
    cases = []
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        for name, case in document["cases"].items():
            teachers, students = (
                [arrays[f"{name}/{network}{view}"] for view in ("", "2") if f"{name}/{network}{view}" in arrays]
                for network in ("teacher", "student")
            )
            cases.append(Case(name, teachers, students, arrays[f"{name}/labels"], case["results"], settings))
    return cases


def reference_statistics(z_BC: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """The cached statistics of teacher logits, in float64."""
    top_B = z_BC.max(axis=1)
    return {
        "max": top_B,
        "min": z_BC.min(axis=1),
        "mean": z_BC.mean(axis=1),
        "std": z_BC.std(axis=1, ddof=1),
        "sharpness": top_B + np.log(np.exp(z_BC - top_B[:, None]).sum(axis=1)),
    }


@dataclass(frozen=True)
class Run:
    """What our code makes of a case.

    Attributes:
        gradients: with respect to the student's logits of each view, [B, C].
        theta: gradients with respect to the learned parameters, after their reversal.
    """

    result: Objective
    gradients: Sequence[Tensor]
    theta: Sequence[Tensor]


def run(recipe: Recipe, case: Case, dtype: torch.dtype = torch.float64) -> Run:
    """Our objective of a case, and its gradients."""
    method = parse_method(recipe.method).expand()
    views = [
        View(
            torch.tensor(student_BC, dtype=dtype, requires_grad=True),
            torch.tensor(teacher_BC, dtype=dtype),
            {name: torch.tensor(x_B, dtype=dtype) for name, x_B in reference_statistics(teacher_BC).items()},
        )
        for teacher_BC, student_BC in zip(case.teachers, case.students, strict=True)
    ]
    learned = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in method.learned.items()}
    result = objective(
        method,
        views[0].student_logits_BC,
        torch.from_numpy(case.labels_B),
        epoch=recipe.epoch,
        teacher_logits_BC=views[0].teacher_logits_BC,
        teacher_statistics=views[0].teacher_statistics,
        second=views[1] if method.views == 2 else None,
        learned=learned,
    )
    inputs = [view.student_logits_BC for view in views[: method.views]]
    gradients = torch.autograd.grad(result.total, [*inputs, *learned.values()])
    return Run(result, gradients[: len(inputs)], gradients[len(inputs) :])


def check(name: str, case: Case) -> Outcome:
    """One implemented id on one case, in float64."""
    recipe, reference = RECIPES[name], case.results[name]
    if (given := case.settings.get(name, SETTINGS[name])) != SETTINGS[name]:
        return Outcome(problem=f"its hyper-parameters are {given}, the recipe's {SETTINGS[name]}")
    if parse_method(recipe.method).expand().views > len(case.students):
        return Outcome(problem="the method compares two views, and the case has one")
    total = number(reference["total"])
    try:
        ours = run(recipe, case)
    except NotFinite as error:
        if math.isfinite(total):
            return Outcome(problem=f"refused, but the reference is {total:.6g}: {error}")
        return Outcome(note=f"reference {total}, refused: {error}")
    value = ours.result.total.item()
    if not all(bool(torch.isfinite(gradient).all()) for gradient in (*ours.gradients, *ours.theta)):
        return Outcome(problem=f"our gradient is not finite (total {value:.6g}, reference {total:.6g})")
    if not math.isfinite(total):
        # Every term is a divergence, a distance or a cross-entropy.
        problem = f"negative loss {value:.6g}" if value < -1e-9 else None
        return Outcome(note=f"reference {total}, ours {value:.6g} with a finite gradient", problem=problem)
    if name.startswith("dtkd") and (outside := samples_outside_dtkd(case)):
        return _fallback(value, total, outside)
    outcome = Outcome({"total": relative(value, total)})
    outcome.differences["terms"] = max(_term_differences(recipe, reference, ours.result), default=0.0)
    gradient = gradient_differences(reference, ours)
    if gradient is None:
        norm = float(ours.gradients[0].norm())
        outcome.note = f"reference gradient is not finite, ours is (norm {norm:.6g})"
    else:
        outcome.differences["gradient"] = max(gradient.values(), default=0.0)
    worst = max(outcome.differences, key=lambda kind: outcome.differences[kind])
    if not outcome.differences[worst] <= recipe.rtol:
        outcome.problem = f"{worst} differs by {outcome.differences[worst]:.2e}, {recipe.rtol:.0e} is allowed"
    return outcome


def samples_outside_dtkd(case: Case) -> int:
    """How many samples have maxima for which the dynamic temperatures are not defined here."""
    x_B, y_B = case.teachers[0].max(axis=1), case.students[0].max(axis=1)
    low_B, high_B = np.minimum(abs(x_B), abs(y_B)), np.maximum(abs(x_B), abs(y_B))
    return int((~((np.sign(x_B) * np.sign(y_B) > 0) & (high_B <= MAX_RATIO * low_B))).sum())


def _fallback(ours: float, total: float, outside: int) -> Outcome:
    """Outside its domain dtkd is ours to define: it must be finite and, as a sum of divergences, not negative."""
    note = f"{outside} samples outside dtkd's domain take the base temperature: {ours:.6g}, reference {total:.6g}"
    return Outcome(note=note, problem=None if ours >= 0 else f"negative loss {ours:.6g}")


def _term_differences(recipe: Recipe, reference: Reference, result: Objective) -> Iterator[float]:
    for golden, mixture in recipe.terms.items():
        if golden in reference.get("terms", {}):
            ours = sum(factor * float(result.terms[term]) for term, factor in mixture.items())
            yield relative(ours, number(reference["terms"][golden]))
    temperatures = {"T_tea_first5": result.teacher_temperature, "T_stu_first5": result.student_temperature}
    for golden, ours_B in temperatures.items():
        for place, value in enumerate(reference.get("aux", {}).get(golden, [])):
            assert ours_B is not None
            yield relative(float(ours_B[place]), number(value))


def gradient_differences(reference: Reference, ours: Run) -> dict[str, float] | None:
    """Relative differences of the gradients' summaries; None if a reference is not finite."""
    differences: dict[str, float] = {}
    for view, gradient_BC in enumerate(ours.gradients):
        prefix = "grad_view2_" if view else "grad_"
        found = _summary_differences(reference, prefix, gradient_BC)
        if found is None:
            return None
        differences |= found
    if "grad_theta_after_reversal" in reference:
        (theta,) = ours.theta
        apart = _beyond_floor(float(theta), number(reference["grad_theta_after_reversal"]))
        differences["grad_theta"] = apart / max(number(reference["grad_norm"]), FLOOR)
    return differences


def _summary_differences(reference: Reference, prefix: str, gradient_BC: Tensor) -> dict[str, float] | None:
    g = gradient_BC.double().reshape(-1)
    ours: dict[str, list[float]] = {
        "norm": [float(g.norm())],
        "abs_sum": [float(g.abs().sum())],
        "cos_checksum": [float((g * torch.arange(len(g), dtype=torch.float64).cos()).sum())],
        "first5": g[:5].tolist(),
    }
    given = {name: np.atleast_1d(reference[prefix + name]).tolist() for name in ours if prefix + name in reference}
    theirs = {name: [number(value) for value in values] for name, values in given.items()}
    if not all(math.isfinite(value) for values in theirs.values() for value in values):
        return None
    norm = theirs.get("norm", ours["norm"])[0]
    least = {"cos_checksum": norm, "first5": norm / math.sqrt(len(g))}
    return {
        prefix + name: max(_beyond_floor(a, b) for a, b in zip(ours[name], values, strict=True))
        / max(*map(abs, values), least.get(name, 0.0), FLOOR)
        for name, values in theirs.items()
    }


def number(value: float | str) -> float:
    """A golden number; those that JSON cannot hold are strings."""
    return float(value)


def relative(ours: float, theirs: float) -> float:
    """|difference| / |reference|; a reference below 1e-6 counts as 1e-6, since rounding is absolute there."""
    return _beyond_floor(ours, theirs) / max(abs(theirs), 1e-6)


def _beyond_floor(ours: float, theirs: float) -> float:
    """|difference|, which is 0 up to ``FLOOR``."""
    apart = abs(ours - theirs)
    return 0.0 if apart <= FLOOR else apart
