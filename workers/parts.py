"""The configuration of temperature policies and distillation losses, a frozen pydantic class each. No torch here.

Each is told apart by ``kind``; its class attributes are its documentation, and nothing else about it is written down
twice. The tensors live in ``temperature.py`` and ``losses.py``; ``composition.py`` pairs them.

Notation of the formulas: z_s, z_t student and teacher logits of one sample, y its label, S softmax, T_s and T_t the
policy's temperatures and W its weight, p = S(z_t/T_t), q = S(z_s/T_s), H(a, b) cross-entropy, C classes; losses are
means over the batch of sums over classes. std divides by C-1.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.errors import InvalidMethod, UnknownName

# Strict: "4" and true are mistakes, not temperatures. The bounds keep T and T^2 well inside float32.
Temperature = Annotated[float, Field(strict=True, ge=1e-3, le=1e4, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0.0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class Config(BaseModel):
    """Base of every class here: frozen, and an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise UnknownName(cls._kind_of_key(), str(key), cls.model_fields)
        return data

    @classmethod
    def _kind_of_key(cls) -> str:
        """What a message calls a key of this class, after its ``kind`` or ``preset``, else after its name."""
        for tag in ("preset", "kind"):
            if tag in cls.model_fields:
                return f"parameter of {cls.model_fields[tag].default!r}"
        return f"parameter of {cls.__name__.lower()}"


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


class Annealed(Policy):
    """The teacher's logits fade in: at step t of n they count t/n, a new step every ``epochs_per_step`` epochs."""

    title = "annealed teacher"
    formula = "t = min(1 + (epoch-1) // epochs_per_step, n); T_t = n/t, T_s = 1, W = 1"
    paper = "Jafari et al. 2021, arXiv 2104.07163"

    kind: Literal["annealed"] = "annealed"
    steps: Count = 10
    epochs_per_step: Count = 1


class Asymmetric(Policy):
    """A temperature for each network, and on the teacher's side one of its own for the label's class.

    ``label_temperature`` None gives the label's class the teacher's temperature too.
    """

    title = "asymmetric temperatures"
    formula = "T_s = student; T_t = label_temperature for c = y, teacher otherwise; W = T_s^2"
    paper = "Li et al. NeurIPS 2022, arXiv 2210.04427"

    kind: Literal["asymmetric"] = "asymmetric"
    student: Temperature = 1.0
    teacher: Temperature = 3.0
    label_temperature: Temperature | None = None


# ------------------------------------------------------------------------------------------------------------ losses


class Loss(Part):
    """Base of distillation losses.

    Attributes:
        parts: names of the summands that the loss reports, in order.
        needs_labels: whether the true class enters the formula.
        needs_batch: whether a sample's loss depends on the other samples of its batch.
        one_temperature: whether the formula is defined only for one teacher temperature per sample.
    """

    parts: ClassVar[tuple[str, ...]]
    needs_labels: ClassVar[bool] = False
    needs_batch: ClassVar[bool] = False
    one_temperature: ClassVar[bool] = False


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

    A class has no temperature of its own, so the second part takes the batch's mean weight.
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
    """KL over the pairwise differences of the top logits: the teacher's top, then the student's. W plays no part."""

    title = "bi-directional logit differences"
    formula = "KL over softmax of (x_i - x_j), i<j among the leader's top k, x = z/T; teacher-led + student-led"
    paper = "Li et al. COLING 2025, arXiv 2406.13555"
    parts = ("teacher_led", "student_led")

    kind: Literal["bild"] = "bild"
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


class Mse(Loss):
    """Squared difference of the tempered logits themselves, mean over classes. Not shift invariant."""

    title = "mean squared error of logits"
    formula = "W mean_c (z_s/T_s - z_t/T_t)^2"
    paper = "Jafari et al. 2021, arXiv 2104.07163"
    parts = ("mse",)

    kind: Literal["mse"] = "mse"


class Lud(Loss):
    """A reading of the abstract of LUD, not verified against the authors' code.

    Four parts: weights per class by the teacher's confidence, a mask of confident samples, a temperature per sample
    from the rank correlation of teacher and student, and rank-correlation losses over samples and over classes. The
    policy's temperature (4 in the preset) only measures confidence. Costs B C^2 comparisons a step: dear beyond a few
    hundred classes on a CPU.

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
