"""Distillation losses: pure functions of two logit matrices, the labels and the policy's temperatures.

All in log space (``softmax.py``): the numbers agree with the authors' code to rounding, and stay finite, value and
gradient, where theirs overflow. Logits must already be float32 or float64.

Shapes: B batch, C classes; z_s_BC and z_t_BC raw logits of student and teacher, y_B labels (int64), tau_B1
temperatures, x_BC tempered logits; a part is [B] (one value per sample) or [] (one per batch).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.loss_configs import Bild, CrossEntropy, Dist, Dkd, Kl, Lud, Mlkd, Mse, Nkd, Rld, Wsld, Wttm
from workers.ranks import average_ranks, correlation, soft_ranks, spearman
from workers.softmax import (
    binary_divergence,
    cross_entropy,
    divergence,
    masked_divergence,
    masked_log_softmax,
    one_hot,
    pointwise,
    tempered,
)
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
    log_p_BC, log_q_BC = _log_softmaxes(z_s_BC, z_t_BC, temperatures)
    value_B = temperatures.weight.squeeze(1) * divergence(log_p_BC, log_q_BC)
    return LossResult({"kl": Part(1.0, value_B)})


def _log_softmaxes(z_s_BC: Tensor, z_t_BC: Tensor, temperatures: Temperatures) -> tuple[Tensor, Tensor]:
    """log p of the teacher and log q of the student, each at its temperature: [B, C] both."""
    log_q_BC = tempered(z_s_BC, temperatures.student).log_softmax(dim=1)
    if temperatures.teacher_softened is not None:
        return temperatures.teacher_softened(), log_q_BC
    return tempered(z_t_BC, temperatures.teacher).log_softmax(dim=1), log_q_BC


def dkd(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Dkd) -> LossResult:
    """Label against rest (tckd) and the rest among themselves (nckd) (Zhao et al. 2022). With C=2 nckd is 0."""
    x_s_BC, x_t_BC = tempered(z_s_BC, temperatures.student), tempered(z_t_BC, temperatures.teacher)
    weight_B = temperatures.weight.squeeze(1)
    return LossResult(
        {
            "tckd": Part(config.alpha, weight_B * binary_divergence(x_t_BC, y_B, x_s_BC, y_B)),
            "nckd": Part(config.beta, weight_B * masked_divergence(x_t_BC, x_s_BC, ~one_hot(y_B, z_s_BC))),
        }
    )


def rld(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Rld) -> LossResult:
    """The teacher's top class as the label (scd), and the classes it ranks below the label (mcd) (Sun et al. 2025).

    Classes that tie with the label's logit count as not below it. Where none is below, mcd is 0 with zero gradient.
    """
    top_B = z_t_BC.argmax(dim=1)
    below_BC = z_t_BC < z_t_BC.gather(1, y_B.unsqueeze(1))
    binary = temperatures
    if config.binary_temperature is not None:
        tau_B1 = torch.full_like(temperatures.weight, config.binary_temperature)
        binary = Temperatures(tau_B1, tau_B1, tau_B1.square())
    scd_B = binary_divergence(tempered(z_t_BC, binary.teacher), top_B, tempered(z_s_BC, binary.student), y_B)
    mcd_B = masked_divergence(tempered(z_t_BC, temperatures.teacher), tempered(z_s_BC, temperatures.student), below_BC)
    return LossResult(
        {
            "scd": Part(config.alpha, binary.weight.squeeze(1) * scd_B),
            "mcd": Part(config.beta, temperatures.weight.squeeze(1) * mcd_B),
        }
    )


def soft_cross_entropy(
    z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: CrossEntropy
) -> LossResult:
    """H(S(z_t/T_t), S(z_s/T_s)): KL plus the teacher's entropy, with the same gradient at fixed temperatures."""
    value_B = temperatures.weight.squeeze(1) * cross_entropy(*_log_softmaxes(z_s_BC, z_t_BC, temperatures))
    return LossResult({"cross_entropy": Part(1.0, value_B)})


