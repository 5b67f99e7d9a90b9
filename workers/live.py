"""What temperature policies are given while a student trains: statistics of logits at hand, on tensors.

Shapes: B batch, C classes, 1 kept for broadcasting; z_BC logits.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from workers.policy_configs import Learned
from workers.softmax import one_hot

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda z_BC: z_BC.amax(dim=1, keepdim=True),
    "min": lambda z_BC: z_BC.amin(dim=1, keepdim=True),
    "mean": lambda z_BC: z_BC.mean(dim=1, keepdim=True),
    # Unbiased, as in every released code, although one paper divides by C.
    "std": lambda z_BC: z_BC.std(dim=1, keepdim=True),
    "sharpness": lambda z_BC: z_BC.logsumexp(dim=1, keepdim=True),
}


class LiveStatistics(Mapping[str, Tensor]):
    """Statistics of logits at hand, [B, 1] each, computed when first asked for and differentiable.

    Args:
        z_BC: logits, float32 or float64, C >= 2.
    """

    def __init__(self, z_BC: Tensor) -> None:
        self._z_BC = z_BC
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            self._known[name] = FORMULAS[name](self._z_BC)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FORMULAS)

    def __len__(self) -> int:
        return len(FORMULAS)


class Known:
    """Values derived from one batch's teacher, kept for the next student that trains on the same batch."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The value of ``key``; computed by whoever asks first. It must not depend on a student."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]


def row_statistics(z_BC: Tensor) -> dict[str, Tensor]:
    """What a cache holds per row, for a teacher that is run live: name -> [B], in z_BC's dtype (at least float32)."""
    z_BC = z_BC.detach().to(torch.promote_types(z_BC.dtype, torch.float32))
    return {name: value_B1.squeeze(1) for name, value_B1 in LiveStatistics(z_BC).items()}


@dataclass(frozen=True)
class LiveBatch:
    """``temperature.Batch`` of student logits z_BC with labels y_B, int64, at an epoch counted from 1.

    Attributes:
        parameter: the term's learned theta, [], if its policy has one.
    """

    z_BC: Tensor
    y_B: Tensor
    epoch: int
    epochs: int | None
    parameter: Tensor | None

    @property
    def xp(self) -> ModuleType:
        return torch

    @property
    def classes(self) -> int:
        return self.z_BC.shape[1]

    def full(self, value: float) -> Tensor:
        return self.z_BC.new_full((self.z_BC.shape[0], 1), value)

    def is_label(self) -> Tensor:
        return one_hot(self.y_B, self.z_BC)

    def detached(self, values: Tensor) -> Tensor:
        return values.detach()

    def theta(self, config: Learned, gradient_scale: float) -> Tensor:
        assert self.parameter is not None
        parameter = self.parameter.to(self.z_BC.dtype)
        # The value is the parameter's to the last bit, for what is added is zero.
        constant = parameter.detach()
        return constant + gradient_scale * (parameter - constant)
