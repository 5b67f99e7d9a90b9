"""Temperature policies: from the statistics of two logit rows to their temperatures. Pure functions of tensors.

A policy sees statistics (``store.STATISTICS``), never logits: the teacher's come from the cache as they were measured
on the unrounded logits, the student's are computed here, with gradient, when a policy asks for them. Z-scoring is a
temperature too, because softmax ignores shifts: S((z - mean) / (std + eps) / T) = S(z / (T (std + eps))).

Every policy returns positive, finite temperatures for finite statistics. Where its formula gives none (a maximum of
the other sign, a constant row), that one sample falls back as the function's docstring says.

Shapes: B batch, C classes, 1 kept for broadcasting; z_BC logits, tau_B1 temperatures. float32 or float64.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.parts import Annealed, Asymmetric, Dtkd, Fixed, MaxLogit, Normkd, Standardize

Statistics = Mapping[str, Tensor]
"""Name -> [B, 1]; the names are those of ``FORMULAS``."""

STD_EPS = 1e-7
"""Added to a standard deviation by the authors of logit standardisation; below it a row counts as constant."""

MAX_RATIO = 100.0
"""DTKD's domain: the two maxima have one sign and differ by at most this factor."""

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda z_BC: z_BC.amax(dim=1, keepdim=True),
    "min": lambda z_BC: z_BC.amin(dim=1, keepdim=True),
    "mean": lambda z_BC: z_BC.mean(dim=1, keepdim=True),
    # Unbiased, as in every released code, although one paper divides by C.
    "std": lambda z_BC: z_BC.std(dim=1, keepdim=True),
    "sharpness": lambda z_BC: z_BC.logsumexp(dim=1, keepdim=True),
}


class LiveStatistics(Mapping[str, Tensor]):
    """Statistics of logits at hand, each computed when first asked for and differentiable.

    Args:
        z_BC: logits, float32 or float64, C >= 2.
    """

    def __init__(self, z_BC: Tensor) -> None:
        self._z_BC = z_BC
        self._grad = torch.is_grad_enabled()
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            # Kept for every later reader, so it must not depend on the first one's grad mode.
            with torch.set_grad_enabled(self._grad):
                self._known[name] = FORMULAS[name](self._z_BC)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FORMULAS)

    def __len__(self) -> int:
        return len(FORMULAS)


def row_statistics(z_BC: Tensor) -> dict[str, Tensor]:
    """What a cache holds per row, for a teacher that is run live: name -> [B], in z_BC's dtype (at least float32)."""
    z_BC = z_BC.detach().to(torch.promote_types(z_BC.dtype, torch.float32))
    return {name: value_B1.squeeze(1) for name, value_B1 in LiveStatistics(z_BC).items()}


@dataclass(frozen=True)
class Batch:
    """What a policy may know beside the statistics.

    Attributes:
        labels_B: true classes, int64.
        classes: C.
        epoch: counted from 1.
        dtype: of the arithmetic, float32 or float64.
    """

    labels_B: Tensor
    classes: int
    epoch: int
    dtype: torch.dtype

    def full(self, value: float) -> Tensor:
        """[B, 1] of one value."""
        return torch.full((self.labels_B.shape[0], 1), value, dtype=self.dtype, device=self.labels_B.device)


