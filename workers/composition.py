"""What a method is made of: temperature policies, distillation losses, and terms that pair them. No torch here.

A **policy** turns statistics of the two logit rows into temperatures, a **loss** compares the two tempered rows, a
**term** is one policy with one loss and a weight, a **method** is cross-entropy plus terms. Any policy goes with any
loss. Each is a frozen pydantic class told apart by ``kind``; its class attributes are its documentation, and nothing
else about it is written down twice. The tensors live in ``temperature.py`` and ``losses.py``, the papers' own
combinations in ``methods.py``.

Notation of the formulas: z_s, z_t student and teacher logits of one sample, y its label, S softmax, T_s and T_t the
policy's temperatures and W its weight, p = S(z_t/T_t), q = S(z_s/T_s), C classes; losses are means over the batch of
sums over classes. std divides by C-1.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from workers.errors import InvalidMethod, UnknownName

# Strict: "4" and true are mistakes, not temperatures. The bounds keep T and T^2 well inside float32.
Temperature = Annotated[float, Field(strict=True, ge=1e-3, le=1e4, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0.0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0, allow_inf_nan=False)]
Epochs = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
TermName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Config(BaseModel):
    """Base of every class here: frozen, and an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise UnknownName(f"parameter of {cls._noun()}", str(key), cls.model_fields)
        return data

    @classmethod
    def _noun(cls) -> str:
        """What a message calls this class: the value of its ``kind`` or ``preset``, else its name."""
        for tag in ("preset", "kind"):
            if tag in cls.model_fields:
                return repr(cls.model_fields[tag].default)
        return cls.__name__.lower()


class Part(Config):
    """Base of policies and losses; the attributes are what ``describe_policies`` and the API tell.

    Attributes:
        title: one line for a person.
        formula: the mathematics as text.
        paper: where it comes from.
    """

    title: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]


# ---------------------------------------------------------------------------------------------------------- policies


class Policy(Part):
    """Base of temperature policies.

    Attributes:
        statistics: the cached teacher statistics that the policy reads; it sees nothing else of the teacher.
    """

    statistics: ClassVar[tuple[str, ...]] = ()


class Fixed(Policy):
    """One temperature for both networks and all samples."""

    title = "fixed temperature"
    formula = "T_s = T_t = T, W = T^2"
    paper = "Hinton et al. 2015, arXiv 1503.02531"

    kind: Literal["fixed"] = "fixed"
    temperature: Temperature = 4.0


class Dtkd(Policy):
    """Dynamic temperatures that make both tempered maxima equal: 2T is shared in proportion to the two maxima.

    The released code uses the signed maximum logit, not the paper's "sharpness" (logsumexp); so does this.
    """

    title = "dynamic temperature (maximum logit)"
    formula = "x = max z_t, y = max z_s; T_t = 2x/(x+y) T, T_s = 2y/(x+y) T, W = T_t T_s"
    paper = "Wei & Bai 2024, arXiv 2404.12711"
    statistics = ("max",)

    kind: Literal["dtkd"] = "dtkd"
    temperature: Temperature = 4.0


class Normkd(Policy):
    """Each network's temperature is proportional to the standard deviation of its own logits."""

    title = "temperature from the standard deviation"
    formula = "T_t = k std(z_t), T_s = k std(z_s), W = T_t^2"
    paper = "Chi et al. 2023, arXiv 2308.00520"
    statistics = ("std",)

    kind: Literal["normkd"] = "normkd"
    scale: Temperature = 2.0


class Standardize(Policy):
    """Logit standardisation. Softmax ignores shifts, so a z-score is a temperature and the mean plays no part."""

    title = "standardised logits"
    formula = "T_t = T (std(z_t) + eps), T_s = T (std(z_s) + eps), W = T^2"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    statistics = ("std",)

    kind: Literal["standardize"] = "standardize"
    temperature: Temperature = 2.0
    eps: Annotated[float, Field(strict=True, ge=1e-12, le=1.0, allow_inf_nan=False)] = 1e-7


class MaxLogit(Policy):
    """Temperature from the largest z-scored logit, z' = (z - mean) / (std + 1e-7); no gradient through it.

    ``released`` is what the authors' code computes, ``teacher_only`` what their abstract says.
    """

    title = "temperature from the maximum logit"
    formula = (
        "T_n = (1+sqrt 3)/2 max_c max(|z'_s|, |z'_t|) (released) or (1+sqrt 3)/2 max_c z'_t (teacher_only); "
        "T_t = T_n (std(z_t) + 1e-7), T_s = T_n (std(z_s) + 1e-7), W = T_n^2"
    )
    paper = "Matsuyama et al. 2025, arXiv 2503.09030"
    statistics = ("max", "min", "mean", "std")

    kind: Literal["max_logit"] = "max_logit"
    form: Literal["released", "teacher_only"] = "released"


# ------------------------------------------------------------------------------------------------------------ losses


