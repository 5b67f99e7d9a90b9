"""Base of temperature policies: what can be configured, what a policy sees, what it decides.

A policy is a frozen pydantic class, its configuration, and a pure function of arrays, (student statistics, teacher
statistics, config, batch) -> ``Temperatures``, both in one file. The same functions serve training, on tensors with
gradient, and the preview of a method, on NumPy arrays in a process without torch: array functions are taken from
``batch.xp``, whose NumPy and torch forms agree in name and arguments. No torch here.

A policy sees statistics (``store.statistics.STATISTICS``), never logits: the teacher's come from the cache as they were
measured on the unrounded logits, the student's are computed when a policy asks for them. Z-scoring is a temperature
too, because softmax ignores shifts: S((z - mean) / (std + eps) / T) = S(z / (T (std + eps))).

Every policy but the expression returns positive, finite temperatures for finite statistics. Where its formula gives
none (a maximum of the other sign, a constant row), that one sample falls back as the function's docstring says.

Shapes: B batch, C classes, 1 kept for broadcasting; tau_B1 temperatures. float32 or float64.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Protocol

from workers.methods.cache_statistics import CONFIDENCE, CacheStatistic
from workers.methods.expression import Array
from workers.spec import MethodPart

if TYPE_CHECKING:
    from workers.methods.policies.learned import Learned


class Policy(MethodPart):
    """Base of temperature policies.

    Attributes:
        domain: for which rows the formula gives the temperatures, and what the others take, as a sentence's part; None
            if for all. The share of the others is a metric of every epoch, ``outside_domain``.
        statistics: the cached teacher statistics that some form of the policy reads; it sees nothing else of the
            teacher.
        student_statistics: the same of the student's logits.
        reads_epoch: whether its temperatures may depend on the epoch. True unless it is said: a CUDA graph of the step
            holds what the policy made of the epoch, and is recorded again in the next one.
    """

    domain: ClassVar[str | None] = None
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
    def cache_statistics(self) -> tuple[CacheStatistic, ...]:
        """Statistics of the whole cache that this configuration reads, see ``PolicyBatch.of_cache``."""
        return ()

    @property
    def reads_level(self) -> bool:
        """Whether its temperatures depend on where the teacher's logits lie: a shift of a row changes them."""
        return False

    @property
    def domain_key(self) -> Hashable:
        """Equal for two policies whose domains are the same rows."""
        return self

    @property
    def gives_label_its_own(self) -> bool:
        """Whether the teacher's temperature differs between the label's class and the others."""
        return False

    @property
    def reads_label(self) -> bool:
        """Whether its temperatures depend on the sample's label."""
        of_label = any(statistic.name == CONFIDENCE for statistic in self.cache_statistics)
        return self.gives_label_its_own or of_label

    @property
    def z_scores(self) -> bool:
        """Whether dividing by its temperatures stands for z-scoring, which holds where shifts do not count."""
        return False


Statistics = Mapping[str, Array]
"""Name -> [B, 1]; the names are those of ``store.statistics.STATISTICS``."""


STD_EPS = 1e-7
"""Added to a standard deviation by the authors of logit standardisation; below it a row counts as constant."""


def neither_constant(student: Statistics, teacher: Statistics, xp: ModuleType) -> Array:
    """Boolean [B, 1], true where neither network's row is constant: the domain of policies that divide by its std."""
    return xp.minimum(student["std"], teacher["std"]) > STD_EPS


class PolicyBatch(Protocol):
    """Batch as a policy sees it: what it may know beside the statistics, and may do beside arithmetic."""

    @property
    def xp(self) -> ModuleType:
        """``torch`` or ``numpy``."""

    @property
    def classes(self) -> int:
        """Number of classes, C."""

    @property
    def epoch(self) -> int:
        """Epoch, counted from 1."""

    @property
    def epochs(self) -> int | None:
        """Number of epochs of the run; None where it is not known."""

    def full(self, value: float) -> Array:
        """Return [B, 1] of one value."""

    def is_label(self) -> Array:
        """Return a boolean [B, C], true at the sample's class."""

    def detached(self, values: Array) -> Array:
        """Return the same values without gradient."""

    def detached_statistics(self, statistics: Statistics) -> Statistics:
        """Return the same statistics without gradient."""

    def with_slope(self, shared: "Temperatures", by: Array, slope: Array) -> "Temperatures":
        """Return the same temperatures, with their derivatives by ``by``.

        Args:
            shared: temperatures [B, 1] of a constant sum, and their product as the weight, all without gradient.
            by: [B, 1], with gradient.
            slope: [B, 1], dT_t/dby, and so minus dT_s/dby.
        """

    def of_cache(self, statistic: CacheStatistic) -> Array:
        """Return a statistic over the cache, [B, 1]; of the row's sample or label where there is one for each."""

    def theta(self, config: "Learned", gradient_scale: float) -> Array:
        """Return the learned parameter [] of this term; its gradient is multiplied by ``gradient_scale``."""


@dataclass(frozen=True)
class Temperatures:
    """Temperatures and weight that a policy decides, per sample.

    Each is a ``float`` instead where it is one number for every sample of an epoch: a GPU then has nothing to compute.

    Attributes:
        student: tau_B1 > 0 that divides the student's logits; carries gradient where the authors' code does.
        teacher: tau_B1 > 0 that divides the teacher's logits; [B, C] where classes differ.
        weight: [B, 1] >= 0, the factor (T^2 or its like) that keeps gradients comparable over temperatures.
        inside: makes a boolean [B, 1], true for the rows of the policy's domain; None if it has no bounds. Made when
            asked for, since terms may share one.
        paper: the T of the method's paper, of both networks, where the two above are something else: z-scoring divides
            by T (std + eps). None where the two above are what the paper calls the temperature.
    """

    student: Array
    teacher: Array
    weight: Array
    inside: Callable[[], Array] | None = None
    paper: Array | None = None

    def as_arrays(self, batch: PolicyBatch) -> "Temperatures":
        """Return the same with [B, 1] in place of each ``float``."""
        sides = (self.student, self.teacher, self.weight)
        return Temperatures(*(batch.full(side) if isinstance(side, float) else side for side in sides))
