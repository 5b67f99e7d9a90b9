"""Temperature policies: from the statistics of two logit rows to their temperatures. Pure functions of arrays.

The same functions serve training, on tensors with gradient (``live.py``), and the preview of a method, on NumPy arrays
in a process without torch (``preview.py``): array functions are taken from ``batch.xp``, whose NumPy and torch forms
agree in name and arguments.

A policy sees statistics (``store.STATISTICS``), never logits: the teacher's come from the cache as they were measured
on the unrounded logits, the student's are computed when a policy asks for them. Z-scoring is a temperature too, because
softmax ignores shifts: S((z - mean) / (std + eps) / T) = S(z / (T (std + eps))).

Every policy but the expression returns positive, finite temperatures for finite statistics. Where its formula gives
none (a maximum of the other sign, a constant row), that one sample falls back as the function's docstring says.

Shapes: B batch, C classes, 1 kept for broadcasting; tau_B1 temperatures. float32 or float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from workers.methods.expression import Array
from workers.methods.policies import (
    Annealed,
    Asymmetric,
    Dtkd,
    Expression,
    Fixed,
    Learned,
    MaxLogit,
    Normkd,
    Standardize,
)

Statistics = Mapping[str, Array]
"""Name -> [B, 1]; the names are those of ``store.STATISTICS``."""

STD_EPS = 1e-7
"""Added to a standard deviation by the authors of logit standardisation; below it a row counts as constant."""

MAX_RATIO = 100.0
"""DTKD's domain: the two maxima have one sign and differ by at most this factor."""


class PolicyBatch(Protocol):
    """What a policy may know beside the statistics, and may do beside arithmetic."""

    @property
    def xp(self) -> ModuleType:
        """``torch`` or ``numpy``."""

    @property
    def classes(self) -> int:
        """C."""

    @property
    def epoch(self) -> int:
        """Counted from 1."""

    @property
    def epochs(self) -> int | None:
        """How many the run has; None where nobody knows."""

    def full(self, value: float) -> Array:
        """[B, 1] of one value."""

    def is_label(self) -> Array:
        """Boolean [B, C], true at the sample's class."""

    def detached(self, values: Array) -> Array:
        """The same values without gradient."""

    def detached_statistics(self, statistics: Statistics) -> Statistics:
        """The same statistics without gradient."""

    def with_slope(self, values: Array, by: Array, slope: Array) -> Array:
        """``values``, whose derivative by ``by`` is ``slope``; all three are [B, 1], and it alone carries gradient."""

    def theta(self, config: Learned, gradient_scale: float) -> Array:
        """The learned parameter [] of this term; its gradient is multiplied by ``gradient_scale``."""


@dataclass(frozen=True)
class Temperatures:
    """What a policy decides, per sample.

    Each is a ``float`` instead where it is one number for every sample of an epoch: a GPU then has nothing to compute.

    Attributes:
        student: tau_B1 > 0 that divides the student's logits; carries gradient where the authors' code does.
        teacher: tau_B1 > 0 that divides the teacher's logits; [B, C] where classes differ.
        weight: [B, 1] >= 0, the factor (T^2 or its like) that keeps gradients comparable over temperatures.
    """

    student: Array
    teacher: Array
    weight: Array

    def as_arrays(self, batch: PolicyBatch) -> "Temperatures":
        """The same with [B, 1] in place of each ``float``."""
        sides = (self.student, self.teacher, self.weight)
        return Temperatures(*(batch.full(side) if isinstance(side, float) else side for side in sides))


def fixed(student: Statistics, teacher: Statistics, config: Fixed, batch: PolicyBatch) -> Temperatures:
    """T for everything, weight T^2 (Hinton et al. 2015)."""
    return Temperatures(config.temperature, config.temperature, config.temperature**2)


def dtkd(student: Statistics, teacher: Statistics, config: Dtkd, batch: PolicyBatch) -> Temperatures:
    """2T shared in proportion to the maxima, weight T_t T_s; nothing is detached (Wei & Bai 2024).

    Domain: maxima of one sign (otherwise one temperature, and with it the loss, would be negative; the authors' code
    returns that) and within a factor of ``MAX_RATIO`` (a maximum that crosses zero sends the gradient to infinity).
    A sample outside takes the base temperature T for both networks. The formula is not shift invariant.
    """
    xp = batch.xp
    x_B1, y_B1 = teacher[config.statistic], student[config.statistic]
    sum_B1 = x_B1 + batch.detached(y_B1)
    share_B1, least = x_B1 / sum_B1, 1.0 / (1.0 + MAX_RATIO)
    inside_B1 = xp.clip(share_B1, least, 1.0 - least) == share_B1
    teacher_B1 = 2.0 * config.temperature * xp.where(inside_B1, share_B1, 0.5)
    slope_B1 = xp.where(inside_B1, teacher_B1 / sum_B1, 0.0)
    teacher_B1 = batch.with_slope(teacher_B1, y_B1, -slope_B1)
    student_B1 = 2.0 * config.temperature - teacher_B1
    return Temperatures(student_B1, teacher_B1, student_B1 * teacher_B1)


