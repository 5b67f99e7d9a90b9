"""Distillation losses: pure functions of two networks' logits, the labels and the policy's temperatures.

All in log space (``log_softmax.py``): the numbers agree with the authors' code to rounding, and stay finite, value and
gradient, where theirs overflow. Shapes do not depend on values, and nothing is read from the device, so that a loss can
be captured in a CUDA graph. The weight among the temperatures is the one that counts: the policy's, or 1 where the
loss's ``scale`` is ``none``.

Shapes: B batch, C classes; y_B labels (int64), tau_B1 temperatures, x_BC tempered logits; a part is [B] (one value per
sample) or [] (one per batch).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.methods.losses import Bild, CrossEntropy, Dist, Dkd, Mlkd, Mse, Nkd, Rld, Wsld, Wttm
from workers.methods.policies.base import Temperatures
from workers.objective.divergences import divergence, gram_distance, masked_divergence, split_divergence
from workers.objective.kl import kl
from workers.objective.log_softmax import cross_entropy, masked_log_softmax, one_hot
from workers.objective.lud import lud
from workers.objective.rank_correlation import pearson
from workers.objective.results import LossPart, LossResult, SoftenedKl
from workers.objective.statistics import Logits


def dkd(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Dkd) -> LossResult:
    """Label against rest (tckd) and the rest among themselves (nckd) (Zhao et al. 2022). With C=2 nckd is 0."""
    x_s_BC, x_t_BC = student.tempered(temperatures.student), teacher.tempered(temperatures.teacher)
    tckd_B, nckd_B = split_divergence(x_t_BC, y_B, x_s_BC, y_B)
    return LossResult(
        {
            "tckd": LossPart(config.alpha, tckd_B, temperatures.weight),
            "nckd": LossPart(config.beta, nckd_B, temperatures.weight),
        }
    )


def rld(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Rld) -> LossResult:
    """The teacher's top class as the label (scd), and the classes it ranks below the label (mcd) (Sun et al. 2025).

    Classes that tie with the label's logit count as not below it. Where none is below, mcd is 0 with zero gradient.
    """
    top_B = teacher.z_BC.argmax(dim=1)
    drop_BC = teacher.z_BC >= teacher.z_BC.gather(1, y_B.unsqueeze(1))
    x_s_BC, x_t_BC = student.tempered(temperatures.student), teacher.tempered(temperatures.teacher)
    scd_weight, tau = temperatures.weight, config.binary_temperature
    if tau is None:
        scd_B, mcd_B = split_divergence(x_t_BC, top_B, x_s_BC, y_B, drop_BC)
    else:
        scd_weight = tau**2 if config.scale == "tau_squared" else 1.0
        scd_B, _ = split_divergence(teacher.tempered(tau), top_B, student.tempered(tau), y_B, drop_BC)
        mcd_B = masked_divergence(x_t_BC, x_s_BC, drop_BC)
    return LossResult(
        {
            "scd": LossPart(config.alpha, scd_B, scd_weight),
            "mcd": LossPart(config.beta, mcd_B, temperatures.weight),
        }
    )


def soft_cross_entropy(
    student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: CrossEntropy
) -> LossResult:
    """H(S(z_t/T_t), S(z_s/T_s)): KL plus the teacher's entropy, with the same gradient at fixed temperatures."""
    value_B = cross_entropy(teacher.softened(temperatures.teacher), student.softened(temperatures.student))
    return LossResult({"cross_entropy": LossPart(1.0, value_B, temperatures.weight)})


def nkd(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Nkd) -> LossResult:
    """The label at temperature 1 (target), the others at the policy's (nontarget) (Yang et al. 2023)."""
    label_BC = one_hot(y_B, student.log_softmax_BC)
    nontarget_B = cross_entropy(
        masked_log_softmax(teacher.tempered(temperatures.teacher), label_BC),
        masked_log_softmax(student.tempered(temperatures.student), label_BC),
    )
    return LossResult(
        {
            "target": LossPart(1.0, -_of_label(teacher, y_B).exp() * _of_label(student, y_B)),
            "nontarget": LossPart(config.gamma, nontarget_B, temperatures.weight),
        }
    )


def _of_label(logits: Logits, y_B: Tensor) -> Tensor:
    """log S(z)_y: [B]."""
    return logits.log_softmax_BC.gather(1, y_B.unsqueeze(1)).squeeze(1)


def wsld(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Wsld) -> LossResult:
    """Soft cross-entropy, weighted by 1 - exp(-CE_s / (CE_t + 1e-7)) without gradient (Zhou et al. 2021)."""
    share_B = -torch.expm1(_of_label(student, y_B).detach() / (1e-7 - _of_label(teacher, y_B)))
    soft_B = cross_entropy(teacher.softened(temperatures.teacher), student.softened(temperatures.student))
    return LossResult({"wsld": LossPart(1.0, share_B * soft_B, temperatures.weight)})


