"""Distillation losses: what can be configured about each, a frozen pydantic class per loss. No torch here.

``distillation.py`` computes them; ``spec.py`` has the notation of the formulas.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.errors import InvalidMethod
from workers.methods.cache_statistics import CONFIDENCE, CONFIDENT, CacheStatistic
from workers.methods.loss import Loss, Scale
from workers.spec import Fraction, Temperature, Weight, by_kind


class Kl(Loss):
    """Kullback-Leibler divergence of the tempered distributions."""

    title = "Kullback-Leibler divergence"
    formula = "W KL(p || q)"
    paper = "Hinton et al. 2015, arXiv 1503.02531"
    parts = ("kl",)

    kind: Literal["kl"] = "kl"


class Dkd(Loss):
    """Decoupled KD: the label against the rest (tckd), and the rest among themselves (nckd)."""

    title = "decoupled KD"
    formula = "W (alpha KL([p_y, 1-p_y] || [q_y, 1-q_y]) + beta KL(p without y || q without y))"
    paper = "Zhao et al. CVPR 2022, arXiv 2203.08679"
    parts = ("tckd", "nckd")
    needs_labels = True

    kind: Literal["dkd"] = "dkd"
    alpha: Weight = 1.0
    beta: Weight = 8.0


class Rld(Loss):
    """Refined logit distillation: the teacher's confidence in its top class, and the classes below the label.

    ``binary_temperature`` is a plain temperature on the raw logits for the binary part; None takes the policy's.
    """

    title = "refined logit distillation"
    formula = (
        "m = argmax z_t, M = {c: z_t[c] >= z_t[y]}; "
        "W (alpha KL([p_m, 1-p_m] || [q_y, 1-q_y]) + beta KL(p without M || q without M))"
    )
    paper = "Sun et al. ICCV 2025, arXiv 2408.07703"
    parts = ("scd", "mcd")
    needs_labels = True

    kind: Literal["rld"] = "rld"
    alpha: Weight = 1.0
    beta: Weight = 8.0
    binary_temperature: Temperature | None = None


class CrossEntropy(Loss):
    """Cross-entropy between the tempered distributions: KL plus the teacher's entropy."""

    title = "soft cross-entropy"
    formula = "W H(p, q)"
    paper = "Hinton et al. 2015, arXiv 1503.02531"
    parts = ("cross_entropy",)

    kind: Literal["cross_entropy"] = "cross_entropy"


class Nkd(Loss):
    """Normalised KD: the label's soft cross-entropy at temperature 1, and the other classes' among themselves."""

    title = "normalised KD"
    formula = "-S(z_t)_y log S(z_s)_y + gamma W H(p without y, q without y)"
    paper = "Yang et al. ICCV 2023, arXiv 2303.13005"
    parts = ("target", "nontarget")
    needs_labels = True
    takes_heavier_label = True

    kind: Literal["nkd"] = "nkd"
    gamma: Weight = 1.5


class Wsld(Loss):
    """Weighted soft labels: a sample counts by how much worse the student does on it than the teacher."""

    title = "weighted soft labels"
    formula = "W w_n H(p, q), w_n = 1 - exp(-CE_s/(CE_t + 1e-7)) without gradient, CE at T=1"
    paper = "Zhou et al. ICLR 2021, arXiv 2102.00650"
    parts = ("wsld",)
    needs_labels = True

    kind: Literal["wsld"] = "wsld"


class Dist(Loss):
    """Correlation instead of divergence: of the classes within each sample, of the samples within each class.

    A class has no temperature of its own, so the second part takes the batch's mean weight. A correlation ignores the
    scale of what it compares: its gradient does not fall with the temperature as a divergence's does, and with W = T^2,
    as published for a fixed T, it grows with T (from 0.2 at T = 1 to 840 at T = 64, of one batch). Under a policy whose
    temperatures adapt, ``"scale": "none"`` keeps it level.
    """

    title = "correlation (DIST)"
    formula = "beta W (1 - rho(p_n, q_n)) over samples + gamma mean(W) (1 - rho(p_c, q_c)) over classes"
    paper = "Huang et al. NeurIPS 2022, arXiv 2205.10536"
    parts = ("inter", "intra")
    needs_batch = True

    kind: Literal["dist"] = "dist"
    beta: Weight = 1.0
    gamma: Weight = 1.0


class Wttm(Loss):
    """KL weighted by the power sum of the teacher's probabilities, which is large where the teacher is unsure."""

    title = "power-sum-weighted KL (WTTM)"
    formula = "U_n W KL(p || q), U_n = sum_c S(z_t)_c^(1/T_t)"
    paper = "Zheng & Yang ICLR 2024, arXiv 2402.11148"
    parts = ("wttm",)
    one_temperature = True

    kind: Literal["wttm"] = "wttm"


class Bild(Loss):
    """KL over the pairwise differences of the top logits: the teacher's top, then the student's.

    W plays no part, unless ``scale`` is ``tau_squared``.
    """

    title = "bi-directional logit differences"
    formula = "KL over softmax of (x_i - x_j), i<j among the leader's top k, x = z/T; teacher-led + student-led"
    paper = "Li et al. COLING 2025, arXiv 2406.13555"
    parts = ("teacher_led", "student_led")

    kind: Literal["bild"] = "bild"
    scale: Scale = Field("none", exclude_if=lambda given: given == "none")
    top: Annotated[int, Field(strict=True, ge=2, le=64)] = 8