def normkd(student: Statistics, teacher: Statistics, config: Normkd, batch: PolicyBatch) -> Temperatures:
    """k std of each network's own logits, weight the teacher's T_t^2; std(z_s) carries gradient (Chi et al. 2023).

    A constant teacher row (std <= ``STD_EPS``) says nothing: its weight is its k^2 std^2, zero, at temperature k. A
    constant student row takes the teacher's temperature.
    """
    student_B1, teacher_B1 = config.scale * student["std"], config.scale * teacher["std"]
    weight_B1 = teacher_B1 * teacher_B1
    teacher_B1 = batch.xp.where(teacher["std"] > STD_EPS, teacher_B1, config.scale)
    student_B1 = batch.xp.where(student["std"] > STD_EPS, student_B1, teacher_B1)
    return Temperatures(student_B1, teacher_B1, weight_B1)


def standardize(student: Statistics, teacher: Statistics, config: Standardize, batch: PolicyBatch) -> Temperatures:
    """Z-scores at temperature T, weight T^2; std(z_s) carries gradient (Sun et al. 2024).

    Defined everywhere: a constant row has temperature T eps and stays uniform. The gradient of a constant student row
    is about 1/eps, as in the authors' code.
    """
    return Temperatures(
        config.temperature * (student["std"] + config.eps),
        config.temperature * (teacher["std"] + config.eps),
        config.temperature**2,
    )


def max_logit(student: Statistics, teacher: Statistics, config: MaxLogit, batch: PolicyBatch) -> Temperatures:
    """Z-scores at a temperature set by the largest one, weight T_n^2; T_n carries no gradient (Matsuyama et al. 2025).

    ``released``: the largest |z'| of either network; ``teacher_only``: the teacher's largest z'. If every row that
    counts is constant, T_n would be 0: it is 1, and both distributions are uniform or the weight is finite.
    """
    xp = batch.xp
    spread_s_B1, spread_t_B1 = student["std"] + STD_EPS, teacher["std"] + STD_EPS
    if config.form == "released":
        own_B1 = _reach(batch.detached_statistics(student), xp) / batch.detached(spread_s_B1)
        largest_B1 = xp.maximum(own_B1, _reach(teacher, xp) / spread_t_B1)
    else:
        largest_B1 = (teacher["max"] - teacher["mean"]) / spread_t_B1
    tau_B1 = (1.0 + math.sqrt(3.0)) / 2.0 * largest_B1
    tau_B1 = xp.where(tau_B1 > 0, tau_B1, 1.0)
    return Temperatures(tau_B1 * spread_s_B1, tau_B1 * spread_t_B1, tau_B1 * tau_B1)


def _reach(statistics: Statistics, xp: ModuleType) -> Array:
    """max |z - mean|, from the two ends of the row."""
    mean_B1 = statistics["mean"]
    return xp.maximum(statistics["max"] - mean_B1, mean_B1 - statistics["min"])


