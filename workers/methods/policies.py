"""Temperature policies: what can be configured about each, a frozen pydantic class per policy. No torch here.

``temperature.py`` computes them; ``spec.py`` has the notation of the formulas.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.errors import InvalidMethod
from workers.methods.expression import TEACHER_STATISTICS, parse
from workers.methods.expression import Expression as ParsedExpression
from workers.spec import Count, Finite, Flag, MethodPart, Temperature, Weight, by_kind


def _readable(text: str) -> str:
    parse(text)
    return text


ExpressionText = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_readable)]


class Policy(MethodPart):
    """Base of temperature policies.

    Attributes:
        statistics: the cached teacher statistics that some form of the policy reads; it sees nothing else of the
            teacher.
        student_statistics: the same of the student's logits.
        reads_epoch: whether its temperatures may depend on the epoch. True unless it is said: a CUDA graph of the step
            holds what the policy made of the epoch, and is recorded again in the next one.
    """

    statistics: ClassVar[tuple[str, ...]] = ()
    student_statistics: ClassVar[tuple[str, ...]] = ()
    reads_epoch: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The cached teacher statistics that this configuration reads."""
        return self.statistics

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        """The student's statistics that this configuration reads."""
        return self.student_statistics

    @property
    def gives_label_its_own(self) -> bool:
        """Whether the teacher's temperature differs between the label's class and the others."""
        return False

    @property
    def z_scores(self) -> bool:
        """Whether dividing by its temperatures stands for z-scoring, which holds where shifts do not count."""
        return False


class Fixed(Policy):
    """One temperature for both networks and all samples."""

    title = "fixed temperature"
    formula = "T_s = T_t = T, W = T^2"
    paper = "Hinton et al. 2015, arXiv 1503.02531"
    reads_epoch = False

    kind: Literal["fixed"] = "fixed"
    temperature: Temperature = 4.0


class Dtkd(Policy):
    """Dynamic temperatures that make both networks equally sharp: 2T is shared in proportion to their sharpness.

    ``max`` is what the released code and the paper's result use, the signed maximum logit; ``sharpness`` is the
    paper's definition of the word, the logsumexp, from which the maximum is derived. The formula is used where both
    networks' values have one sign and differ by a factor of at most 100; beyond, one temperature and with it the loss
    would be negative or the gradient unbounded, and the sample takes the base temperature for both networks.
    """

    title = "dynamic temperature"
    formula = "x, y = max (or logsumexp) of z_t, z_s; T_t = 2x/(x+y) T, T_s = 2y/(x+y) T, W = T_t T_s"
    paper = "Wei & Bai 2024, arXiv 2404.12711"
    reads_epoch = False
    statistics = ("max", "sharpness")
    student_statistics = ("max", "sharpness")

    kind: Literal["dtkd"] = "dtkd"
    temperature: Temperature = 4.0
    statistic: Literal["max", "sharpness"] = "max"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.statistic,)

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return self.reads


class Normkd(Policy):
    """Each network's temperature is proportional to the standard deviation of its own logits."""

    title = "temperature from the standard deviation"
    formula = "T_t = k std(z_t), T_s = k std(z_s), W = T_t^2"
    paper = "Chi et al. 2023, arXiv 2308.00520"
    reads_epoch = False
    statistics = ("std",)
    student_statistics = ("std",)

    kind: Literal["normkd"] = "normkd"
    scale: Temperature = 2.0