def nkd(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Nkd) -> LossResult:
    """The label at temperature 1 (target), the others at the policy's (nontarget) (Yang et al. 2023)."""
    y_B1 = y_B.unsqueeze(1)
    log_p_B, log_q_B = (z_BC.log_softmax(dim=1).gather(1, y_B1).squeeze(1) for z_BC in (z_t_BC, z_s_BC))
    others_BC = ~one_hot(y_B, z_s_BC)
    nontarget_B = cross_entropy(
        masked_log_softmax(tempered(z_t_BC, temperatures.teacher), others_BC),
        masked_log_softmax(tempered(z_s_BC, temperatures.student), others_BC),
    )
    return LossResult(
        {
            "target": Part(1.0, -log_p_B.exp() * log_q_B),
            "nontarget": Part(config.gamma, temperatures.weight.squeeze(1) * nontarget_B),
        }
    )


def wsld(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Wsld) -> LossResult:
    """Soft cross-entropy, weighted by 1 - exp(-CE_s / (CE_t + 1e-7)) without gradient (Zhou et al. 2021)."""
    y_B1 = y_B.unsqueeze(1)
    hard_s_B, hard_t_B = (-z_BC.detach().log_softmax(dim=1).gather(1, y_B1).squeeze(1) for z_BC in (z_s_BC, z_t_BC))
    share_B = -torch.expm1(-hard_s_B / (hard_t_B + 1e-7))
    soft_B = cross_entropy(*_log_softmaxes(z_s_BC, z_t_BC, temperatures))
    return LossResult({"wsld": Part(1.0, temperatures.weight.squeeze(1) * share_B * soft_B)})


def dist(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Dist) -> LossResult:
    """1 - Pearson's rho of each row (inter) and of each column (intra) of both softmaxes (Huang et al. 2022).

    A constant column, and so any batch of 1, correlates with nothing: intra is then the weight, with zero gradient.
    """
    p_BC, q_BC = (log_BC.exp() for log_BC in _log_softmaxes(z_s_BC, z_t_BC, temperatures))
    inter_B = temperatures.weight.squeeze(1) * (1.0 - _pearson(p_BC, q_BC))
    intra = temperatures.weight.mean() * (1.0 - _pearson(p_BC.t(), q_BC.t())).mean()
    return LossResult({"inter": Part(config.beta, inter_B), "intra": Part(config.gamma, intra)})


def _pearson(a_RN: Tensor, b_RN: Tensor) -> Tensor:
    """Correlation of each row with the authors' 1e-8 in the denominator: [R]."""
    a_RN = a_RN - a_RN.mean(dim=1, keepdim=True)
    b_RN = b_RN - b_RN.mean(dim=1, keepdim=True)
    # vector_norm, since its gradient at a constant row is 0; that of a square root is not finite.
    norms_R: Tensor = torch.linalg.vector_norm(a_RN, dim=1) * torch.linalg.vector_norm(b_RN, dim=1)
    return (a_RN * b_RN).sum(dim=1) / (norms_R + 1e-8)


def wttm(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Wttm) -> LossResult:
    """KL times the power sum of the teacher's probabilities, sum_c S(z_t)^(1/T_t) (Zheng & Yang 2024).

    As exp(LSE(z_t/T_t) - LSE(z_t)/T_t): the authors' power of a softmax underflows.
    """
    tau_B = temperatures.teacher.squeeze(1)
    raw_BC = tempered(z_t_BC, torch.ones_like(temperatures.teacher))
    power_sum_B = (tempered(z_t_BC, temperatures.teacher).logsumexp(dim=1) - raw_BC.logsumexp(dim=1) / tau_B).exp()
    value_B = temperatures.weight.squeeze(1) * divergence(*_log_softmaxes(z_s_BC, z_t_BC, temperatures))
    return LossResult({"wttm": Part(1.0, power_sum_B * value_B)})


