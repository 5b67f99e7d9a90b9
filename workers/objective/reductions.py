"""Maximum, minimum and standard deviation of logits, row by row, with the derivatives that the methods mean.

Shapes: B batch, C classes, 1 kept for broadcasting; z_BC logits.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.objective.log_softmax import AutogradContext


def maximum(z_BC: Tensor) -> Tensor:
    """The largest of each row, [B, 1]; of equal ones, the first has the gradient. Differentiable once."""
    if not z_BC.requires_grad:
        return z_BC.amax(dim=1, keepdim=True)
    largest_B1: Tensor = _Extreme.apply(z_BC, torch.max)
    return largest_B1


def minimum(z_BC: Tensor) -> Tensor:
    """The smallest of each row, [B, 1], as ``maximum``."""
    if not z_BC.requires_grad:
        return z_BC.amin(dim=1, keepdim=True)
    smallest_B1: Tensor = _Extreme.apply(z_BC, torch.min)
    return smallest_B1


class _Extreme(torch.autograd.Function):
    """``maximum`` and ``minimum``: the gradient goes to one place, as of torch's ``max(dim)``, where ``amax`` spreads
    it over equal ones, of which logits that were computed in bfloat16 have many.
    """

    @staticmethod
    def forward(ctx: AutogradContext, z_BC: Tensor, find: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        extreme_B1, places_B1 = find(z_BC, dim=1, keepdim=True)
        ctx.save_for_backward(z_BC, places_B1)
        return extreme_B1

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, None]:
        z_BC, places_B1 = ctx.saved_tensors
        return torch.zeros_like(z_BC).scatter_(1, places_B1, gradient), None


def standard_deviation(z_BC: Tensor) -> Tensor:
    """Unbiased standard deviation of each row, [B, 1]; a constant row has zero gradient. Differentiable once."""
    std_B1: Tensor = _StandardDeviation.apply(z_BC)
    return std_B1


class _StandardDeviation(torch.autograd.Function):
    """dstd/dz = (z - mean) / ((C - 1) std)."""

    @staticmethod
    def forward(ctx: AutogradContext, z_BC: Tensor) -> Tensor:
        if z_BC.is_cuda:
            std_B1, mean_B1 = torch.std_mean(z_BC, dim=1, keepdim=True)
        else:
            # One kernel there, and a tenth of its time here. Less its first value, a constant row is exactly 0.
            z_BC = z_BC - z_BC[:, :1]
            mean_B1 = z_BC.mean(dim=1, keepdim=True)
            norm_B1 = torch.linalg.vector_norm(z_BC - mean_B1, dim=1, keepdim=True)
            std_B1 = norm_B1 / math.sqrt(z_BC.shape[1] - 1)
        ctx.save_for_backward(z_BC, std_B1, mean_B1)
        return std_B1

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> Tensor:
        z_BC, std_B1, mean_B1 = ctx.saved_tensors
        divisor_B1 = std_B1 * (z_BC.shape[1] - 1)
        return (z_BC - mean_B1) * (gradient / divisor_B1.masked_fill_(std_B1 == 0, torch.inf))
