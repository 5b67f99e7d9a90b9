"""Adaptive temperature from the maximum logit (Matsuyama et al. 2025)."""

import math
from types import ModuleType
from typing import Literal

from workers.methods.expression import Array
from workers.methods.policies.base import STD_EPS, Policy, PolicyBatch, Statistics, Temperatures


class MaxLogit(Policy):
    """Temperature from the largest z-scored logit, z' = (z - mean) / (std + 1e-7); no gradient through it.

    ``released`` is what the authors' code computes, ``teacher_only`` what their abstract says.
    """

    title = "temperature from the maximum logit"
    formula = (
        "T_n = (1+sqrt 3)/2 max_c max(|z'_s|, |z'_t|) (released) or (1+sqrt 3)/2 max_c z'_t (teacher_only); "
        "T_t = T_n (std(z_t) + 1e-7), T_s = T_n (std(z_s) + 1e-7), W = T_n^2"
    )
    paper = "Matsuyama et al. 2025, arXiv 2503.09030"
    domain = "rows of which not all that count is constant (T_n > 0); the others take T_n = 1"
    reads_epoch = False
    statistics = ("max", "min", "mean", "std")
    student_statistics = ("max", "min", "mean", "std")

    kind: Literal["max_logit"] = "max_logit"
    form: Literal["released", "teacher_only"] = "released"

    @property
    def reads(self) -> tuple[str, ...]:
        return self.statistics if self.form == "released" else ("max", "mean", "std")

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return self.student_statistics if self.form == "released" else ("std",)

    @property
    def z_scores(self) -> bool:
        return True


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
    inside_B1 = tau_B1 > 0
    tau_B1 = xp.where(inside_B1, tau_B1, 1.0)
    return Temperatures(
        tau_B1 * spread_s_B1, tau_B1 * spread_t_B1, tau_B1 * tau_B1, inside=lambda: inside_B1, paper=tau_B1
    )


def _reach(statistics: Statistics, xp: ModuleType) -> Array:
    """max |z - mean|, from the two ends of the row."""
    mean_B1 = statistics["mean"]
    return xp.maximum(statistics["max"] - mean_B1, mean_B1 - statistics["min"])
