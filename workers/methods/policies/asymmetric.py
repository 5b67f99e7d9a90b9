"""Asymmetric temperatures (Li et al. 2022)."""

from typing import Literal

from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures
from workers.spec import Temperature


class Asymmetric(Policy):
    """A temperature for each network, and on the teacher's side one of its own for the label's class.

    ``label_temperature`` None gives the label's class the teacher's temperature too.
    """

    title = "asymmetric temperatures"
    formula = "T_s = student; T_t = label_temperature for c = y, teacher otherwise; W = T_s^2"
    paper = "Li et al. NeurIPS 2022, arXiv 2210.04427"
    reads_epoch = False

    kind: Literal["asymmetric"] = "asymmetric"
    student: Temperature = 1.0
    teacher: Temperature = 3.0
    label_temperature: Temperature | None = None

    @property
    def gives_label_its_own(self) -> bool:
        return self.label_temperature is not None


def asymmetric(student: Statistics, teacher: Statistics, config: Asymmetric, batch: PolicyBatch) -> Temperatures:
    """One temperature each, and the label's class its own on the teacher's side; weight T_s^2 (Li et al. 2022)."""
    teacher_tau = config.teacher
    if config.label_temperature is not None:
        label_B1, other_B1 = batch.full(config.label_temperature), batch.full(config.teacher)
        teacher_tau = batch.xp.where(batch.is_label(), label_B1, other_B1)
    return Temperatures(config.student, teacher_tau, config.student**2)
