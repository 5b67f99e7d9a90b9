"""Log-softmax, temperatures and masking in log space: what the losses are written with.

No logarithm is taken of a sum of probabilities, and classes are left out exactly, where the authors of several methods
subtract 1000 or 1e9. Everything is finite, value and gradient, for finite input; float32 or float64.

Where autograd would take many small steps, here and in ``divergences.py`` and ``reductions.py``, a function of its own
has the derivative in closed form: on a GPU each step is a kernel that costs its launch, whatever it computes.

Shapes: B batch, C classes; z_BC logits, tau_B1 temperatures, x_BC tempered logits.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class AutogradContext(Protocol):
    """The part of autograd's context that functions with a derivative of their own use here."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def tempered(log_p_BC: Tensor, tau: Tensor | float) -> Tensor:
    """log S(z) / tau: logits at a temperature, up to a shift per row, which softmax ignores.

    Rounding does not ignore it: large logits over a small tau would lose all their digits, and a log-softmax is what
    has its maximum near 0. Differentiable in both, once in a tau of [B, 1].
    """
    if not isinstance(tau, Tensor):
        return log_p_BC if tau == 1.0 else log_p_BC / tau
    if tau.requires_grad and tau.shape == (log_p_BC.shape[0], 1):
        quotient_BC: Tensor = _Tempered.apply(log_p_BC, tau)
        return quotient_BC
    return log_p_BC / tau


class _Tempered(torch.autograd.Function):
    """x = z / tau, with dL/dtau = -sum_c dL/dz x."""

    @staticmethod
    def forward(ctx: AutogradContext, z_BC: Tensor, tau_B1: Tensor) -> Tensor:
        x_BC = z_BC / tau_B1
        ctx.save_for_backward(x_BC, tau_B1)
        return x_BC

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x_BC, tau_B1 = ctx.saved_tensors
        for_z_BC = gradient / tau_B1
        return for_z_BC, -(for_z_BC * x_BC).sum(dim=1, keepdim=True)


def one_hot(y_B: Tensor, z_BC: Tensor) -> Tensor:
    """Boolean [B, C], true at y."""
    return torch.zeros_like(z_BC, dtype=torch.bool).scatter_(1, y_B.unsqueeze(1), True)


def cross_entropy(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """-sum p log q per row: [B]."""
    return -(log_p_BC.exp() * log_q_BC).sum(dim=1)


def masked_log_softmax(x: Tensor, drop: Tensor) -> Tensor:
    """log-softmax without the dropped classes: [..., C]; there low enough for a probability of exactly 0.

    And so far from overflow (2e19 in float32) that 0 times it, under any weight, is 0. A row of which all is dropped is
    uniform.
    """
    return x.masked_fill(drop, left_out(x)).log_softmax(dim=-1)


def left_out(x: Tensor) -> float:
    return -math.sqrt(torch.finfo(x.dtype).max)
