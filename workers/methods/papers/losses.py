"""Presets of the papers that change the loss, at one fixed temperature for each network. No torch here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workers.methods.loss import Scale
from workers.methods.losses import (
    LUD_CONFIDENCE,
    LUD_FIELDS,
    Bild,
    Confidence,
    Dist,
    Dkd,
    Lud,
    Nkd,
    Rld,
    Wsld,
    Wttm,
    with_stored_confidence,
)
from workers.methods.method import Epochs, Term
from workers.methods.papers.base import Preset
from workers.methods.policies.asymmetric import Asymmetric
from workers.methods.policies.fixed import Fixed
from workers.spec import Fraction, Temperature, Weight


class DKD(Preset):
    """Decoupled KD. beta is 2 to 6 for some CIFAR pairs (res56-res20: 2) and 2 for ImageNet's r50-mv1."""

    title = "decoupled KD"
    paper = "Zhao et al. CVPR 2022, arXiv 2203.08679"
    formula = "CE + w T^2 (alpha KL(label against rest) + beta KL(rest among themselves))"
    imagenet = {"temperature": 1.0, "beta": 0.5, "warmup_epochs": 1}

    preset: Literal["dkd"] = "dkd"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 1.0
    beta: Weight = 8.0

    def _terms(self) -> tuple[Term, ...]:
        loss = Dkd(alpha=self.alpha, beta=self.beta)
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss),)


class RLD(Preset):
    """Refined logit distillation. The CIFAR default is the README command's ``--same-t`` (binary temperature None)."""

    title = "refined logit distillation"
    paper = "Sun et al. ICCV 2025, arXiv 2408.07703"
    formula = "CE + w T^2 (alpha KL(teacher's top || student's label) + beta KL(classes ranked below the label))"
    imagenet = {"temperature": 1.0, "binary_temperature": 1.0, "beta": 0.5, "warmup_epochs": 1}

    preset: Literal["rld"] = "rld"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 1.0
    beta: Weight = 8.0
    binary_temperature: Temperature | None = None

    def _terms(self) -> tuple[Term, ...]:
        loss = Rld(alpha=self.alpha, beta=self.beta, binary_temperature=self.binary_temperature)
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss),)


class NKD(Preset):
    """Normalised KD."""

    title = "normalised KD"
    paper = "Yang et al. ICCV 2023, arXiv 2303.13005"
    formula = "CE - S(z_t)_y log S(z_s)_y + gamma T^2 H(rest of the teacher, rest of the student)"
    imagenet = {"temperature": 1.0, "gamma": 1.5}

    preset: Literal["nkd"] = "nkd"
    temperature: Temperature = 3.0
    gamma: Weight = 3.5

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Fixed(temperature=self.temperature), loss=Nkd(gamma=self.gamma), name="nkd"),)


class WSLD(Preset):
    """Weighted soft labels; alpha is the authors' name for the weight."""

    title = "weighted soft-label distillation"
    paper = "Zhou et al. ICLR 2021, arXiv 2102.00650"
    formula = "CE + alpha T^2 w_n H(S(z_t/T), S(z_s/T)), w_n = 1 - exp(-CE_s/CE_t)"
    imagenet = {"temperature": 2.0, "alpha": 2.5}

    preset: Literal["wsld"] = "wsld"
    temperature: Temperature = 4.0
    alpha: Weight = 2.25

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Fixed(temperature=self.temperature), loss=Wsld(), weight=self.alpha),)


class DIST(Preset):
    """Correlation of rows and columns; ``scale`` ``none`` leaves the factor T^2 out, see ``losses.Dist``."""

    title = "distillation from a stronger teacher (DIST)"
    paper = "Huang et al. NeurIPS 2022, arXiv 2205.10536"
    formula = "CE + b T^2 (beta (1 - rho over classes) + gamma (1 - rho over samples))"
    imagenet = {"temperature": 1.0}

    preset: Literal["dist"] = "dist"
    kd_weight: Weight = 2.0
    temperature: Temperature = 4.0
    beta: Weight = 1.0
    gamma: Weight = 1.0
    scale: Scale = Field("tau_squared", exclude_if=lambda given: given == "tau_squared")

    def _terms(self) -> tuple[Term, ...]:
        policy = Fixed(temperature=self.temperature)
        loss = Dist(beta=self.beta, gamma=self.gamma, scale=self.scale)
        return (Term(policy=policy, loss=loss, weight=self.kd_weight, name="dist"),)


class WTTM(Preset):
    """TTM weighted by the teacher's power sum; the README's values for its use beside CRD (``ttm_l`` 0.2)."""

    title = "weighted transformed teacher matching"
    paper = "Zheng & Yang ICLR 2024, arXiv 2402.11148"
    formula = "CE + b U_n KL(S(z_t/T) || S(z_s)), U_n = sum_c S(z_t)_c^(1/T)"

    preset: Literal["wttm"] = "wttm"
    kd_weight: Weight = 4.0
    temperature: Temperature = 5.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Asymmetric(student=1.0, teacher=self.temperature)
        return (Term(policy=policy, loss=Wttm(), weight=self.kd_weight, name="wttm"),)


class BiLD(Preset):
    """Logit differences. The authors distil language models and add no cross-entropy; give ``ce_weight`` to do so."""

    title = "bi-directional logit differences"
    paper = "Li et al. COLING 2025, arXiv 2406.13555"
    formula = "KL over the top 8 logits' pairwise differences, teacher-led + student-led"

    preset: Literal["bild"] = "bild"
    ce_weight: Weight = 0.0
    kd_weight: Weight = 1.0
    temperature: Temperature = 3.0
    top: Annotated[int, Field(strict=True, ge=2, le=64)] = 8

    def _terms(self) -> tuple[Term, ...]:
        policy = Fixed(temperature=self.temperature)
        return (Term(policy=policy, loss=Bild(top=self.top), weight=self.kd_weight, name="bild"),)


class LUD(Preset):
    """Logits uncertainty distillation: a reading of the abstract, not verified against the authors' code.

    ``confidence`` of the classes is over the whole cache; ``batch`` is the first reading, over each batch. A stored job
    from before that field has every other one, and keeps the batch.
    """

    title = "logits uncertainty distillation"
    paper = "Guo et al. 2024, Sci. Rep. 14:31249"
    formula = "CE + w (beta T_n^2 generalised KL with class weights + rank correlations over classes and samples)"
    verified = "a reading of the abstract, not verified against the authors' code"

    preset: Literal["lud"] = "lud"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    temperature_min: Temperature = 2.0
    temperature_max: Temperature = 6.0
    discount: Fraction = 0.5
    beta: Weight = 1.0
    class_weight: Weight = 1.0
    sample_weight: Weight = 1.0
    confidence: Confidence = LUD_CONFIDENCE

    @model_validator(mode="before")
    @classmethod
    def _stored_without_confidence(cls, data: object) -> object:
        stored = {"family", "ce_weight", "warmup_epochs", "temperature", *LUD_FIELDS} - {"soft_rank_width"}
        return with_stored_confidence(data, stored)

    def _terms(self) -> tuple[Term, ...]:
        shared = {field: getattr(self, field) for field in Lud.model_fields if field in type(self).model_fields}
        # Only the cache's confidence has a temperature of its own.
        own = {"confidence_temperature": self.temperature} if self.confidence == "cache" else {}
        loss = Lud(**shared, **own)
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss, name="lud"),)
