"""Softmax, divergence and masking in log space: what the losses are written with.

No logarithm is taken of a sum of probabilities, and classes are left out exactly, where the authors of several methods
subtract 1000 or 1e9. Everything is finite, value and gradient, for finite input; float32 or float64.

Shapes: B batch, C classes; z_BC logits, tau_B1 temperatures, x_BC tempered logits.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable


def tempered(z_BC: Tensor, tau_B1: Tensor) -> Tensor:
    """(z - max z) / tau. Softmax ignores the shift, but rounding does not: large logits over a small tau would lose
    all their digits, so each row is moved to a maximum of 0 first. The shift carries no gradient, as it has none.
    Where classes have their own temperatures, tau_BC, softmax does not ignore it, and nothing is moved.
    """
    if tau_B1.shape[1] > 1:
        return z_BC / tau_B1
    return (z_BC - z_BC.detach().amax(dim=1, keepdim=True)) / tau_B1


def one_hot(y_B: Tensor, z_BC: Tensor) -> Tensor:
    """Boolean [B, C], true at y."""
    return torch.zeros_like(z_BC, dtype=torch.bool).scatter_(1, y_B.unsqueeze(1), True)


def pointwise(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """p log(p/q) - p + q of each class, whose sum is KL(p || q): [B, C]. Differentiable in both, once.

    No class is ever negative, so neither is a sum, weighted or not; and a small divergence keeps its
    digits, where sum p log(p/q) loses them to cancellation. Finite for finite logarithms.
    """
    values: Tensor = _Pointwise.apply(log_p_BC, log_q_BC)
    return values


class _Pointwise(torch.autograd.Function):
    """``pointwise``, whose derivatives are simpler than what would be differentiated."""

    @staticmethod
    def forward(ctx: FunctionCtx, log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
        p_BC, q_BC = log_p_BC.exp(), log_q_BC.exp()
        gap_BC = log_q_BC - log_p_BC
        near_BC = gap_BC.abs() < 0.5
        small_BC = torch.where(near_BC, gap_BC, 0.0)
        # q - p, by either network's probability: the one loses digits where they agree, the other may overflow.
        excess_BC = torch.where(near_BC, p_BC * small_BC.expm1(), q_BC - p_BC)
        moved_BC = p_BC * gap_BC
        ctx.save_for_backward(moved_BC, excess_BC)
        return torch.where(near_BC, p_BC * _exp_beyond_first_order(small_BC), excess_BC - moved_BC)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        # torch's annotations give both tuples one element.
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        needed: tuple[bool, ...] = ctx.needs_input_grad
        (moved_BC, excess_BC), (for_p, for_q) = saved, needed
        return -moved_BC * gradients[0] if for_p else None, excess_BC * gradients[0] if for_q else None


def _exp_beyond_first_order(x: Tensor) -> Tensor:
    """e^x - 1 - x for |x| < 1/2, to the last digits: Taylor's series, whose rest is below the dtype's epsilon."""
    highest = 15 if x.dtype == torch.float64 else 8
    tail = torch.ones_like(x)
    for power in range(highest, 2, -1):
        tail = 1.0 + x / power * tail
    return x * x / 2.0 * tail


def divergence(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """KL(p || q) per row, never negative, differentiable in both: [B]."""
    return pointwise(log_p_BC, log_q_BC).sum(dim=1)


def cross_entropy(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """-sum p log q per row: [B]."""
    return -(log_p_BC.exp() * log_q_BC).sum(dim=1)


def binary_divergence(x_t_BC: Tensor, in_t_BC: Tensor, x_s_BC: Tensor, in_s_BC: Tensor) -> Tensor:
    """KL([p_in, p_out] || [q_in, q_out]) per row, each side split by its own mask (true for one class): [B]."""
    p = _in_and_out(x_t_BC, in_t_BC)
    q = _in_and_out(x_s_BC, in_s_BC)
    return divergence(p, q)


def _in_and_out(x_BC: Tensor, in_BC: Tensor) -> Tensor:
    """log [S(x)_in, 1 - S(x)_in]: [B, 2]. The second is a logsumexp of the others, never log(1 - S)."""
    log_p_BC = x_BC.log_softmax(dim=1)
    within_B = log_p_BC.masked_fill(~in_BC, -torch.inf).logsumexp(dim=1)
    without_B = log_p_BC.masked_fill(in_BC, -torch.inf).logsumexp(dim=1)
    return torch.stack((within_B, without_B), dim=1)


def masked_log_softmax(x_BC: Tensor, keep_BC: Tensor) -> Tensor:
    """log-softmax over the kept classes alone: [B, C]; elsewhere low enough for a probability of exactly 0.

    And so far from overflow (2e19 in float32) that 0 times it, under any weight, is 0. A row with nothing kept is
    uniform.
    """
    left_out = -math.sqrt(torch.finfo(x_BC.dtype).max)
    return x_BC.masked_fill(~keep_BC, left_out).log_softmax(dim=1)


def masked_divergence(x_t_BC: Tensor, x_s_BC: Tensor, keep_BC: Tensor) -> Tensor:
    """KL between both softmaxes restricted to the kept classes; 0 with zero gradient where none is kept: [B]."""
    return divergence(masked_log_softmax(x_t_BC, keep_BC), masked_log_softmax(x_s_BC, keep_BC))
