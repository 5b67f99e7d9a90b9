"""Result of a distillation loss: weighted values, and placeholders of values that are computed together.

Shapes: B batch, 1 kept for broadcasting.
"""

from dataclasses import dataclass

from torch import Tensor

from workers.methods.policies.base import Temperatures


@dataclass(frozen=True)
class SoftenedKl:
    """Placeholder of KL(S(z_t/T_t) || S(z_s/T_s)), [B]: those of all terms of one view are computed together."""

    temperatures: Temperatures


@dataclass(frozen=True)
class LossPart:
    """A summand: ``coefficient`` x the batch mean of ``weight`` x ``value``.

    Attributes:
        coefficient: which metrics do not show.
        value: [B] or [].
        weight: the policy's where it counts, and whatever else metrics show: a number, [B, 1] or [].
    """

    coefficient: float
    value: Tensor | SoftenedKl
    weight: Tensor | float = 1.0


@dataclass(frozen=True)
class LossResult:
    """Result of a loss: its parts, and its own temperatures if it has set them.

    Attributes:
        parts: by the names of the config's ``parts``, in their order.
        temperatures: the loss's own, for the metrics; None if it used the policy's.
    """

    parts: dict[str, LossPart]
    temperatures: Temperatures | None = None
