"""The papers' methods by name, a frozen pydantic class each. No torch here.

Methods that join two papers are in ``combinations.py``. The defaults are the authors' for CIFAR; ``family: imagenet``
swaps in their ImageNet values, and every field can be overridden. ``expand()`` turns a preset into a ``Method``
(``method.py``), which is all that ``objective.py`` knows. Where the released code and the paper differ, the code
is followed.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workers.methods.losses import Bild, CrossEntropy, Dist, Dkd, Kl, Loss, Lud, Mlkd, Mse, Nkd, Rld, Wsld, Wttm
from workers.methods.method import Epochs, Method, Term
from workers.methods.policies.annealed import Annealed
from workers.methods.policies.asymmetric import Asymmetric
from workers.methods.policies.dtkd import Dtkd
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.learned import Learned
from workers.methods.policies.max_logit import MaxLogit
from workers.methods.policies.normkd import Normkd
from workers.methods.policies.standardize import Standardize
from workers.spec import AtMost, Config, Count, Finite, Fraction, Temperature, Weight

Family = Literal["cifar", "imagenet"]


class Preset(Config):
    """Base of the presets; the class attributes are what ``describe`` and the README's table tell.

    Attributes:
        imagenet: the defaults that differ for ``family: imagenet``; empty where the authors give none.
        verified: against what the numbers were checked.
        family: which of the authors' two sets of defaults fills the fields that are not given.
        ce_weight: weight of the cross-entropy.
        warmup_epochs: epochs over which the distillation terms rise linearly; the cross-entropy does not.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    verified: ClassVar[str] = "authors' code"
    imagenet: ClassVar[Mapping[str, float | None]] = {}

    family: Family = "cifar"
    ce_weight: Weight = 1.0
    warmup_epochs: Epochs = 0

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, data: object) -> object:
        if isinstance(data, Mapping) and data.get("family") == "imagenet":
            return {**cls.imagenet, **data}
        return data

    @model_validator(mode="after")
    def _expands(self) -> Self:
        self._method(self.id())
        return self

    @classmethod
    def id(cls) -> str:
        """The name that a client writes."""
        return str(cls.model_fields["preset"].default)

    @property
    def label(self) -> str:
        """The name and the fields that differ from the family's defaults, e.g. ``kd(temperature=2)``."""
        usual = type(self)(family=self.family)
        changed = [
            f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"
            for field, value in self
            if value != getattr(usual, field) or (field == "family" and value == "imagenet")
        ]
        return f"{self.id()}({', '.join(changed)})" if changed else self.id()

    def expand(self) -> Method:
        """The method with every number in place."""
        return self._method(self.label)

    def _method(self, name: str) -> Method:
        return Method(
            name=name,
            ce_weight=self.ce_weight,
            terms=self._terms(),
            warmup_epochs=self.warmup_epochs,
            distil_epochs=self._distil_epochs(),
        )

    def _terms(self) -> tuple[Term, ...]:
        raise NotImplementedError

    def _distil_epochs(self) -> int | None:
        return None


class CE(Preset):
    """Cross-entropy alone: the student without a teacher, against which the others are judged."""

    title = "cross-entropy (no distillation)"
    paper = "none"
    formula = "CE"
    verified = "definition"

    preset: Literal["ce"] = "ce"

    def _terms(self) -> tuple[Term, ...]:
        return ()


class KD(Preset):
    """Hinton's distillation with mdistiller's weights."""

    title = "knowledge distillation"
    paper = "Hinton et al. 2015, arXiv 1503.02531"
    formula = "a CE + b T^2 KL(S(z_t/T) || S(z_s/T))"
    imagenet = {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["kd"] = "kd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    temperature: Temperature = 4.0

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Fixed(temperature=self.temperature), loss=Kl(), weight=self.kd_weight, name="kd"),)


class DTKD(Preset):
    """Dynamic temperatures beside plain KD. The authors give no ImageNet values; the same ones are used.

    ``statistic`` ``sharpness`` is the paper's definition, the logsumexp; ``max`` what its code and results use.
    """

    title = "dynamic temperature KD"
    paper = "Wei & Bai 2024, arXiv 2404.12711"
    formula = "CE + w (alpha T_t T_s KL(S(z_t/T_t) || S(z_s/T_s)) + beta T^2 KL(S(z_t/T) || S(z_s/T)))"

    preset: Literal["dtkd"] = "dtkd"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 3.0
    beta: Weight = 1.0
    statistic: Literal["max", "sharpness"] = "max"

    def _terms(self) -> tuple[Term, ...]:
        policy = Dtkd(temperature=self.temperature, statistic=self.statistic)
        return (
            Term(policy=policy, loss=Kl(), weight=self.alpha, name="dtkd"),
            Term(policy=Fixed(temperature=self.temperature), loss=Kl(), weight=self.beta, name="kd"),
        )


