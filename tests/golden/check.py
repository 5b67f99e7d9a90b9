"""Run our code on golden inputs and compare, in differences that mean something.

The reference gives a gradient as four numbers and five entries. Each is compared on its own scale: the norm and the
absolute sum relative to themselves, the checksum (a sum with cancellation) relative to the gradient's norm at least,
the five entries relative to the largest of them or the root mean square of all, whichever is larger.

The teacher's statistics are computed here with numpy, so that nothing under test supplies its own reference.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.golden.recipes import RECIPES, Recipe
from workers.errors import NotFinite
from workers.methods import parse_method
from workers.objective import Objective, objective
from workers.temperature import MAX_RATIO

HERE = Path(__file__).parent

Reference = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One golden input: B samples of C classes, float64."""

    name: str
    teacher_BC: npt.NDArray[np.float64]
    student_BC: npt.NDArray[np.float64]
    labels_B: npt.NDArray[np.int64]
    results: Mapping[str, Reference]


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
    described = json.loads((folder / "golden.json").read_text())["cases"]
    cases = []
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        for name, case in described.items():
            teacher_BC, student_BC, labels_B = (arrays[f"{name}/{part}"] for part in ("teacher", "student", "labels"))
            cases.append(Case(name, teacher_BC, student_BC, labels_B, case["results"]))
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


def run(recipe: Recipe, case: Case, dtype: torch.dtype = torch.float64) -> tuple[Objective, Tensor]:
    """Our objective of a case, and its gradient with respect to the student's logits [B, C]."""
    student_BC = torch.tensor(case.student_BC, dtype=dtype, requires_grad=True)
    statistics = reference_statistics(case.teacher_BC)
    result = objective(
        parse_method(recipe.method).expand(),
        student_BC,
        torch.from_numpy(case.labels_B),
        epoch=recipe.epoch,
        teacher_logits_BC=torch.tensor(case.teacher_BC, dtype=dtype),
        teacher_statistics={name: torch.tensor(value, dtype=dtype) for name, value in statistics.items()},
    )
    (gradient_BC,) = torch.autograd.grad(result.total, student_BC)
    return result, gradient_BC


def check(name: str, case: Case) -> Outcome:
    """One implemented id on one case, in float64."""
    recipe, reference = RECIPES[name], case.results[name]
    total = number(reference["total"])
    try:
        result, gradient_BC = run(recipe, case)
    except NotFinite as error:
        if math.isfinite(total):
            return Outcome(problem=f"refused, but the reference is {total:.6g}: {error}")
        return Outcome(note=f"reference {total}, refused: {error}")
    ours = result.total.item()
    if not bool(torch.isfinite(gradient_BC).all()):
        return Outcome(problem=f"our gradient is not finite (total {ours:.6g}, reference {total:.6g})")
    if not math.isfinite(total):
        return Outcome(note=f"reference {total}, ours {ours:.6g} with a finite gradient")
    if name.startswith("dtkd") and (outside := samples_outside_dtkd(case)):
        return _fallback(ours, total, outside)
    outcome = Outcome({"total": relative(ours, total)})
    outcome.differences["terms"] = max(_term_differences(recipe, reference, result), default=0.0)
    gradient = gradient_differences(reference, gradient_BC)
    if gradient is None:
        outcome.note = f"reference gradient is not finite, ours is (norm {float(gradient_BC.norm()):.6g})"
    else:
        outcome.differences["gradient"] = max(gradient.values(), default=0.0)
    worst = max(outcome.differences, key=lambda kind: outcome.differences[kind])
    if not outcome.differences[worst] <= recipe.rtol:
        outcome.problem = f"{worst} differs by {outcome.differences[worst]:.2e}, {recipe.rtol:.0e} is allowed"
    return outcome


def samples_outside_dtkd(case: Case) -> int:
    """How many samples have maxima for which the dynamic temperatures are not defined here."""
    x_B, y_B = case.teacher_BC.max(axis=1), case.student_BC.max(axis=1)
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
    temperatures = {"T_tea_first5": result.teacher_temperature_B, "T_stu_first5": result.student_temperature_B}
    for golden, ours_B in temperatures.items():
        for place, value in enumerate(reference.get("aux", {}).get(golden, [])):
            assert ours_B is not None
            yield relative(float(ours_B[place]), number(value))


def gradient_differences(reference: Reference, gradient_BC: Tensor) -> dict[str, float] | None:
    """Relative differences of the gradient's summary; None if the reference's is not finite."""
    g = gradient_BC.double().reshape(-1)
    ours: dict[str, list[float]] = {
        "grad_norm": [float(g.norm())],
        "grad_abs_sum": [float(g.abs().sum())],
        "grad_cos_checksum": [float((g * torch.arange(len(g), dtype=torch.float64).cos()).sum())],
        "grad_first5": g[:5].tolist(),
    }
    given = {name: np.atleast_1d(reference[name]).tolist() for name in ours if name in reference}
    theirs = {name: [number(value) for value in values] for name, values in given.items()}
    if not all(math.isfinite(value) for values in theirs.values() for value in values):
        return None
    norm = theirs.get("grad_norm", ours["grad_norm"])[0]
    least = {"grad_cos_checksum": norm, "grad_first5": norm / math.sqrt(len(g))}
    return {
        name: max(abs(a - b) for a, b in zip(ours[name], values, strict=True))
        / max(*map(abs, values), least.get(name, 0.0), 1e-12)
        for name, values in theirs.items()
    }


def number(value: float | str) -> float:
    """A golden number; those that JSON cannot hold are strings."""
    return float(value)


def relative(ours: float, theirs: float) -> float:
    """|difference| / |reference|; a reference below 1e-6 counts as 1e-6, since rounding is absolute there."""
    return abs(ours - theirs) / max(abs(theirs), 1e-6)
