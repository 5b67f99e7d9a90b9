"""Summands of an objective and their weighted sum, in few kernels.

Shapes: B batch, 1 kept for broadcasting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.methods.policies.base import Policy, Temperatures
from workers.objective.log_softmax import Context


@dataclass(frozen=True)
class Summand:
    """``factor`` x the mean of ``weight`` x ``value``, [B] or []; the weight is a number, [B, 1] or []."""

    name: str
    factor: float
    value: Tensor
    weight: Tensor | float

    def weighted(self) -> Tensor:
        """``weight`` x ``value``, as ``value`` is."""
        weight = self.weight
        if isinstance(weight, Tensor) and weight.ndim:
            weight = weight.squeeze(1)
        return self.value * weight

    def reduced(self) -> tuple[float, Tensor]:
        """A number and a [] whose product is the mean."""
        share, value = 1.0 / self.value.numel(), self.value
        if isinstance(self.weight, Tensor) and self.weight.ndim:
            return share, torch.dot(self.weight.squeeze(1), value)
        value = value.sum() if value.ndim else value
        return (share, self.weight * value) if isinstance(self.weight, Tensor) else (share * self.weight, value)


@dataclass(frozen=True)
class TermResult:
    """One term of a method in a batch."""

    policy: Policy
    temperatures: Temperatures
    summands: list[Summand]
    shown: Temperatures
    varies: bool


class _FactorsContext(Context, Protocol):
    factors: Sequence[float]


def weighted_sum(factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of factor x value over [] values, in few kernels."""
    if len(values) < 3:
        return _add_up(factors, values)
    total: Tensor = _WeightedSum.apply(factors, *values)
    return total


def _add_up(factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    if len(values) > 3:
        return torch.stack(torch._foreach_mul(list(values), factors)).sum()
    total = values[0] if factors[0] == 1.0 else values[0] * factors[0]
    for factor, value in zip(factors[1:], values[1:], strict=True):
        total = torch.add(total, value, alpha=factor)
    return total


class _WeightedSum(torch.autograd.Function):
    """``weighted_sum`` whose derivatives are one kernel."""

    @staticmethod
    def forward(ctx: _FactorsContext, factors: Sequence[float], *values: Tensor) -> Tensor:
        ctx.factors = factors
        return _add_up(factors, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: _FactorsContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul([gradient] * len(ctx.factors), ctx.factors)
