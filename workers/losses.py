"""Distillation losses: pure functions of two logit matrices, the labels and the policy's temperatures.

All in log space: no logarithm is taken of a sum of probabilities, and classes are left out by an exact masked
log-softmax, where the authors subtract 1000 or 1e9. The numbers agree with the authors' code to rounding, and stay
finite (value and gradient) where theirs overflow. Logits must already be float32 or float64.

Shapes: B batch, C classes; z_s_BC and z_t_BC raw logits of student and teacher, y_B labels (int64), tau_B1
temperatures, x_BC tempered logits; a part is [B] (one value per sample) or [] (one per batch).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.composition import Dkd, Kl, Lud, Rld
from workers.ranks import average_ranks, correlation, soft_ranks, spearman
from workers.temperature import Temperatures


@dataclass(frozen=True)
class Part:
    """A summand: ``coefficient`` x the batch mean of ``value``, which already holds the policy's weight."""

    coefficient: float
    value: Tensor


@dataclass(frozen=True)
class LossResult:
    """What a loss returns.

    Attributes:
        parts: by the names of the config's ``parts``, in their order.
        temperatures: the loss's own, for the metrics; None if it used the policy's.
    """

    parts: dict[str, Part]
    temperatures: Temperatures | None = None


def kl(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Kl) -> LossResult:
    """KL(S(z_t/T_t) || S(z_s/T_s)) (Hinton et al. 2015)."""
    log_q_BC = tempered(z_s_BC, temperatures.student).log_softmax(dim=1)
    log_p_BC = tempered(z_t_BC, temperatures.teacher).log_softmax(dim=1)
    value_B = temperatures.weight.squeeze(1) * divergence(log_p_BC, log_q_BC)
    return LossResult({"kl": Part(1.0, value_B)})


def dkd(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Dkd) -> LossResult:
    """Label against rest (tckd) and the rest among themselves (nckd) (Zhao et al. 2022). With C=2 nckd is 0."""
    x_s_BC, x_t_BC = tempered(z_s_BC, temperatures.student), tempered(z_t_BC, temperatures.teacher)
    weight_B = temperatures.weight.squeeze(1)
    label_BC = one_hot(y_B, z_s_BC)
    return LossResult(
        {
            "tckd": Part(config.alpha, weight_B * binary_divergence(x_t_BC, label_BC, x_s_BC, label_BC)),
            "nckd": Part(config.beta, weight_B * masked_divergence(x_t_BC, x_s_BC, ~label_BC)),
        }
    )


def rld(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Rld) -> LossResult:
    """The teacher's top class as the label (scd), and the classes it ranks below the label (mcd) (Sun et al. 2025).

    Classes that tie with the label's logit count as not below it. Where none is below, mcd is 0 with zero gradient.
    """
    label_BC = one_hot(y_B, z_t_BC)
    top_BC = one_hot(z_t_BC.argmax(dim=1), z_t_BC)
    below_BC = z_t_BC < z_t_BC.gather(1, y_B.unsqueeze(1))
    binary = temperatures
    if config.binary_temperature is not None:
        tau_B1 = torch.full_like(temperatures.weight, config.binary_temperature)
        binary = Temperatures(tau_B1, tau_B1, tau_B1.square())
    scd_B = binary_divergence(tempered(z_t_BC, binary.teacher), top_BC, tempered(z_s_BC, binary.student), label_BC)
    mcd_B = masked_divergence(tempered(z_t_BC, temperatures.teacher), tempered(z_s_BC, temperatures.student), below_BC)
    return LossResult(
        {
            "scd": Part(config.alpha, binary.weight.squeeze(1) * scd_B),
            "mcd": Part(config.beta, temperatures.weight.squeeze(1) * mcd_B),
        }
    )