class NormKD(Preset):
    """Temperatures from the standard deviations; ``scale`` is the authors' T_norm."""

    title = "normalised-logits KD"
    paper = "Chi et al. 2023, arXiv 2308.00520"
    formula = "a CE + b T_t^2 KL(S(z_t/T_t) || S(z_s/T_s)), T = k std(z)"
    imagenet = {"scale": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["normkd"] = "normkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    scale: Temperature = 2.0

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Normkd(scale=self.scale), loss=Kl(), weight=self.kd_weight, name="normkd"),)


class LSKD(Preset):
    """Logit standardisation before plain KD."""

    title = "logit-standardisation KD"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    formula = "a CE + b T^2 KL(S(z'_t/T) || S(z'_s/T)), z' the z-scored logits"
    imagenet = {"ce_weight": 1.0}

    preset: Literal["lskd"] = "lskd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 9.0
    temperature: Temperature = 2.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Standardize(temperature=self.temperature)
        return (Term(policy=policy, loss=Kl(), weight=self.kd_weight, name="lskd"),)


class ATKD(Preset):
    """Adaptive temperature from the maximum logit. The authors give no ImageNet values; the same ones are used."""

    title = "adaptive temperature KD (maximum logit)"
    paper = "Matsuyama et al. 2025, arXiv 2503.09030"
    formula = "a CE + b T_n^2 KL(S(z'_t/T_n) || S(z'_s/T_n)), T_n = (1+sqrt 3)/2 max(|z'_s|, |z'_t|)"

    preset: Literal["atkd"] = "atkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 9.0
    form: Literal["released", "teacher_only"] = "released"

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=MaxLogit(form=self.form), loss=Kl(), weight=self.kd_weight, name="atkd"),)


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
    """Correlation of rows and columns."""

    title = "distillation from a stronger teacher (DIST)"
    paper = "Huang et al. NeurIPS 2022, arXiv 2205.10536"
    formula = "CE + b T^2 (beta (1 - rho over classes) + gamma (1 - rho over samples))"
    imagenet = {"temperature": 1.0}

    preset: Literal["dist"] = "dist"
    kd_weight: Weight = 2.0
    temperature: Temperature = 4.0
    beta: Weight = 1.0
    gamma: Weight = 1.0

    def _terms(self) -> tuple[Term, ...]:
        policy, loss = Fixed(temperature=self.temperature), Dist(beta=self.beta, gamma=self.gamma)
        return (Term(policy=policy, loss=loss, weight=self.kd_weight, name="dist"),)


class TTM(Preset):
    """Transformed teacher matching: a temperature on the teacher alone, 1 / the authors' ``ttm_l`` of 0.1."""

    title = "transformed teacher matching"
    paper = "Zheng & Yang ICLR 2024, arXiv 2402.11148"
    formula = "CE + b KL(S(z_t/T) || S(z_s))"

    preset: Literal["ttm"] = "ttm"
    kd_weight: Weight = 45.0
    temperature: Temperature = 10.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Asymmetric(student=1.0, teacher=self.temperature)
        return (Term(policy=policy, loss=Kl(), weight=self.kd_weight, name="ttm"),)


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