def annealed(student: Statistics, teacher: Statistics, config: Annealed, batch: PolicyBatch) -> Temperatures:
    """Teacher n/t at step t of n, student 1, weight 1 (Jafari et al. 2021)."""
    step = min(1 + (batch.epoch - 1) // config.epochs_per_step, config.steps)
    return Temperatures(1.0, config.steps / step, 1.0)


def asymmetric(student: Statistics, teacher: Statistics, config: Asymmetric, batch: PolicyBatch) -> Temperatures:
    """One temperature each, and the label's class its own on the teacher's side; weight T_s^2 (Li et al. 2022)."""
    teacher_tau = config.teacher
    if config.label_temperature is not None:
        label_B1, other_B1 = batch.full(config.label_temperature), batch.full(config.teacher)
        teacher_tau = batch.xp.where(batch.is_label(), label_B1, other_B1)
    return Temperatures(config.student, teacher_tau, config.student**2)


def learned(student: Statistics, teacher: Statistics, config: Learned, batch: PolicyBatch) -> Temperatures:
    """start + span sigmoid(theta), weight T^2, differentiated in all three; dL/dtheta reversed (Li et al. 2023)."""
    lam = (1.0 - math.cos(math.pi * min(batch.epoch, config.reversal_epochs) / config.reversal_epochs)) / 2.0
    theta = batch.theta(config, -config.strength * lam)
    tau_B1 = batch.full(1.0) * (config.start + config.span / (1.0 + batch.xp.exp(-theta)))
    if config.standardize:
        student_B1, teacher_B1 = tau_B1 * (student["std"] + STD_EPS), tau_B1 * (teacher["std"] + STD_EPS)
        return Temperatures(student_B1, teacher_B1, tau_B1 * tau_B1)
    return Temperatures(tau_B1, tau_B1, tau_B1 * tau_B1)


def expression(student: Statistics, teacher: Statistics, config: Expression, batch: PolicyBatch) -> Temperatures:
    """What the text says, weight T_s T_t unless that is said too; whether it is positive is the caller's to check.

    Raises:
        ValueError: the text reads ``epochs``, which is not known here.
    """
    names: dict[str, Array] = {"classes": batch.full(batch.classes), "epoch": batch.full(batch.epoch)}
    names |= {name: teacher[name] for name in config.reads}
    names |= {f"student_{name}": student[name] for name in config.reads_of_student}
    if batch.epochs is not None:
        names["epochs"] = batch.full(batch.epochs)
    elif any("epochs" in one.names for one in config.parsed.values()):
        raise ValueError("the expression reads 'epochs': say how many epochs the run has")
    if config.detach:
        names = {name: batch.detached(values_B1) for name, values_B1 in names.items()}
    given = {side: one.evaluate(names, batch.xp, batch.full) for side, one in config.parsed.items()}
    return Temperatures(given["student"], given["teacher"], given.get("weight", given["student"] * given["teacher"]))


@dataclass(frozen=True)
class Unusable:
    """A temperature or weight that no loss can use.

    Attributes:
        sample: its place in the batch.
        side: ``student``, ``teacher`` or ``weight``.
        value: what it is.
    """

    sample: int
    side: str
    value: float

    def explain(self, config: Expression, sample: str) -> str:
        """A sentence with the text that gave the value, about the sample as ``sample`` calls it."""
        what = "weight" if self.side == "weight" else f"{self.side} temperature"
        allowed = "finite and not negative" if self.side == "weight" else "positive and finite"
        parsed = config.parsed
        text = parsed[self.side].text if self.side in parsed else "T_s T_t"
        return (
            f"the {what} of {sample} is {self.value:g}, from {text!r}; it must be {allowed}: "
            "bound it, with clip(x, low, high) or where(condition, x, otherwise) for instance"
        )


def finite_if_usable(temperatures: Temperatures, xp: ModuleType) -> Array:
    """A value of no meaning, finite exactly where ``first_unusable`` finds nothing: [B, 1]; no step waits for it."""
    both_B1 = xp.log(temperatures.student)
    if temperatures.teacher is not temperatures.student:
        both_B1 = both_B1 + xp.log(temperatures.teacher)
    return both_B1 + xp.sqrt(temperatures.weight)


def first_unusable(temperatures: Temperatures, xp: ModuleType) -> Unusable | None:
    """The first sample with a temperature that is not positive and finite, or such a weight; the weight may be 0.

    Of temperatures that are arrays, all three.
    """
    sides = {
        "student": (temperatures.student, temperatures.student > 0),
        "teacher": (temperatures.teacher, temperatures.teacher > 0),
        "weight": (temperatures.weight, temperatures.weight >= 0),
    }
    usable = {side: xp.isfinite(values_B1) & positive_B1 for side, (values_B1, positive_B1) in sides.items()}
    if bool((usable["student"] & usable["teacher"] & usable["weight"]).all()):
        return None
    samples = {side: good_B1.reshape(-1).tolist() for side, good_B1 in usable.items()}
    sample, side = min((good.index(False), side) for side, good in samples.items() if False in good)
    return Unusable(sample, side, float(sides[side][0].reshape(-1)[sample]))


POLICIES: dict[str, Callable[..., Temperatures]] = {
    "fixed": fixed,
    "dtkd": dtkd,
    "normkd": normkd,
    "standardize": standardize,
    "max_logit": max_logit,
    "annealed": annealed,
    "asymmetric": asymmetric,
    "learned": learned,
    "expression": expression,
}
"""A policy by its config's ``kind``: (student statistics, teacher statistics, config, batch) -> temperatures."""
