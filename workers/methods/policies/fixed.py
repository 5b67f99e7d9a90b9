"""Fixed temperature (Hinton et al. 2015)."""

from typing import Literal

from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures
from workers.spec import Temperature


class Fixed(Policy):
    """One temperature for both networks and all samples."""

    title = "fixed temperature"
    formula = "T_s = T_t = T, W = T^2"
    paper = "Hinton et al. 2015, arXiv 1503.02531"
    reads_epoch = False

    kind: Literal["fixed"] = "fixed"
    temperature: Temperature = 4.0


def fixed(student: Statistics, teacher: Statistics, config: Fixed, batch: PolicyBatch) -> Temperatures:
    """T for everything, weight T^2 (Hinton et al. 2015)."""
    return Temperatures(config.temperature, config.temperature, config.temperature**2)