def lud(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Lud) -> LossResult:
    """A reading of LUD's abstract, not verified against the authors' code (Guo et al. 2024).

    The policy's temperature measures the teacher's confidence; the divergence is taken at the loss's own T_n.
    """
    confident_C, confident_B = _confident(tempered(z_t_BC, temperatures.teacher).softmax(dim=1))
    agreement_B = spearman(z_t_BC, z_s_BC).clamp(min=0.0)
    span = config.temperature_max - config.temperature_min
    tau_B1 = (config.temperature_min - span * torch.expm1(-agreement_B)).unsqueeze(1)
    weight_C = torch.where(confident_C, 1.0, config.discount).to(z_s_BC.dtype)

    log_q_BC = tempered(z_s_BC, tau_B1).log_softmax(dim=1)
    log_p_BC = tempered(z_t_BC, tau_B1).log_softmax(dim=1)
    kl_B = tau_B1.squeeze(1).square() * (weight_C * pointwise(log_p_BC, log_q_BC)).sum(dim=1)
    return LossResult(
        {
            "kl": Part(config.beta, kl_B),
            "class_rank": Part(
                config.class_weight,
                _rank_disagreement(z_t_BC.t()[confident_C], z_s_BC.t()[confident_C], config.soft_rank_width),
            ),
            "sample_rank": Part(
                config.sample_weight,
                _rank_disagreement(z_t_BC[confident_B], z_s_BC[confident_B], config.soft_rank_width),
            ),
        },
        Temperatures(tau_B1, tau_B1, tau_B1.square()),
    )


def _confident(p_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Classes [C] and samples [B] whose mean, or peak, probability is above the median; a batch of 1 is kept."""
    samples_B = _above_median(p_BC.amax(dim=1)) | (p_BC.shape[0] == 1)
    return _above_median(p_BC.mean(dim=0)), samples_B


def _above_median(probability_N: Tensor) -> Tensor:
    """Which are greater than the median of all: bool [N]. Within a millionth they are equal: where the exact values
    tie (as peaks do for two classes at a standardised temperature), rounding must not pick the samples.
    """
    return probability_N > probability_N.quantile(0.5) * (1.0 + 1e-6)


def _rank_disagreement(teacher_RN: Tensor, student_RN: Tensor, width: float) -> Tensor:
    """Mean over rows of 1 - rho(teacher's ranks, student's soft ranks); constant rows, or none at all, give 0: []."""
    if teacher_RN.shape[0] == 0 or teacher_RN.shape[1] == 1:
        return student_RN.sum() * 0.0
    rho_R, defined_R = correlation(average_ranks(teacher_RN), soft_ranks(student_RN, width))
    return torch.where(defined_R, 1.0 - rho_R, 0.0).mean()


LOSSES: dict[str, Callable[..., LossResult]] = {
    "kl": kl,
    "dkd": dkd,
    "rld": rld,
    "lud": lud,
}
"""A loss by its config's ``kind``: (student logits, teacher logits, labels, temperatures, config) -> result."""


# ------------------------------------------------------------------------------------------------ log-space building


def tempered(z_BC: Tensor, tau_B1: Tensor) -> Tensor:
    """(z - max z) / tau. Softmax ignores the shift, but rounding does not: large logits over a small tau would lose
    all their digits, so each row is moved to a maximum of 0 first. The shift carries no gradient, as it has none.
    """
    return (z_BC - z_BC.detach().amax(dim=1, keepdim=True)) / tau_B1


def one_hot(y_B: Tensor, z_BC: Tensor) -> Tensor:
    """Boolean [B, C], true at y."""
    return torch.zeros_like(z_BC, dtype=torch.bool).scatter_(1, y_B.unsqueeze(1), True)


def pointwise(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """p log(p/q) - p + q of each class, whose sum is KL(p || q): [B, C].

    No class is ever negative, so neither is a sum, weighted or not; and a small divergence keeps its
    digits, where sum p log(p/q) loses them to cancellation. Finite for finite logarithms.
    """
    p_BC = log_p_BC.exp()
    gap_BC = log_q_BC - log_p_BC
    near_BC = gap_BC.abs() < 0.5
    small_BC = torch.where(near_BC, gap_BC, 0.0)
    near = p_BC * (small_BC.expm1() - small_BC)
    return torch.where(near_BC, near, log_q_BC.exp() - p_BC - p_BC * gap_BC)


def divergence(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """KL(p || q) per row, never negative, differentiable in both: [B]."""
    return pointwise(log_p_BC, log_q_BC).sum(dim=1)


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


def masked_divergence(x_t_BC: Tensor, x_s_BC: Tensor, keep_BC: Tensor) -> Tensor:
    """KL between both softmaxes restricted to the kept classes; 0 with zero gradient where none is kept: [B]."""
    # Low enough for a probability of exactly 0, and finite: where nothing is kept, both sides are uniform.
    left_out = torch.finfo(x_t_BC.dtype).min / 4
    log_p_BC = x_t_BC.masked_fill(~keep_BC, left_out).log_softmax(dim=1)
    log_q_BC = x_s_BC.masked_fill(~keep_BC, left_out).log_softmax(dim=1)
    return divergence(log_p_BC, log_q_BC)
