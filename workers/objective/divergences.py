"""Divergences and distances between the softmaxes of two networks, with their derivatives in closed form.

In log space (``log_softmax.py``): never negative, and finite, value and gradient, for finite input.

Shapes: B batch, C classes, K pairs of temperatures; x_BC tempered logits.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.objective.log_softmax import Context, left_out, masked_log_softmax


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
    def forward(ctx: Context, log_p: Tensor, log_q: Tensor, weight_C: Tensor | None) -> Tensor:
        p, gap, excess = _parts(log_p, log_q)
        if weight_C is not None:
            p = p * weight_C
        ctx.save_for_backward(p, gap, excess)
        return _total(p, gap, excess)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
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


def _total(p: Tensor, gap: Tensor, excess: Tensor) -> Tensor:
    """Sum of q - p - p gap."""
    return (excess - gap).mul_(p).sum(dim=-1)


def softened_divergences(
    teacher: Sequence[tuple[Tensor, Tensor | float]],
    log_s_BC: Tensor,
    taus: Sequence[Tensor | float],
    log_p_KBC: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """KL(S(t / tau_t) || S(s / tau_s)) of each row at K pairs of temperatures: K of [B], as ``divergence`` has them.

    All in the same few steps, and with the derivatives by s and by the temperatures in closed form. Never negative;
    differentiable once. A temperature is a number or [B, 1]; the teacher's may be a constant [B, C].

    Args:
        teacher: t and its temperature, K times; t is the log-softmax of logits, which keeps more digits, or [B, C]
            logits.
        log_s_BC: log-softmax of the student's logits.
        taus: the student's temperatures.
        log_p_KBC: log S(t / tau_t), where they are numbers and somebody has it.
    """
    bases, taus_t = zip(*teacher, strict=True)
    values: tuple[Tensor, ...] = _SoftenedDivergences.apply(log_s_BC, log_p_KBC, bases, *taus, *taus_t)
    return values


class _SoftenedContext(Context, Protocol):
    numbers: list[float | None]


class _SoftenedDivergences(torch.autograd.Function):
    """``softened_divergences``: with x = s / tau, dKL/ds = (q - p) / tau and dKL/dtau = -sum_c dKL/ds x; likewise of
    the teacher, whose dKL/dx is -p (gap - sum_c p gap): minus the derivative of softmax, applied to the gap.
    """

    @staticmethod
    def forward(
        ctx: _SoftenedContext,
        log_s_BC: Tensor,
        log_p_KBC: Tensor | None,
        bases: Sequence[Tensor],
        *taus: Tensor | float,
    ) -> tuple[Tensor, ...]:
        count = len(bases)
        # The student's last; the teacher's before, unless its softmax is known.
        if log_p_KBC is None:
            x_NKBC = _quotients([*bases, *(log_s_BC,) * count], [*taus[count:], *taus[:count]], 2)
        else:
            x_NKBC = _quotients((log_s_BC,) * count, taus[:count], 1)
        logs_NKBC = x_NKBC.log_softmax(dim=3)
        # e^gap would overflow where p is nothing beside q: p is taken to be e^-80 at least, which changes no digit.
        base_KBC = (logs_NKBC[0] if log_p_KBC is None else log_p_KBC).clamp(min=-80.0)
        gap_KBC = logs_NKBC[-1] - base_KBC
        p_KBC, excess_KBC = base_KBC.exp_(), gap_KBC.expm1()
        values_KB = _total(p_KBC, gap_KBC, excess_KBC)
        ctx.numbers = [None if isinstance(tau, Tensor) else tau for tau in taus]
        tensors = [tau for tau in taus if isinstance(tau, Tensor)]
        ctx.save_for_backward(p_KBC, gap_KBC, excess_KBC, x_NKBC, *tensors)
        return values_KB.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: _SoftenedContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        p_KBC, gap_KBC, excess_KBC, x_NKBC, *tensors = ctx.saved_tensors
        remaining = iter(tensors)
        taus = [next(remaining) if number is None else number for number in ctx.numbers]
        count, needed = len(gradients), ctx.needs_input_grad[3:]
        by_taus: list[Tensor | None] = [None] * (2 * count)
        by_z_NKBC = torch.empty_like(x_NKBC) if any(needed[count:]) else None
        by_x_KBC = torch.mul(p_KBC, excess_KBC, out=None if by_z_NKBC is None else by_z_NKBC[1])
        by_s_BC: Tensor | None = None
        for k, gradient_B in enumerate(gradients):
            given_B1 = gradient_B.unsqueeze(1)
            scale_B1, by_x_BC = given_B1 / taus[k], by_x_KBC[k]
            if not (needed[k] or needed[count + k]):
                by_s_BC = by_x_BC.mul_(scale_B1) if by_s_BC is None else by_s_BC.addcmul_(by_x_BC, scale_B1)
                continue
            by_x_BC.mul_(scale_B1)
            if by_z_NKBC is not None and needed[count + k]:
                minus_by_x_BC = torch._softmax_backward_data(gap_KBC[k], p_KBC[k], 1, p_KBC.dtype)
                torch.mul(minus_by_x_BC, given_B1 / taus[count + k], out=by_z_NKBC[0, k])
                by_taus[count + k], by_tau_B1 = (by_z_NKBC[:, k] * x_NKBC[:, k]).sum(dim=2, keepdim=True)
            else:
                by_tau_B1 = (by_x_BC * x_NKBC[-1, k]).sum(dim=1, keepdim=True)
            by_taus[k] = -by_tau_B1 if needed[k] else None
            by_s_BC = by_x_BC if by_s_BC is None else by_s_BC.add_(by_x_BC)
        return by_s_BC, None, None, *by_taus


def _quotients(z: Sequence[Tensor], taus: Sequence[Tensor | float], networks: int) -> Tensor:
    """Each z [B, C] over its tau: [N, K, B, C]."""
    shape_NKBC = (networks, len(z) // networks, *z[0].shape)
    if len(z) == 1:
        return (z[0] / taus[0]).view(shape_NKBC)
    x_NKBC = z[0].new_empty(shape_NKBC)
    for x_BC, z_BC, tau in zip(x_NKBC.flatten(0, 1).unbind(), z, taus, strict=True):
        torch.div(z_BC, tau, out=x_BC)
    return x_NKBC


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
        ctx: Context, x_t_BC: Tensor, y_t_B: Tensor, x_s_BC: Tensor, y_s_B: Tensor, drop_BC: Tensor | None
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
    def backward(ctx: Context, for_binary_B: Tensor, for_among_B: Tensor) -> tuple[Tensor | None, ...]:
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
    def forward(ctx: Context, p_RN: Tensor, q_RN: Tensor) -> Tensor:
        apart_NN = p_RN.t() @ p_RN - q_RN.t() @ q_RN
        ctx.save_for_backward(p_RN, q_RN, apart_NN)
        return apart_NN.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p_RN, q_RN, apart_NN = ctx.saved_tensors
        slope_NN = apart_NN * (4.0 * gradient)
        return p_RN @ slope_NN if ctx.needs_input_grad[0] else None, -(q_RN @ slope_NN) if ctx.needs_input_grad[
            1
        ] else None
