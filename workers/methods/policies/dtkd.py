"""Dynamic temperatures of DTKD (Wei & Bai 2024)."""

from typing import Literal

from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures
from workers.spec import Temperature

MAX_RATIO = 100.0
"""DTKD's domain: the two maxima have one sign and differ by at most this factor."""


class Dtkd(Policy):
    """Dynamic temperatures that make both networks equally sharp: 2T is shared in proportion to their sharpness.

    ``max`` is what the released code and the paper's result use, the signed maximum logit; ``sharpness`` is the
    paper's definition of the word, the logsumexp, from which the maximum is derived. The formula is used where both
    networks' values have one sign and differ by a factor of at most 100; beyond, one temperature and with it the loss
    would be negative or the gradient unbounded, and the sample takes the base temperature for both networks.
    """

    title = "dynamic temperature"
    formula = "x, y = max (or logsumexp) of z_t, z_s; T_t = 2x/(x+y) T, T_s = 2y/(x+y) T, W = T_t T_s"
    paper = "Wei & Bai 2024, arXiv 2404.12711"
    domain = "maxima (or logsumexps) of one sign, within a factor of 100; the others take T for both networks"
    reads_epoch = False
    statistics = ("max", "sharpness")
    student_statistics = ("max", "sharpness")

    kind: Literal["dtkd"] = "dtkd"
    temperature: Temperature = 4.0
    statistic: Literal["max", "sharpness"] = "max"

    @property
    def reads_level(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.statistic,)

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return self.reads


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
    student_B1 = 2.0 * config.temperature - teacher_B1
    shared = Temperatures(student_B1, teacher_B1, student_B1 * teacher_B1, lambda: inside_B1)
    return batch.with_slope(shared, y_B1, -slope_B1)