class Standardize(Policy):
    """Logit standardisation. Softmax ignores shifts, so a z-score is a temperature and the mean plays no part."""

    title = "standardised logits"
    formula = "T_t = T (std(z_t) + eps), T_s = T (std(z_s) + eps), W = T^2"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    reads_epoch = False
    statistics = ("std",)
    student_statistics = ("std",)

    kind: Literal["standardize"] = "standardize"
    temperature: Temperature = 2.0
    eps: Annotated[float, Field(strict=True, ge=1e-12, le=1.0, allow_inf_nan=False)] = 1e-7

    @property
    def z_scores(self) -> bool:
        return True


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
    reads_epoch = False
    statistics = ("max", "min", "mean", "std")
    student_statistics = ("max", "min", "mean", "std")

    kind: Literal["max_logit"] = "max_logit"
    form: Literal["released", "teacher_only"] = "released"

    @property
    def reads(self) -> tuple[str, ...]:
        return self.statistics if self.form == "released" else ("max", "mean", "std")

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return self.student_statistics if self.form == "released" else ("std",)

    @property
    def z_scores(self) -> bool:
        return True


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
    reads_epoch = False

    kind: Literal["asymmetric"] = "asymmetric"
    student: Temperature = 1.0
    teacher: Temperature = 3.0
    label_temperature: Temperature | None = None

    @property
    def gives_label_its_own(self) -> bool:
        return self.label_temperature is not None


class Learned(Policy):
    """One temperature for everything, learned against the student: its gradient is reversed, ever more strongly.

    theta is a parameter beside the student's, in the same optimizer. Its gradient is multiplied by -strength times
    lambda, which rises from 0 to 1 along half a cosine over ``reversal_epochs``. ``standardize`` learns the
    temperature of z-scored logits instead of raw ones.
    """

    title = "learned temperature (curriculum)"
    formula = (
        "T = start + span sigmoid(theta), W = T^2, T_s = T_t = T (standardize: times std(z) + 1e-7); dL/dtheta times "
        "-strength (1 - cos(pi min(epoch, N)/N))/2, N = reversal_epochs"
    )
    paper = "Li et al. AAAI 2023, arXiv 2211.16231"
    statistics = ("std",)
    student_statistics = ("std",)

    kind: Literal["learned"] = "learned"
    start: Temperature = 1.0
    span: Temperature = 20.0
    theta: Finite = 1.0
    strength: Weight = 1.0
    reversal_epochs: Count = 10
    standardize: Flag = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("std",) if self.standardize else ()

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return self.reads

    @property
    def z_scores(self) -> bool:
        return self.standardize


class Expression(Policy):
    """Temperatures written as text over the cached statistics; no deployment is needed for a new idea.

    Names: ``max``, ``min``, ``mean``, ``std``, ``sharpness`` of the teacher, the same with ``student_`` of the
    student, ``classes``, ``epoch`` (from 1), ``epochs``. Functions: min, max, clip, log, exp, sqrt, abs, tanh,
    where(condition, then, otherwise). A temperature that is not positive and finite stops the run and names the
    sample.

    Attributes:
        temperature: of both networks; or give ``student`` and ``teacher`` apart.
        student: of the student's logits.
        teacher: of the teacher's logits.
        weight: W >= 0; None is T_s T_t.
        detach: whether the temperatures and the weight carry no gradient to the student's statistics.
    """

    title = "expression over the statistics"
    formula = "T_s, T_t and W as written, W = T_s T_t if it is not given"
    paper = "none"
    statistics = TEACHER_STATISTICS
    student_statistics = TEACHER_STATISTICS

    kind: Literal["expression"] = "expression"
    temperature: ExpressionText | None = None
    student: ExpressionText | None = None
    teacher: ExpressionText | None = None
    weight: ExpressionText | None = None
    detach: Flag = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in ("temperature", "student", "teacher") if getattr(self, name) is not None]
        if given not in (["temperature"], ["student", "teacher"]):
            raise InvalidMethod(
                f"policy 'expression' takes temperature, or student and teacher; got {' and '.join(given) or 'neither'}"
            )
        return self

    @property
    def parsed(self) -> dict[str, ParsedExpression]:
        """``student``, ``teacher`` and, if it is given, ``weight``."""
        texts = {
            "student": self.student or self.temperature,
            "teacher": self.teacher or self.temperature,
            "weight": self.weight,
        }
        return {name: parse(text) for name, text in texts.items() if text is not None}

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.parsed.values() for name in one.teacher_statistics}))

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.parsed.values() for name in one.student_statistics}))


POLICY_CLASSES: dict[str, type[Policy]] = by_kind(Policy)
