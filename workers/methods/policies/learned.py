"""Learned temperature, CTKD (Li et al. 2023)."""

import math
from collections.abc import Hashable
from functools import partial
from typing import Literal

from workers.methods.policies.base import STD_EPS, Policy, PolicyBatch, Statistics, Temperatures, neither_constant
from workers.spec import Count, Finite, Flag, Temperature, Weight


class Learned(Policy):
    """One temperature for everything, learned against the student: its gradient is reversed, ever more strongly.

    theta is a parameter beside the student's, in the same optimizer. Its gradient is multiplied by -strength times
    lambda, which rises from 0 to 1 along half a cosine over ``reversal_epochs``. ``standardize`` learns the
    temperature of z-scored logits instead of raw ones.
    """

    title = "learned temperature (curriculum)"
    formula = (
        "T = start + span sigmoid(theta), W = T^2, T_s = T_t = T (standardize: times std(z) + 1e-7); dL/dtheta times "
        "-strength (1 - cos(pi min(epoch, N)/N))/2, N = reversal_epochs"
    )
    paper = "Li et al. AAAI 2023, arXiv 2211.16231"
    domain = "with standardize, rows that are not constant (std > 1e-7), as of standardize; else all"
    statistics = ("std",)
    student_statistics = ("std",)

    kind: Literal["learned"] = "learned"
    start: Temperature = 1.0
    span: Temperature = 20.0
    theta: Finite = 1.0
    strength: Weight = 1.0
    reversal_epochs: Count = 10
    standardize: Flag = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("std",) if self.standardize else ()

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return self.reads

    @property
    def domain_key(self) -> Hashable:
        return "neither constant"

    @property
    def z_scores(self) -> bool:
        return self.standardize


def learned(student: Statistics, teacher: Statistics, config: Learned, batch: PolicyBatch) -> Temperatures:
    """start + span sigmoid(theta), weight T^2, differentiated in all three; dL/dtheta reversed (Li et al. 2023)."""
    lam = (1.0 - math.cos(math.pi * min(batch.epoch, config.reversal_epochs) / config.reversal_epochs)) / 2.0
    theta = batch.theta(config, -config.strength * lam)
    tau_B1 = batch.full(1.0) * (config.start + config.span / (1.0 + batch.xp.exp(-theta)))
    if config.standardize:
        student_B1, teacher_B1 = tau_B1 * (student["std"] + STD_EPS), tau_B1 * (teacher["std"] + STD_EPS)
        inside = partial(neither_constant, student, teacher, batch.xp)
        return Temperatures(student_B1, teacher_B1, tau_B1 * tau_B1, inside=inside, paper=tau_B1)
    return Temperatures(tau_B1, tau_B1, tau_B1 * tau_B1)
