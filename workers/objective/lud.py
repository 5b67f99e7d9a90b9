"""Logits uncertainty distillation, LUD: a reading of the abstract, not verified against the authors' code.

Shapes: B batch, C classes, R rows of N values.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workers.methods.losses import Lud
from workers.methods.policies.base import Temperatures
from workers.objective.divergences import divergence
from workers.objective.rank_correlation import average_ranks, correlation, soft_ranks, spearman
from workers.objective.results import LossPart, LossResult
from workers.objective.statistics import Logits


def lud(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Lud) -> LossResult:
    """A reading of LUD's abstract, not verified against the authors' code (Guo et al. 2024).

    The policy's temperature measures the teacher's confidence; the divergence is taken at the loss's own T_n.
    """
    p_BC = teacher.softened(temperatures.teacher).exp()
    z_s_BC, z_t_BC = student.raw_BC, teacher.raw_BC
    agreement_B = spearman(z_t_BC, z_s_BC).clamp(min=0.0)
    span = config.temperature_max - config.temperature_min
    tau_B1 = (config.temperature_min - span * torch.expm1(-agreement_B)).unsqueeze(1)
    own = Temperatures(tau_B1, tau_B1, tau_B1.square() if config.scale == "tau_squared" else 1.0)

    if config.confidence == "cache":
        _, confident = config.cache_statistics
        places_K = teacher.cache_statistics[confident]
        weight_C = p_BC.new_full((p_BC.shape[1],), config.discount).index_fill_(0, places_K, 1.0)
        classes = _Rows(places_K, None)
    else:
        mass_C = p_BC.mean(dim=0)
        confident_C = mass_C > _just_above_median(mass_C.sort().values)
        weight_C = torch.where(confident_C, 1.0, config.discount).to(p_BC.dtype)
        classes = _above_median(mass_C)
    samples = _above_median(p_BC.amax(dim=1))
    kl_B = divergence(teacher.softened(tau_B1), student.softened(tau_B1), weight_C)
    return LossResult(
        {
            "kl": LossPart(config.beta, kl_B, own.weight),
            "class_rank": LossPart(
                config.class_weight, _rank_disagreement(z_t_BC.t(), z_s_BC.t(), classes, config.soft_rank_width)
            ),
            "sample_rank": LossPart(
                config.sample_weight, _rank_disagreement(z_t_BC, z_s_BC, samples, config.soft_rank_width)
            ),
        },
        own,
    )


def _just_above_median(ordered_N: Tensor) -> Tensor:
    """Beyond which a probability is greater than the median of all: []. Within a millionth they are equal: where the
    exact values tie (as peaks do for two classes at a standardised temperature), rounding must not pick the samples.
    """
    count = len(ordered_N)
    return (ordered_N[(count - 1) // 2] + ordered_N[count // 2]) * (0.5 * (1.0 + 1e-6))


class _Rows(NamedTuple):
    """Rows that a rank loss takes: their places [H], and which of these count, boolean [H]; None if all do."""

    places_H: Tensor
    counts_H: Tensor | None


def _above_median(confidence_R: Tensor) -> _Rows:
    """The rows of more than median confidence; a single row counts."""
    ordered_R, places_R = confidence_R.sort(descending=True)
    # No more than this can be above the median, and how many are is not known to the host.
    half = max(len(ordered_R) // 2, 1)
    counts_H = ordered_R[:half] > _just_above_median(ordered_R) if len(ordered_R) > 1 else ordered_R >= 0.0
    return _Rows(places_R[:half], counts_H)


def _rank_disagreement(teacher_RN: Tensor, student_RN: Tensor, rows: _Rows, width: float) -> Tensor:
    """Mean of 1 - rho(teacher's ranks, student's soft ranks) over the rows: [].

    Constant rows, or none at all, give 0.
    """
    if teacher_RN.shape[1] == 1:
        return student_RN.sum() * 0.0
    ranks_HN = average_ranks(teacher_RN.index_select(0, rows.places_H))
    rho_H, defined_H = correlation(ranks_HN, soft_ranks(student_RN.index_select(0, rows.places_H), width))
    if rows.counts_H is None:
        return torch.where(defined_H, 1.0 - rho_H, 0.0).mean()
    apart_H = torch.where(rows.counts_H & defined_H, 1.0 - rho_H, 0.0)
    return apart_H.sum() / rows.counts_H.sum().clamp(min=1)
