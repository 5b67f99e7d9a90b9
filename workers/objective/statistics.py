"""Statistics of logits, on tensors, as losses and temperature policies are given them while a student trains.

Shapes: B batch, C classes, 1 kept for broadcasting; z_BC logits.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.methods.cache_statistics import CONFIDENCE, CacheStatistic
from workers.methods.cache_values import compute_cache_statistics
from workers.methods.policies.base import Temperatures
from workers.methods.policies.learned import Learned
from workers.objective.log_softmax import AutogradContext, one_hot, tempered
from workers.objective.reductions import maximum, minimum, standard_deviation

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    # Of equal ones, one has the gradient, as in the released code.
    "max": maximum,
    "min": minimum,
    "mean": lambda z_BC: z_BC.mean(dim=1, keepdim=True),
    # Unbiased, as in every released code, although one paper divides by C.
    "std": standard_deviation,
    "sharpness": lambda z_BC: z_BC.logsumexp(dim=1, keepdim=True),
}


class _WithSlope(torch.autograd.Function):
    """``PolicyBatch.with_slope``: dW/dby = slope (T_s - T_t), since W = T_s T_t and the sum is constant."""

    @staticmethod
    def forward(
        ctx: AutogradContext, student: Tensor, teacher: Tensor, weight: Tensor, by: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(student, teacher, slope)
        return student.view_as(student), teacher.view_as(teacher), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, slope = ctx.saved_tensors
        for_student, for_teacher, for_weight = gradients
        by = torch.addcmul(for_teacher - for_student, for_weight, student - teacher).mul_(slope)
        return None, None, None, by, None


class LiveStatistics(Mapping[str, Tensor]):
    """Statistics of logits at hand, [B, 1] each, computed when first asked for and differentiable.

    Args:
        z_BC: logits, float32 or float64, C >= 2.
    """

    def __init__(self, z_BC: Tensor) -> None:
        self._z_BC = z_BC
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            self._known[name] = FORMULAS[name](self._z_BC)
        return self._known[name]

    def detached(self) -> "LiveStatistics":
        """Return the same without gradient."""
        return LiveStatistics(self._z_BC.detach())

    def __iter__(self) -> Iterator[str]:
        return iter(FORMULAS)

    def __len__(self) -> int:
        return len(FORMULAS)


class SharedTeacherTerms:
    """Values derived from one batch's teacher, kept for the next student that trains on the same batch."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the value of ``key``, computed on the first call. It must not depend on a student."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]


