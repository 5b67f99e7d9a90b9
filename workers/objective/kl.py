"""KL between softmaxes at temperatures (Hinton et al. 2015), of all terms of a method that want one, computed together.

The loss is a placeholder, ``SoftenedKl``: the objective collects those of a view and has them computed in the same few
steps. In log space (``log_softmax.py``): never negative, and finite, value and gradient, for finite input.

Shapes: B batch, C classes, K pairs of temperatures, N networks; x logits over a temperature.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.methods.losses import Kl
from workers.methods.policies.base import Temperatures
from workers.objective.log_softmax import AutogradContext
from workers.objective.results import LossPart, LossResult, SoftenedKl
from workers.objective.statistics import Logits


def kl(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Kl) -> LossResult:
    """KL(S(z_t/T_t) || S(z_s/T_s)) (Hinton et al. 2015)."""
    return LossResult({"kl": LossPart(1.0, SoftenedKl(temperatures), temperatures.weight)})


def compute_divergences(student: Logits, teacher: Logits, wanted: Sequence[SoftenedKl]) -> tuple[Tensor, ...]:
    """Compute the KL of each of these, [B] each: all of one student and teacher in the same few steps.

    Differentiable once, by the student's logits and by temperatures that are tensors, with derivatives in closed form;
    values are those of ``divergence``.
    """
    taus_s, taus_t = [one.temperatures.student for one in wanted], [one.temperatures.teacher for one in wanted]
    log_p_KBC = None
    if not any(isinstance(tau, Tensor) for tau in taus_t):
        # The same for every student of the batch that asks for them.
        known = [teacher.softened(tau) for tau in taus_t]
        log_p_KBC = torch.stack(known) if len(known) > 1 else known[0].unsqueeze(0)
    bases = [teacher.base_BC(tau) for tau in taus_t]
    values: tuple[Tensor, ...] = _Divergences.apply(student.log_softmax_BC, log_p_KBC, bases, *taus_s, *taus_t)
    return values


class _TemperaturesContext(AutogradContext, Protocol):
    numbers: list[float | None]


class _Divergences(torch.autograd.Function):
    """``compute_divergences`` of K pairs.

    With x = s / tau, dKL/ds = (q - p) / tau and dKL/dtau = -sum_c dKL/ds x; likewise of the teacher, whose dKL/dx is
    -p (gap - sum_c p gap): minus the derivative of softmax, applied to the gap.
    """

    @staticmethod
    def forward(
        ctx: _TemperaturesContext,
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
        # q - p - p gap of each class.
        values_KB = (excess_KBC - gap_KBC).mul_(p_KBC).sum(dim=2)
        ctx.numbers = [None if isinstance(tau, Tensor) else tau for tau in taus]
        tensors = [tau for tau in taus if isinstance(tau, Tensor)]
        ctx.save_for_backward(p_KBC, gap_KBC, excess_KBC, x_NKBC, *tensors)
        return values_KB.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: _TemperaturesContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
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
