"""Divergences and distances between the softmaxes of two networks, with their derivatives in closed form.

In log space (``log_softmax.py``): never negative, and finite, value and gradient, for finite input.

Shapes: B batch, C classes; x_BC tempered logits.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.objective.log_softmax import AutogradContext, left_out, masked_log_softmax


def divergence(log_p: Tensor, log_q: Tensor, weight_C: Tensor | None = None) -> Tensor:
    """KL(p || q) over the last dimension, as the sum of p log(p/q) - p + q. Differentiable in both, once.

    No class is ever negative, so neither is a sum, weighted or not; and a small divergence keeps its
    digits, where sum p log(p/q) loses them to cancellation. Finite for finite logarithms.

    Args:
        log_p: log-probabilities [..., C].
        log_q: likewise.
        weight_C: of each class, >= 0; None is 1.
    """
    values: Tensor = _Divergence.apply(log_p, log_q, weight_C)
    return values


class _Divergence(torch.autograd.Function):
    """``divergence``: the derivatives are p (e^gap - 1) by log q and -p gap by log p, gap = log q - log p."""

    @staticmethod
    def forward(ctx: AutogradContext, log_p: Tensor, log_q: Tensor, weight_C: Tensor | None) -> Tensor:
        p, gap, excess = _parts(log_p, log_q)
        if weight_C is not None:
            p = p * weight_C
        ctx.save_for_backward(p, gap, excess)
        return (excess - gap).mul_(p).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        p, gap, excess = ctx.saved_tensors
        given = gradient.unsqueeze(-1)
        return (
            -given * (p * gap) if ctx.needs_input_grad[0] else None,
            p * excess * given if ctx.needs_input_grad[1] else None,
            None,
        )


def _parts(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, gap = log q - log p, and e^gap - 1."""
    # Where q > e^40 p, e^gap could overflow. A p of e^-40 q gives q - p there as well, which is q, and so would any
    # smaller p.
    base = torch.maximum(log_p, log_q - 40.0)
    gap = log_q - base
    return base.exp_(), gap, gap.expm1()


def masked_divergence(x_t_BC: Tensor, x_s_BC: Tensor, drop_BC: Tensor) -> Tensor:
    """KL between both softmaxes without the dropped classes; 0 with zero gradient where none is left: [B]."""
    return divergence(masked_log_softmax(x_t_BC, drop_BC), masked_log_softmax(x_s_BC, drop_BC))


def split_divergence(
    x_t_BC: Tensor, y_t_B: Tensor, x_s_BC: Tensor, y_s_B: Tensor, drop_BC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Two divergences of one pair of rows: one class against the rest, and some of the rest among themselves.

    Args:
        x_t_BC: tempered logits of the teacher.
        y_t_B: the class that is split off on the teacher's side.
        x_s_BC: the student's.
        y_s_B: the class on the student's side.
        drop_BC: what the second leaves out, both classes y at least; None where they are one class and all there is to
            leave out.

    Returns:
        KL([p_y, 1 - p_y] || [q_y, 1 - q_y]) and KL between both softmaxes without the dropped classes: [B] each,
        differentiable in both networks' rows, once. The second is 0 with zero gradient where none is left.
    """
    binary_B, among_B = _SplitDivergence.apply(x_t_BC, y_t_B, x_s_BC, y_s_B, drop_BC)
    return binary_B, among_B


class _SplitDivergence(torch.autograd.Function):
    """``split_divergence`` of both networks at once, in tensors of [2, ...], the teacher first.

    With u = log S_y - log(1 - S_y), du/dx is 1 at y and minus the softmax of the rest elsewhere, and the derivative of
    a binary divergence by u is that by its first logit: q_y - p_y for the student.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext, x_t_BC: Tensor, y_t_B: Tensor, x_s_BC: Tensor, y_s_B: Tensor, drop_BC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x_2BC, y_2B1 = torch.stack((x_t_BC, x_s_BC)), torch.stack((y_t_B, y_s_B)).unsqueeze(2)
        lowest = left_out(x_2BC)
        label_2B1 = x_2BC.gather(2, y_2B1)
        others_2BC = x_2BC.scatter(2, y_2B1, lowest)
        rest_2BC = others_2BC.log_softmax(dim=2)
        # The rest's logsumexp: by how much log-softmax has lowered the largest. 1 - S_y would lose its digits near 0.
        rest_2B1 = others_2BC.amax(dim=2, keepdim=True) - rest_2BC.amax(dim=2, keepdim=True)
        pair_2B2 = torch.cat((label_2B1, rest_2B1), dim=2).log_softmax(dim=2)
        among_2BC = rest_2BC if drop_BC is None else masked_log_softmax(x_2BC, drop_BC)
        # Side by side, for the steps that both divergences share.
        p, gap, excess = _parts(*torch.cat((pair_2B2, among_2BC), dim=2))
        values = (excess - gap).mul_(p)
        binary_B, among_B = values[:, :2].sum(dim=1), values[:, 2:].sum(dim=1)
        ctx.save_for_backward(p, gap, excess, rest_2BC, y_2B1, binary_B, among_B)
        return binary_B, among_B

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, for_binary_B: Tensor, for_among_B: Tensor) -> tuple[Tensor | None, ...]:
        p, gap, excess, rest_2BC, y_2B1, binary_B, among_B = ctx.saved_tensors
        for_binary_B1, for_among_B1 = for_binary_B.unsqueeze(1), for_among_B.unsqueeze(1)
        for_t_BC = for_s_BC = None
        if ctx.needs_input_grad[0]:
            first_B1 = -for_binary_B1 * p[:, :1] * (gap[:, :1] + binary_B.unsqueeze(1))
            among_BC = -for_among_B1 * p[:, 2:] * (gap[:, 2:] + among_B.unsqueeze(1))
            for_t_BC = _of_split(first_B1, among_BC, rest_2BC[0], y_2B1[0])
        if ctx.needs_input_grad[2]:
            apart = p * excess
            for_s_BC = _of_split(apart[:, :1] * for_binary_B1, apart[:, 2:] * for_among_B1, rest_2BC[1], y_2B1[1])
        return for_t_BC, None, for_s_BC, None, None


def _of_split(first_B1: Tensor, among_BC: Tensor, rest_BC: Tensor, y_B1: Tensor) -> Tensor:
    """Gradient by a row from those by its u and by the classes that are not dropped, which y is not among: [B, C]."""
    return torch.addcmul(among_BC, rest_BC.exp(), first_B1, value=-1.0).scatter_(1, y_B1, first_B1)


def gram_distance(p_RN: Tensor, q_RN: Tensor) -> Tensor:
    """||P'P - Q'Q||^2, Frobenius: []. Differentiable in both, once."""
    value: Tensor = _GramDistance.apply(p_RN, q_RN)
    return value


class _GramDistance(torch.autograd.Function):
    """``gram_distance``: the difference is symmetric, so its derivatives are 4 P (P'P - Q'Q) and the negative by Q."""

    @staticmethod
    def forward(ctx: AutogradContext, p_RN: Tensor, q_RN: Tensor) -> Tensor:
        apart_NN = p_RN.t() @ p_RN - q_RN.t() @ q_RN
        ctx.save_for_backward(p_RN, q_RN, apart_NN)
        return apart_NN.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p_RN, q_RN, apart_NN = ctx.saved_tensors
        slope_NN = apart_NN * (4.0 * gradient)
        return p_RN @ slope_NN if ctx.needs_input_grad[0] else None, -(q_RN @ slope_NN) if ctx.needs_input_grad[
            1
        ] else None
