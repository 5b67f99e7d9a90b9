"""Temperatures of NormKD, from the logits' standard deviation (Chi et al. 2023)."""

from collections.abc import Hashable
from typing import Literal

from workers.methods.policies.base import STD_EPS, Policy, PolicyBatch, Statistics, Temperatures, neither_constant
from workers.spec import Temperature


class Normkd(Policy):
    """Each network's temperature is proportional to the standard deviation of its own logits."""

    title = "temperature from the standard deviation"
    formula = "T_t = k std(z_t), T_s = k std(z_s), W = T_t^2"
    paper = "Chi et al. 2023, arXiv 2308.00520"
    domain = "rows that are not constant (std > 1e-7); a constant student takes T_t, a constant teacher k at W = 0"
    reads_epoch = False
    statistics = ("std",)
    student_statistics = ("std",)

    kind: Literal["normkd"] = "normkd"
    scale: Temperature = 2.0

    @property
    def domain_key(self) -> Hashable:
        return "neither constant"


def normkd(student: Statistics, teacher: Statistics, config: Normkd, batch: PolicyBatch) -> Temperatures:
    """k std of each network's own logits, weight the teacher's T_t^2; std(z_s) carries gradient (Chi et al. 2023).

    A constant teacher row (std <= ``STD_EPS``) says nothing: its weight is its k^2 std^2, zero, at temperature k. A
    constant student row takes the teacher's temperature.
    """
    student_B1, teacher_B1 = config.scale * student["std"], config.scale * teacher["std"]
    weight_B1 = teacher_B1 * teacher_B1
    teacher_B1 = batch.xp.where(teacher["std"] > STD_EPS, teacher_B1, config.scale)
    student_B1 = batch.xp.where(student["std"] > STD_EPS, student_B1, teacher_B1)
    return Temperatures(student_B1, teacher_B1, weight_B1, lambda: neither_constant(student, teacher, batch.xp))
