"""Ranks and rank correlations of many rows at once, differentiable where asked for.

Hard ranks have no gradient; a *soft* rank replaces each comparison by a sigmoid. That costs N^2 comparisons per row
of N values, so both passes work through the rows in pieces of bounded memory and keep none of the comparisons.

Shapes: R rows, N values per row.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.objective.log_softmax import AutogradContext

PIECE_ELEMENTS = 1 << 24
"""Comparisons held at once: 64 MiB in float32."""


def average_ranks(x_RN: Tensor) -> Tensor:
    """Ranks 1..N along each row, ties sharing their mean, as a float tensor [R, N] without gradient."""
    x_RN = x_RN.detach().contiguous()
    ordered_RN = x_RN.sort(dim=1).values
    below_RN = torch.searchsorted(ordered_RN, x_RN, right=False)
    up_to_RN = torch.searchsorted(ordered_RN, x_RN, right=True)
    return (below_RN + up_to_RN + 1).to(x_RN.dtype) / 2


def soft_ranks(x_RN: Tensor, width: float) -> Tensor:
    """r_i = 1/2 + sum_j sigmoid((x_i - x_j) / e), e = ``width`` standard deviations of the row (detached): [R, N].

    A constant row ranks all its values equal, with zero gradient.
    """
    width_R1 = width * x_RN.detach().std(dim=1, keepdim=True)
    ranks: Tensor = _SoftRanks.apply(x_RN, width_R1)
    return ranks


def correlation(a_RN: Tensor, b_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation of each row of a with the same row of b.

    Returns:
        rho [R], 0 where a row is constant, and a mask [R] of the rows where neither is; the gradient is zero outside.
    """
    a_RN = a_RN - a_RN.mean(dim=1, keepdim=True)
    b_RN = b_RN - b_RN.mean(dim=1, keepdim=True)
    square_R = a_RN.square().sum(dim=1) * b_RN.square().sum(dim=1)
    # Ranks differ by at least 1/2 where they differ at all; a constant row leaves rounding only.
    defined_R = square_R > 1e-6
    rho_R = (a_RN * b_RN).sum(dim=1) / torch.where(defined_R, square_R, 1.0).sqrt()
    return torch.where(defined_R, rho_R, 0.0), defined_R


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along one of two dimensions, with 1e-8 added to the denominator; what is constant has 0,
    with zero gradient. Differentiable in both, once.
    """
    rho: Tensor = _Pearson.apply(a, b, dim)
    return rho


def spearman(a_RN: Tensor, b_RN: Tensor) -> Tensor:
    """Spearman's rank correlation of each row, ties averaged, 0 where a row is constant: [R], no gradient."""
    return correlation(average_ranks(a_RN), average_ranks(b_RN))[0]


class _AlongContext(AutogradContext, Protocol):
    dim: int


class _Pearson(torch.autograd.Function):
    """``pearson``: of centred a and b with norms A and B and D = A B + 1e-8, drho/db = (a - rho (A/B) b) / D."""

    @staticmethod
    def forward(ctx: _AlongContext, a: Tensor, b: Tensor, dim: int) -> Tensor:
        a, b = a - a.mean(dim=dim, keepdim=True), b - b.mean(dim=dim, keepdim=True)
        norm_a, norm_b = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (a, b))
        denominator = norm_a * norm_b + 1e-8
        rho: Tensor = (a * b).sum(dim=dim, keepdim=True) / denominator
        ctx.save_for_backward(a, b, norm_a, norm_b, denominator, rho)
        ctx.dim = dim
        return rho.squeeze(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: _AlongContext, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b, norm_a, norm_b, denominator, rho = ctx.saved_tensors
        scale = gradient.unsqueeze(ctx.dim) / denominator

        def by(x: Tensor, norm_x: Tensor, other: Tensor, norm_other: Tensor) -> Tensor:
            # Where x is constant, x is 0, and so is the second term.
            ratio = rho * norm_other / norm_x.masked_fill(norm_x == 0, torch.inf)
            return (other - ratio * x) * scale

        for_a, for_b = ctx.needs_input_grad[:2]
        return by(a, norm_a, b, norm_b) if for_a else None, by(b, norm_b, a, norm_a) if for_b else None, None


class _SoftRanks(torch.autograd.Function):
    """``soft_ranks`` without keeping [R, N, N]: the backward pass compares again."""

    @staticmethod
    def forward(ctx: AutogradContext, x_RN: Tensor, width_R1: Tensor) -> Tensor:
        width_R1 = torch.where(width_R1 > 0, width_R1, 1.0)
        ctx.save_for_backward(x_RN, width_R1)
        pieces = [_comparisons(x, e).sum(dim=2) + 0.5 for x, e in _pieces(x_RN, width_R1)]
        return torch.cat(pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, grad_RN: Tensor) -> tuple[Tensor, None]:
        # With s = sigmoid'((x_k - x_j)/e)/e, symmetric in k and j: dL/dx_k = sum_j s_kj (g_k - g_j).
        x_RN, width_R1 = ctx.saved_tensors
        pieces = []
        for x, e, g in _pieces(x_RN, width_R1, grad_RN):
            s_rNN = _comparisons(x, e)
            s_rNN = s_rNN * (1.0 - s_rNN) / e.unsqueeze(2)
            pieces.append(g * s_rNN.sum(dim=2) - torch.einsum("rkj,rj->rk", s_rNN, g))
        return torch.cat(pieces), None


def _pieces(*rows: Tensor) -> "zip[tuple[Tensor, ...]]":
    """The same rows of several tensors, as many at once as ``PIECE_ELEMENTS`` allows."""
    count = max(1, PIECE_ELEMENTS // max(1, rows[0].shape[1] ** 2))
    return zip(*(torch.split(tensor, count) for tensor in rows), strict=True)


def _comparisons(x_rN: Tensor, width_r1: Tensor) -> Tensor:
    """sigmoid((x_i - x_j) / e): [r, N, N]."""
    return torch.sigmoid((x_rN.unsqueeze(2) - x_rN.unsqueeze(1)) / width_r1.unsqueeze(2))