class Mlkd(Loss):
    """Multi-level KD of one view at one temperature: samples, classes and the batch.

    As released, the confidence masks select nothing: they scale by the fraction of samples, or classes, at or below
    the median confidence. Only the first part has the policy's weight.
    """

    title = "multi-level KD, one view"
    formula = "kd f_s W KL + cc f_c ||P_t'P_t - P_s'P_s||^2 / C + bc f_s ||P_t P_t' - P_s P_s'||^2 / B"
    paper = "Jin et al. CVPR 2023 (single-view form of arXiv 2408.07703's repository)"
    parts = ("kd", "cc", "bc")
    needs_batch = True

    kind: Literal["mlkd"] = "mlkd"
    kd: Weight = 1.0
    cc: Weight = 1.0
    bc: Weight = 1.0

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not self.active_parts:
            raise InvalidMethod("loss 'mlkd' has only zero weights: give kd, cc or bc a weight > 0")
        return self

    @property
    def active_parts(self) -> tuple[str, ...]:
        """Those with a weight: a matrix that counts nothing is not worth its time."""
        return tuple(name for name in self.parts if getattr(self, name) > 0)


class Mse(Loss):
    """Squared difference of the tempered logits themselves, mean over classes. Not shift invariant."""

    title = "mean squared error of logits"
    formula = "W mean_c (z_s/T_s - z_t/T_t)^2"
    paper = "Jafari et al. 2021, arXiv 2104.07163"
    parts = ("mse",)
    shift_invariant = False

    kind: Literal["mse"] = "mse"


Confidence = Literal["cache", "batch"]
# ``batch`` is not written, so that the digests of jobs from before the field stay what they were.
LUD_CONFIDENCE: Confidence = Field("cache", exclude_if=lambda given: given == "batch")
LUD_FIELDS = frozenset(
    {"discount", "temperature_min", "temperature_max", "beta", "class_weight", "sample_weight", "soft_rank_width"}
)


def with_stored_confidence(data: object, fields: Collection[str]) -> object:
    """A description of LUD, with ``confidence`` ``batch`` where it was stored before there was that field.

    What is stored has every field, and then meant the batch; what a client writes has those that it cares for, and gets
    the default.

    Args:
        fields: that were stored of it, beside the tag.
    """
    if isinstance(data, Mapping) and "confidence" not in data and data.keys() >= set(fields):
        return {**data, "confidence": "batch"}
    return data


class Lud(Loss):
    """A reading of the abstract of LUD, not verified against the authors' code.

    Four parts: weights per class by the teacher's confidence, a mask of confident samples, a temperature per sample
    from the rank correlation of teacher and student, and rank-correlation losses over samples and over classes. The
    policy's temperature (4 in the preset) only measures confidence. Costs B C^2 comparisons a step: dear beyond a few
    hundred classes on a CPU.

    Attributes:
        confidence: of the classes. ``cache``: the mean peak of the teacher's softmax over the rows of the whole cache
            that it assigns to a class; a class counts in full from the median on. ``batch``: the mean probability of a
            class in the batch, which rather follows how often it is there; a class counts in full above the median.
        confidence_temperature: of that softmax, for ``cache``.
        discount: weight of the less confident classes.
        temperature_min: temperature where student and teacher disagree on the order of the classes.
        temperature_max: limit that the temperature tends to, but never reaches, as they agree.
        beta: weight of the generalised KL term.
        class_weight: weight of the rank correlation over classes.
        sample_weight: weight of the rank correlation over samples.
        soft_rank_width: width of the soft ranks' sigmoid, in standard deviations of the ranked values.
    """

    title = "logits uncertainty distillation (unverified reading)"
    formula = (
        "T_n = T_min + (T_max-T_min)(1 - exp(-max(rho_n, 0))), rho_n = Spearman(z_t, z_s); "
        "beta T_n^2 sum_c w_c (p log(p/q) - p + q) + lambda_c mean_{c: w_c=1} (1-rho_c) "
        "+ lambda_s mean_{n: m_n=1} (1-rho_n) with soft ranks"
    )
    paper = "Guo et al. 2024, Sci. Rep. 14:31249: a reading of the abstract, not verified against the authors' code"
    parts = ("kl", "class_rank", "sample_rank")
    needs_batch = True
    # A class's logits are ranked over samples, whose levels a softmax would have changed one by one.
    reads_level = True
    own_temperature = True

    kind: Literal["lud"] = "lud"
    confidence: Confidence = LUD_CONFIDENCE
    confidence_temperature: Temperature = Field(4.0, exclude_if=lambda given: given == 4.0)
    discount: Fraction = 0.5
    temperature_min: Temperature = 2.0
    temperature_max: Temperature = 6.0
    beta: Weight = 1.0
    class_weight: Weight = 1.0
    sample_weight: Weight = 1.0
    soft_rank_width: Annotated[float, Field(strict=True, ge=1e-3, le=10.0, allow_inf_nan=False)] = 0.1

    @model_validator(mode="before")
    @classmethod
    def _stored_without_confidence(cls, data: object) -> object:
        return with_stored_confidence(data, LUD_FIELDS)

    @property
    def cache_statistics(self) -> tuple[CacheStatistic, ...]:
        if self.confidence == "batch":
            return ()
        return tuple(CacheStatistic(name, self.confidence_temperature) for name in (CONFIDENCE, CONFIDENT))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.temperature_min > self.temperature_max:
            raise InvalidMethod(
                f"temperature_min is {self.temperature_min} and temperature_max {self.temperature_max}; "
                "the first must not exceed the second"
            )
        return self


LOSS_CLASSES: dict[str, type[Loss]] = by_kind(Loss)
