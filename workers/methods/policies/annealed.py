"""Annealed teacher (Jafari et al. 2021)."""

from typing import Literal

from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures
from workers.spec import Count


class Annealed(Policy):
    """The teacher's logits fade in: at step t of n they count t/n, a new step every ``epochs_per_step`` epochs."""

    title = "annealed teacher"
    formula = "t = min(1 + (epoch-1) // epochs_per_step, n); T_t = n/t, T_s = 1, W = 1"
    paper = "Jafari et al. 2021, arXiv 2104.07163"

    kind: Literal["annealed"] = "annealed"
    steps: Count = 10
    epochs_per_step: Count = 1


def annealed(student: Statistics, teacher: Statistics, config: Annealed, batch: PolicyBatch) -> Temperatures:
    """Teacher n/t at step t of n, student 1, weight 1 (Jafari et al. 2021)."""
    step = min(1 + (batch.epoch - 1) // config.epochs_per_step, config.steps)
    return Temperatures(1.0, config.steps / step, 1.0)