class Loss(Part):
    """Base of distillation losses.

    Attributes:
        parts: names of the summands that the loss reports, in order.
        needs_labels: whether the true class enters the formula.
        needs_batch: whether a sample's loss depends on the other samples of its batch.
    """

    parts: ClassVar[tuple[str, ...]]
    needs_labels: ClassVar[bool] = False
    needs_batch: ClassVar[bool] = False


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


class Lud(Loss):
    """A reading of the abstract of LUD, not verified against the authors' code.

    Four parts: weights per class by the teacher's confidence, a mask of confident samples, a temperature per sample
    from the rank correlation of teacher and student, and rank-correlation losses over samples and over classes. The
    policy's temperature (4 in the preset) only measures confidence.

    Attributes:
        discount: weight of the classes at or below the median confidence.
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

    kind: Literal["lud"] = "lud"
    discount: Fraction = 0.5
    temperature_min: Temperature = 2.0
    temperature_max: Temperature = 6.0
    beta: Weight = 1.0
    class_weight: Weight = 1.0
    sample_weight: Weight = 1.0
    soft_rank_width: Annotated[float, Field(strict=True, ge=1e-3, le=10.0, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.temperature_min > self.temperature_max:
            raise InvalidMethod(
                f"temperature_min is {self.temperature_min} and temperature_max {self.temperature_max}; "
                "the first must not exceed the second"
            )
        return self


# ------------------------------------------------------------------------------------------------------------- union


def kinds(classes: tuple[type[Part], ...]) -> dict[str, type[Part]]:
    """Each class by the value of its ``kind``."""
    return {cls.model_fields["kind"].default: cls for cls in classes}


POLICY_CLASSES: tuple[type[Policy], ...] = (Fixed, Dtkd, Normkd, Standardize, MaxLogit)
LOSS_CLASSES: tuple[type[Loss], ...] = (Kl, Dkd, Rld, Lud)


def _known_kind(noun: str, classes: tuple[type[Part], ...]) -> BeforeValidator:
    """Accept a bare name for a mapping with only a ``kind``; refuse an unknown one with the nearest."""
    known = kinds(classes)

    def check(value: object) -> object:
        value = {"kind": value} if isinstance(value, str) else value
        if isinstance(value, Mapping):
            if "kind" not in value:
                raise InvalidMethod(f'a {noun} needs "kind", one of {", ".join(known)}; got {dict(value)!r:.80}')
            if value["kind"] not in known:
                raise UnknownName(noun, str(value["kind"]), known)
        return value

    return BeforeValidator(check)


PolicyConfig = Annotated[
    Fixed | Dtkd | Normkd | Standardize | MaxLogit,
    Field(discriminator="kind"),
    _known_kind("temperature policy", POLICY_CLASSES),
]
LossConfig = Annotated[
    Kl | Dkd | Rld | Lud,
    Field(discriminator="kind"),
    _known_kind("loss", LOSS_CLASSES),
]


class Term(Config):
    """One summand of a method: ``weight`` x loss at the policy's temperatures.

    Attributes:
        name: what metrics call it; None takes the names of the loss's parts.
    """

    policy: PolicyConfig = Fixed()
    loss: LossConfig = Kl()
    weight: Weight = 1.0
    name: TermName | None = None

    @property
    def part_names(self) -> tuple[str, ...]:
        """What metrics call the loss's parts: the term's name if there is one part, else both names."""
        parts = self.loss.parts
        if self.name is None:
            return parts
        return (self.name,) if len(parts) == 1 else tuple(f"{self.name}_{part}" for part in parts)


class Method(Config):
    """``ce_weight`` x cross-entropy of the raw student logits at T=1, plus the warmed-up terms.

    Attributes:
        name: for messages and metrics.
        warmup_epochs: every term (never the cross-entropy) is scaled by min(epoch / warmup_epochs, 1), epoch from 1.
    """

    name: str
    ce_weight: Weight = 1.0
    terms: Annotated[tuple[Term, ...], Field(max_length=32)] = ()
    warmup_epochs: Epochs = 0

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.ce_weight == 0 and not any(term.weight for term in self.terms):
            raise InvalidMethod(f"method {self.name!r} has only zero weights: give ce_weight or a term a weight > 0")
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = ["ce", *(name for term in self.terms for name in term.part_names)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidMethod(f"two terms of method {self.name!r} are called {twice[0]!r}: give each its own name")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether teacher logits are read at all."""
        return bool(self.terms)

    @property
    def needs_labels(self) -> bool:
        """Whether the true class enters the total, through cross-entropy or a term."""
        return self.ce_weight > 0 or any(term.loss.needs_labels for term in self.terms)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the cached teacher statistics that the policies read, sorted."""
        return tuple(sorted({name for term in self.terms for name in term.policy.statistics}))

    def warmup_factor(self, epoch: int) -> float:
        """Scale of the terms in an epoch (counted from 1): the authors' epoch 1 of 20 has 0.05, none has 0."""
        return min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
