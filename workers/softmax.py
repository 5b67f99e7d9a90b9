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
        # p (e^gap - 1 - gap). Where q > e^40 p, e^gap could overflow; there it is q, and would be for any smaller p.
        base_BC = torch.maximum(log_p_BC, log_q_BC - 40.0)
        gap_BC = log_q_BC - base_BC
        p_BC, excess_BC = base_BC.exp(), gap_BC.expm1()
        ctx.save_for_backward(p_BC, gap_BC, excess_BC)
        return p_BC * (excess_BC - gap_BC)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        # torch's annotations give both tuples one element.
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        needed: tuple[bool, ...] = ctx.needs_input_grad
        (p_BC, gap_BC, excess_BC), (for_p, for_q) = saved, needed
        flow_BC = gradients[0] * p_BC
        return -flow_BC * gap_BC if for_p else None, flow_BC * excess_BC if for_q else None


def divergence(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """KL(p || q) per row, never negative, differentiable in both: [B]."""
    return pointwise(log_p_BC, log_q_BC).sum(dim=1)


def cross_entropy(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """-sum p log q per row: [B]."""
    return -(log_p_BC.exp() * log_q_BC).sum(dim=1)


def binary_divergence(x_t_BC: Tensor, y_t_B: Tensor, x_s_BC: Tensor, y_s_B: Tensor) -> Tensor:
    """KL([p_y, 1 - p_y] || [q_y, 1 - q_y]) per row, each side split by its own class y: [B]."""
    return divergence(_one_and_rest(x_t_BC, y_t_B), _one_and_rest(x_s_BC, y_s_B))


def _one_and_rest(x_BC: Tensor, y_B: Tensor) -> Tensor:
    """log [S(x)_y, 1 - S(x)_y]: [B, 2]. The second is a logsumexp of the others, never log(1 - S)."""
    log_p_BC, y_B1 = x_BC.log_softmax(dim=1), y_B.unsqueeze(1)
    rest_B1 = log_p_BC.scatter(1, y_B1, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat((log_p_BC.gather(1, y_B1), rest_B1), dim=1)


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