class MLKD(Preset):
    """Multi-level KD on one view, at the base temperature and four more; ``mlld`` is the method of two views."""

    title = "multi-level KD, one view"
    paper = "Jin et al. CVPR 2023; MLKD_NOAUG in the repository of arXiv 2408.07703"
    formula = "a CE + b sum_T (f_s T^2 KL + f_c class correlation + f_s batch correlation)"
    imagenet = {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["mlkd"] = "mlkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    temperature: Temperature = 4.0
    more_temperatures: Annotated[tuple[Temperature, ...], AtMost(8)] = (3.0, 5.0, 2.0, 6.0)

    def _terms(self) -> tuple[Term, ...]:
        return tuple(
            Term(policy=Fixed(temperature=temperature), loss=Mlkd(), weight=self.kd_weight, name=f"mlkd{number}")
            for number, temperature in enumerate((self.temperature, *self.more_temperatures), start=1)
        )


class MLLD(Preset):
    """Multi-level KD as released, on two views of each sample.

    The second view is the cache's next one; the authors' is RandAugment of the first. Of the second, the released code
    computes the divergence at three temperatures only; the other two are of the first view once more.
    """

    title = "multi-level KD, two views"
    paper = "Jin et al. CVPR 2023"
    formula = "a (CE + CE_2) + b (mlkd at 5 temperatures + T^2 KL_2 at T, 3, 5 + T^2 KL at 2, 6)"
    imagenet = {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["mlld"] = "mlld"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    temperature: Temperature = 4.0

    def _terms(self) -> tuple[Term, ...]:
        return two_view_terms(self.temperature, self.kd_weight, standardized=False)


def two_view_terms(temperature: float, weight: float, *, standardized: bool) -> tuple[Term, ...]:
    """The 10 (``standardized``: 15) terms of the two-view method; only its divergences are ever of z-scores."""
    terms: list[Term] = []

    def divergence(loss: Loss, tau: float, name: str, view: Literal[1, 2] = 1) -> None:
        policy = Standardize(temperature=tau) if standardized else Fixed(temperature=tau)
        terms.append(Term(policy=policy, loss=loss, weight=weight, name=name, view=view))

    for number, tau in enumerate((temperature, 3.0, 5.0, 2.0, 6.0), start=1):
        if standardized:
            divergence(Mlkd(cc=0.0, bc=0.0), tau, f"mlkd{number}_kd")
            matrices = Mlkd(kd=0.0)
            terms.append(Term(policy=Fixed(temperature=tau), loss=matrices, weight=weight, name=f"mlkd{number}"))
        else:
            divergence(Mlkd(), tau, f"mlkd{number}")
    for number, tau in enumerate((temperature, 3.0, 5.0), start=1):
        divergence(Kl(), tau, f"second{number}_kd", view=2)
    for number, tau in enumerate((2.0, 6.0), start=4):
        divergence(Kl(), tau, f"again{number}_kd")
    return tuple(terms)


class CTKD(Preset):
    """Curriculum temperature: one learned temperature that works against the student, ever more strongly."""

    title = "curriculum temperature KD"
    paper = "Li et al. AAAI 2023, arXiv 2211.16231"
    formula = "a CE + b T^2 KL(S(z_t/T) || S(z_s/T)), T = start + span sigmoid(theta), dL/dtheta reversed"
    imagenet = {"ce_weight": 1.0, "kd_weight": 1.0, "reversal_epochs": 5}

    preset: Literal["ctkd"] = "ctkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    start: Temperature = 1.0
    span: Temperature = 20.0
    theta: Finite = 1.0
    strength: Weight = 1.0
    reversal_epochs: Count = 10

    def _terms(self) -> tuple[Term, ...]:
        learned = {field: getattr(self, field) for field in Learned.model_fields if field in type(self).model_fields}
        return (Term(policy=Learned(**learned), loss=Kl(), weight=self.kd_weight, name="ctkd"),)


class ATS(Preset):
    """Asymmetric temperature scaling; the authors scan label temperatures 1 to 6 and others 1 to 5."""

    title = "asymmetric temperature scaling"
    paper = "Li et al. NeurIPS 2022, arXiv 2210.04427"
    formula = "a CE + b T_s^2 H(S(z_t/T_c), S(z_s/T_s)), T_c another for the label"
    verified = "own transcription of the authors' script"

    preset: Literal["ats"] = "ats"
    ce_weight: Weight = 0.5
    kd_weight: Weight = 0.5
    student_temperature: Temperature = 1.0
    teacher_temperature: Temperature = 3.0
    label_temperature: Temperature = 4.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Asymmetric(
            student=self.student_temperature,
            teacher=self.teacher_temperature,
            label_temperature=self.label_temperature,
        )
        return (Term(policy=policy, loss=CrossEntropy(), weight=self.kd_weight, name="ats"),)


class AnnealingKD(Preset):
    """First the logits alone, the teacher's fading in over ``steps`` steps; then cross-entropy alone.

    The authors stretch the steps over their first phase: give ``epochs_per_step`` = its epochs / ``steps``.
    """

    title = "annealing KD"
    paper = "Jafari et al. 2021, arXiv 2104.07163"
    formula = "mean_c (z_s - (t/n) z_t)^2 for t = 1..n, then CE"
    verified = "own transcription of the authors' script"

    preset: Literal["annealing_kd"] = "annealing_kd"
    kd_weight: Weight = 1.0
    steps: Count = 10
    epochs_per_step: Count = 1

    def _terms(self) -> tuple[Term, ...]:
        policy = Annealed(steps=self.steps, epochs_per_step=self.epochs_per_step)
        return (Term(policy=policy, loss=Mse(), weight=self.kd_weight),)

    def _distil_epochs(self) -> int | None:
        return self.steps * self.epochs_per_step


class LUD(Preset):
    """Logits uncertainty distillation: a reading of the abstract, not verified against the authors' code."""

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

    def _terms(self) -> tuple[Term, ...]:
        loss = Lud(**{field: getattr(self, field) for field in Lud.model_fields if field in type(self).model_fields})
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss, name="lud"),)
