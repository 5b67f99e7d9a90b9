"""Logit standardisation as a temperature (Sun et al. 2024)."""

from collections.abc import Hashable
from typing import Annotated, Literal

from pydantic import Field

from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures, neither_constant
from workers.spec import Temperature


class Standardize(Policy):
    """Logit standardisation. Softmax ignores shifts, so a z-score is a temperature and the mean plays no part."""

    title = "standardised logits"
    formula = "T_t = T (std(z_t) + eps), T_s = T (std(z_s) + eps), W = T^2"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    domain = "rows that are not constant (std > 1e-7); at the others eps is the scale, and the softmax uniform"
    reads_epoch = False
    statistics = ("std",)
    student_statistics = ("std",)

    kind: Literal["standardize"] = "standardize"
    temperature: Temperature = 2.0
    eps: Annotated[float, Field(strict=True, ge=1e-12, le=1.0, allow_inf_nan=False)] = 1e-7

    @property
    def domain_key(self) -> Hashable:
        return "neither constant"

    @property
    def z_scores(self) -> bool:
        return True


def standardize(student: Statistics, teacher: Statistics, config: Standardize, batch: PolicyBatch) -> Temperatures:
    """Z-scores at temperature T, weight T^2; std(z_s) carries gradient (Sun et al. 2024).

    Defined everywhere: a constant row has temperature T eps and stays uniform. The gradient of a constant student row
    is about 1/eps, as in the authors' code.
    """
    return Temperatures(
        config.temperature * (student["std"] + config.eps),
        config.temperature * (teacher["std"] + config.eps),
        config.temperature**2,
        inside=lambda: neither_constant(student, teacher, batch.xp),
        paper=config.temperature,
    )