def dist(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Dist) -> LossResult:
    """1 - Pearson's rho of each row (inter) and of each column (intra) of both softmaxes (Huang et al. 2022).

    A constant column, and so any batch of 1, correlates with nothing: intra is then the weight, with zero gradient.
    """
    p_BC = teacher.tempered(temperatures.teacher).softmax(dim=1)
    q_BC = student.tempered(temperatures.student).softmax(dim=1)
    weight = temperatures.weight
    inter_B, intra = 1.0 - pearson(p_BC, q_BC, dim=1), 1.0 - pearson(p_BC, q_BC, dim=0).mean()
    if isinstance(weight, Tensor):
        intra, mean_weight = weight.mean() * intra, 1.0
    else:
        mean_weight = weight
    return LossResult(
        {"inter": LossPart(config.beta, inter_B, weight), "intra": LossPart(config.gamma, intra, mean_weight)}
    )


def wttm(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Wttm) -> LossResult:
    """KL times the power sum of the teacher's probabilities, sum_c S(z_t)^(1/T_t) (Zheng & Yang 2024).

    As exp(log S(z_t) / T_t): the authors' power of a softmax underflows.
    """
    power_sum_B = teacher.tempered(temperatures.teacher).exp().sum(dim=1)
    return LossResult({"wttm": LossPart(1.0, SoftenedKl(temperatures), temperatures.weight * power_sum_B.unsqueeze(1))})


def bild(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Bild) -> LossResult:
    """KL over pairwise differences of the leader's top logits, each network leading once (Li et al. 2025)."""
    x_s_BC, x_t_BC = student.tempered(temperatures.student), teacher.tempered(temperatures.teacher)
    top = min(config.top, x_s_BC.shape[1])
    places_2BK = torch.stack([leader.z_BC.detach().topk(top, dim=1).indices for leader in (teacher, student)])
    later_KK = torch.ones(top, top, dtype=torch.bool, device=x_s_BC.device).tril()

    def log_differences(x_BC: Tensor) -> Tensor:
        """Of x_i - x_j, for the pairs i < j; the others have probability 0: [2, B, K K]."""
        x_2BK = x_BC.expand(2, -1, -1).gather(2, places_2BK)
        return masked_log_softmax((x_2BK.unsqueeze(3) - x_2BK.unsqueeze(2)).flatten(2), later_KK.flatten())

    teacher_led_B, student_led_B = divergence(log_differences(x_t_BC), log_differences(x_s_BC))
    weight = temperatures.weight
    return LossResult(
        {"teacher_led": LossPart(1.0, teacher_led_B, weight), "student_led": LossPart(1.0, student_led_B, weight)}
    )


def mlkd(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Mlkd) -> LossResult:
    """Samples (kd), class correlation (cc) and batch correlation (bc) at one temperature (Jin et al. 2023)."""
    batch, classes = student.z_BC.shape
    parts = {}
    if config.kd > 0:
        parts["kd"] = LossPart(config.kd, SoftenedKl(temperatures), temperatures.weight * _sure_samples(teacher))
    if config.cc > 0 or config.bc > 0:
        # The teacher's log-softmax is there already.
        p_BC = teacher.softened(temperatures.teacher).exp()
        q_BC = student.tempered(temperatures.student).softmax(dim=1)
    if config.cc > 0:
        parts["cc"] = LossPart(config.cc, _sure_classes(teacher) * gram_distance(p_BC, q_BC), 1.0 / classes)
    if config.bc > 0:
        parts["bc"] = LossPart(config.bc, _sure_samples(teacher) * gram_distance(p_BC.t(), q_BC.t()), 1.0 / batch)
    return LossResult(parts)


def _sure_samples(teacher: Logits) -> Tensor:
    """Share of samples whose confidence is at most the median: []."""
    return teacher.derive("sure_samples", lambda: _at_most_median(teacher.log_softmax_BC.amax(dim=1)))


def _sure_classes(teacher: Logits) -> Tensor:
    """Share of classes whose mean probability is at most the median: []."""
    return teacher.derive("sure_classes", lambda: _at_most_median(teacher.log_softmax_BC.exp().sum(dim=0)))


def _at_most_median(x_N: Tensor) -> Tensor:
    # The lower of two middle values selects what their mean does.
    return (x_N <= x_N.kthvalue((len(x_N) + 1) // 2).values).to(x_N.dtype).mean()


def mse(student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Mse) -> LossResult:
    """(z_s/T_s - z_t/T_t)^2, mean over classes; the logits' offset counts (Jafari et al. 2021)."""
    apart_BC = student.raw_BC / temperatures.student - teacher.raw_BC / temperatures.teacher
    return LossResult({"mse": LossPart(1.0, apart_BC.square().mean(dim=1), temperatures.weight)})


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
"""A loss by its config's ``kind``: (student, teacher, labels, temperatures, config) -> result."""