@dataclass(frozen=True)
class Temperatures:
    """What a policy decides, per sample.

    Attributes:
        student: tau_B1 > 0 that divides the student's logits; carries gradient where the authors' code does.
        teacher: tau_B1 > 0 that divides the teacher's logits; [B, C] where classes differ.
        weight: [B, 1] >= 0, the factor (T^2 or its like) that keeps gradients comparable over temperatures.
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor


def fixed(student: Statistics, teacher: Statistics, config: Fixed, batch: Batch) -> Temperatures:
    """T for everything, weight T^2 (Hinton et al. 2015)."""
    tau_B1 = batch.full(config.temperature)
    return Temperatures(tau_B1, tau_B1, batch.full(config.temperature**2))


def dtkd(student: Statistics, teacher: Statistics, config: Dtkd, batch: Batch) -> Temperatures:
    """2T shared in proportion to the maxima, weight T_t T_s; nothing is detached (Wei & Bai 2024).

    Domain: maxima of one sign (otherwise one temperature, and with it the loss, would be negative; the authors' code
    returns that) and within a factor of ``MAX_RATIO`` (a maximum that crosses zero sends the gradient to infinity).
    A sample outside takes the base temperature T for both networks. The formula is not shift invariant.
    """
    x_B1, y_B1 = teacher["max"], student["max"]
    same_sign_B1 = torch.sign(x_B1) * torch.sign(y_B1) > 0
    low_B1 = torch.minimum(x_B1.abs(), y_B1.abs())
    high_B1 = torch.maximum(x_B1.abs(), y_B1.abs())
    inside_B1 = same_sign_B1 & (high_B1 <= MAX_RATIO * low_B1)
    # Equal maxima give T, so the fallback needs no second formula, and its gradient is exactly zero.
    x_B1 = torch.where(inside_B1, x_B1, 1.0)
    y_B1 = torch.where(inside_B1, y_B1, 1.0)
    scale_B1 = 2.0 * config.temperature / (x_B1 + y_B1)
    student_B1, teacher_B1 = y_B1 * scale_B1, x_B1 * scale_B1
    return Temperatures(student_B1, teacher_B1, student_B1 * teacher_B1)


def normkd(student: Statistics, teacher: Statistics, config: Normkd, batch: Batch) -> Temperatures:
    """k std of each network's own logits, weight the teacher's T_t^2; std(z_s) carries gradient (Chi et al. 2023).

    A constant teacher row (std <= ``STD_EPS``) says nothing: its weight is its k^2 std^2, zero, at temperature k. A
    constant student row takes the teacher's temperature.
    """
    student_B1, teacher_B1 = config.scale * student["std"], config.scale * teacher["std"]
    weight_B1 = teacher_B1.square()
    teacher_B1 = torch.where(teacher["std"] > STD_EPS, teacher_B1, config.scale)
    student_B1 = torch.where(student["std"] > STD_EPS, student_B1, teacher_B1)
    return Temperatures(student_B1, teacher_B1, weight_B1)


def standardize(student: Statistics, teacher: Statistics, config: Standardize, batch: Batch) -> Temperatures:
    """Z-scores at temperature T, weight T^2; std(z_s) carries gradient (Sun et al. 2024).

    Defined everywhere: a constant row has temperature T eps and stays uniform. The gradient of a constant student row
    is about 1/eps, as in the authors' code.
    """
    return Temperatures(
        config.temperature * (student["std"] + config.eps),
        config.temperature * (teacher["std"] + config.eps),
        batch.full(config.temperature**2),
    )


def max_logit(student: Statistics, teacher: Statistics, config: MaxLogit, batch: Batch) -> Temperatures:
    """Z-scores at a temperature set by the largest one, weight T_n^2; T_n carries no gradient (Matsuyama et al. 2025).

    ``released``: the largest |z'| of either network; ``teacher_only``: the teacher's largest z'. If every row that
    counts is constant, T_n would be 0: it is 1, and both distributions are uniform or the weight is finite.
    """
    with torch.no_grad():
        if config.form == "released":
            largest_B1 = torch.maximum(_largest_z_score(student), _largest_z_score(teacher))
        else:
            largest_B1 = (teacher["max"] - teacher["mean"]) / (teacher["std"] + STD_EPS)
        tau_B1 = (1.0 + math.sqrt(3.0)) / 2.0 * largest_B1
        tau_B1 = torch.where(tau_B1 > 0, tau_B1, 1.0)
    return Temperatures(tau_B1 * (student["std"] + STD_EPS), tau_B1 * (teacher["std"] + STD_EPS), tau_B1.square())


def annealed(student: Statistics, teacher: Statistics, config: Annealed, batch: Batch) -> Temperatures:
    """Teacher n/t at step t of n, student 1, weight 1 (Jafari et al. 2021)."""
    step = min(1 + (batch.epoch - 1) // config.epochs_per_step, config.steps)
    return Temperatures(batch.full(1.0), batch.full(config.steps / step), batch.full(1.0))


def asymmetric(student: Statistics, teacher: Statistics, config: Asymmetric, batch: Batch) -> Temperatures:
    """One temperature each, and the label's class its own on the teacher's side; weight T_s^2 (Li et al. 2022)."""
    tau_B1, teacher_B1 = batch.full(config.student), batch.full(config.teacher)
    if config.label_temperature is None:
        return Temperatures(tau_B1, teacher_B1, batch.full(config.student**2))
    label_B1 = batch.full(config.label_temperature)
    teacher_BC = teacher_B1.repeat(1, batch.classes).scatter(1, batch.labels_B.unsqueeze(1), label_B1)
    return Temperatures(tau_B1, teacher_BC, batch.full(config.student**2))


def _largest_z_score(statistics: Statistics) -> Tensor:
    """max |z - mean| / (std + eps), from the two ends of the row."""
    mean_B1 = statistics["mean"]
    reach_B1 = torch.maximum(statistics["max"] - mean_B1, mean_B1 - statistics["min"])
    return reach_B1 / (statistics["std"] + STD_EPS)


POLICIES: dict[str, Callable[..., Temperatures]] = {
    "fixed": fixed,
    "dtkd": dtkd,
    "normkd": normkd,
    "standardize": standardize,
    "max_logit": max_logit,
    "annealed": annealed,
    "asymmetric": asymmetric,
}
"""A policy by its config's ``kind``: (student statistics, teacher statistics, config, batch) -> temperatures."""