def bild(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Bild) -> LossResult:
    """KL over pairwise differences of the leader's top logits, each network leading once (Li et al. 2025)."""
    x_s_BC, x_t_BC = tempered(z_s_BC, temperatures.student), tempered(z_t_BC, temperatures.teacher)
    top = min(config.top, z_s_BC.shape[1])
    parts = {}
    for name, leader_BC in (("teacher_led", z_t_BC), ("student_led", z_s_BC)):
        rows_BK = leader_BC.detach().topk(top, dim=1).indices
        log_p, log_q = (_differences(x_BC.gather(1, rows_BK)).log_softmax(dim=1) for x_BC in (x_t_BC, x_s_BC))
        parts[name] = Part(1.0, divergence(log_p, log_q))
    return LossResult(parts)


def _differences(x_BK: Tensor) -> Tensor:
    """x_i - x_j for every i < j: [B, K(K-1)/2]."""
    i, j = torch.triu_indices(x_BK.shape[1], x_BK.shape[1], offset=1, device=x_BK.device)
    return x_BK[:, i] - x_BK[:, j]


def mlkd(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Mlkd) -> LossResult:
    """Samples (kd), class correlation (cc) and batch correlation (bc) at one temperature (Jin et al. 2023)."""
    log_p_BC, log_q_BC = _log_softmaxes(z_s_BC, z_t_BC, temperatures)
    p_BC, q_BC = log_p_BC.exp(), log_q_BC.exp()
    samples, classes = _fractions(z_t_BC.softmax(dim=1))
    parts: dict[str, Callable[[], Tensor]] = {
        "kd": lambda: samples * temperatures.weight.squeeze(1) * divergence(log_p_BC, log_q_BC),
        "cc": lambda: classes * (p_BC.t() @ p_BC - q_BC.t() @ q_BC).square().sum() / p_BC.shape[1],
        "bc": lambda: samples * (p_BC @ p_BC.t() - q_BC @ q_BC.t()).square().sum() / p_BC.shape[0],
    }
    return LossResult({name: Part(getattr(config, name), parts[name]()) for name in config.active_parts})


def _fractions(p_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Share of samples, and of classes, whose confidence is at most the median: two []."""
    peak_B, mass_C = p_BC.amax(dim=1), p_BC.sum(dim=0)
    # The lower of two middle values selects what their mean does.
    samples, classes = ((x <= x.median()).to(p_BC.dtype).mean() for x in (peak_B, mass_C))
    return samples, classes


def mse(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Mse) -> LossResult:
    """(z_s/T_s - z_t/T_t)^2, mean over classes; the logits' offset counts (Jafari et al. 2021)."""
    apart_BC = z_s_BC / temperatures.student - z_t_BC / temperatures.teacher
    return LossResult({"mse": Part(1.0, temperatures.weight.squeeze(1) * apart_BC.square().mean(dim=1))})


def lud(z_s_BC: Tensor, z_t_BC: Tensor, y_B: Tensor, temperatures: Temperatures, config: Lud) -> LossResult:
    """A reading of LUD's abstract, not verified against the authors' code (Guo et al. 2024).

    The policy's temperature measures the teacher's confidence; the divergence is taken at the loss's own T_n.
    """
    confident_C, confident_B = _confident(tempered(z_t_BC, temperatures.teacher).softmax(dim=1))
    agreement_B = spearman(z_t_BC, z_s_BC).clamp(min=0.0)
    span = config.temperature_max - config.temperature_min
    tau_B1 = (config.temperature_min - span * torch.expm1(-agreement_B)).unsqueeze(1)
    weight_C = torch.where(confident_C, 1.0, config.discount).to(z_s_BC.dtype)

    own = Temperatures(tau_B1, tau_B1, tau_B1.square())
    log_p_BC, log_q_BC = _log_softmaxes(z_s_BC, z_t_BC, own)
    kl_B = own.weight.squeeze(1) * (weight_C * pointwise(log_p_BC, log_q_BC)).sum(dim=1)
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
        own,
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
    "cross_entropy": soft_cross_entropy,
    "dkd": dkd,
    "rld": rld,
    "nkd": nkd,
    "wsld": wsld,
    "dist": dist,
    "wttm": wttm,
    "bild": bild,
    "mlkd": mlkd,
    "mse": mse,
    "lud": lud,
}
"""A loss by its config's ``kind``: (student logits, teacher logits, labels, temperatures, config) -> result."""