class Logits:
    """One network's logits of a batch, and what the terms of a method derive from them, each computed once.

    Args:
        z_BC: logits; a student's are in ``dtype`` already.
        dtype: of the arithmetic, float32 or float64.
        known: where derived values are kept; a teacher's are those of all students of the batch.
        cache_statistics: over the cache that these are rows of; see ``methods.cache_statistics``.

    Attributes:
        z_BC: as they were given: to compare with each other, for which no arithmetic is needed.
    """

    def __init__(
        self,
        z_BC: Tensor,
        dtype: torch.dtype,
        known: SharedTeacherTerms,
        cache_statistics: Mapping[CacheStatistic, Tensor] = MappingProxyType({}),
    ) -> None:
        self.z_BC = z_BC
        self.cache_statistics = cache_statistics
        self._dtype = dtype
        self._known = known

    def derive(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the value of ``key``, computed from these logits alone on the first call."""
        return self._known.get((key, self._dtype), compute)

    @property
    def raw_BC(self) -> Tensor:
        """The logits in the dtype of the arithmetic."""
        return self.derive("raw", lambda: self.z_BC.to(self._dtype))

    @property
    def largest(self) -> Tensor:
        """The largest magnitude of all, []: NaN or infinite exactly if one of the logits is."""
        return self.derive("largest", lambda: torch.linalg.vector_norm(self.z_BC, torch.inf, dtype=self._dtype))

    @property
    def log_softmax_BC(self) -> Tensor:
        """log S(z): what softmax at any temperature may be taken of, in place of z."""
        return self.derive("log_softmax", lambda: self.z_BC.log_softmax(dim=1, dtype=self._dtype))

    def tempered(self, tau: Tensor | float) -> Tensor:
        """z / tau up to a shift per row: [B, C]. Where classes have their own temperatures, [B, C], nothing is shifted,
        for then softmax does not ignore it.
        """
        return tempered(self.base_BC(tau), tau)

    def base_BC(self, tau: Tensor | float) -> Tensor:
        """Return what ``tempered`` divides: the raw logits if classes have their own temperatures, else log S(z)."""
        return self.raw_BC if isinstance(tau, Tensor) and tau.shape[1] > 1 else self.log_softmax_BC

    def softened(self, tau: Tensor | float) -> Tensor:
        """log S(z / tau): [B, C]."""
        if isinstance(tau, Tensor):
            return self.tempered(tau).log_softmax(dim=1)
        if tau == 1.0:
            return self.log_softmax_BC
        return self.derive(("softened", tau), lambda: self.tempered(tau).log_softmax(dim=1))


def row_statistics(z_BC: Tensor) -> dict[str, Tensor]:
    """Compute a cache's statistics, for a teacher that is run live: name -> [B], in z_BC's dtype (at least float32)."""
    z_BC = z_BC.detach().to(torch.promote_types(z_BC.dtype, torch.float32))
    return {name: value_B1.squeeze(1) for name, value_B1 in LiveStatistics(z_BC).items()}


def batch_as_cache(wanted: Collection[CacheStatistic], z_BC: Tensor) -> dict[CacheStatistic, Tensor]:
    """Compute statistics over logits [B, C] that stand for a whole cache of a view, for a teacher that is run live."""
    if not wanted:
        return {}
    rows = {name: x_B.cpu().numpy()[np.newaxis] for name, x_B in row_statistics(z_BC).items()}
    z_BC = z_BC.detach().to(torch.promote_types(z_BC.dtype, torch.float32))
    values = compute_cache_statistics(wanted, rows, [z_BC.cpu().numpy()], z_BC.shape[1])
    return {statistic: torch.from_numpy(array).to(z_BC.device) for statistic, array in values.items()}


@dataclass(frozen=True)
class LiveBatch:
    """``policies.base.PolicyBatch`` of student logits z_BC with labels y_B, int64, at an epoch counted from 1.

    Attributes:
        parameter: the term's learned theta, [], if its policy has one.
        cache_statistics: over the teacher's cache; those of samples are of this batch's, [B].
    """

    z_BC: Tensor
    y_B: Tensor
    epoch: int
    epochs: int | None
    parameter: Tensor | None
    cache_statistics: Mapping[CacheStatistic, Tensor] = field(default_factory=dict)

    @property
    def xp(self) -> ModuleType:
        return torch

    @property
    def classes(self) -> int:
        return self.z_BC.shape[1]

    def full(self, value: float) -> Tensor:
        return self.z_BC.new_full((self.z_BC.shape[0], 1), value)

    def is_label(self) -> Tensor:
        return one_hot(self.y_B, self.z_BC)

    def detached(self, values: Tensor) -> Tensor:
        return values.detach()

    def detached_statistics(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if isinstance(statistics, LiveStatistics):
            return statistics.detached()
        return {name: values_B1.detach() for name, values_B1 in statistics.items()}

    def with_slope(self, shared: Temperatures, by: Tensor, slope: Tensor) -> Temperatures:
        student, teacher, weight = _WithSlope.apply(shared.student, shared.teacher, shared.weight, by, slope)
        return replace(shared, student=student, teacher=teacher, weight=weight)

    def of_cache(self, statistic: CacheStatistic) -> Tensor:
        values = self.cache_statistics[statistic].to(self.z_BC.dtype)
        if statistic.name == CONFIDENCE:
            values = values.index_select(0, self.y_B)
        return values.reshape(-1, 1).expand(self.z_BC.shape[0], 1)

    def theta(self, config: Learned, gradient_scale: float) -> Tensor:
        assert self.parameter is not None
        parameter = self.parameter.to(self.z_BC.dtype)
        # The value is the parameter's to the last bit, for what is added is zero.
        constant = parameter.detach()
        return constant + gradient_scale * (parameter - constant)
