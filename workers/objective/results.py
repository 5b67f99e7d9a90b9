"""Results on the way to an objective: of a loss, of a term of a method, and of the whole.

Shapes: B batch, 1 kept for broadcasting.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from torch import Tensor

from workers.methods.method import Method
from workers.methods.policies.base import Policy, Temperatures


@dataclass(frozen=True)
class SoftenedKl:
    """Placeholder of KL(S(z_t/T_t) || S(z_s/T_s)), [B]: those of all terms of one view are computed together."""

    temperatures: Temperatures


@dataclass(frozen=True)
class LossPart:
    """A summand: ``coefficient`` x the batch mean of ``weight`` x ``value``.

    Attributes:
        coefficient: which metrics do not show.
        value: [B] or [].
        weight: the policy's where it counts, and whatever else metrics show: a number, [B, 1] or [].
    """

    coefficient: float
    value: Tensor | SoftenedKl
    weight: Tensor | float = 1.0


@dataclass(frozen=True)
class LossResult:
    """Result of a loss: its parts, and its own temperatures if it has set them.

    Attributes:
        parts: by the names of the config's ``parts``, in their order.
        temperatures: the loss's own, for the metrics; None if it used the policy's.
    """

    parts: dict[str, LossPart]
    temperatures: Temperatures | None = None


@dataclass(frozen=True)
class Summand:
    """``factor`` x the mean of ``weight`` x ``value``, [B] or []; the weight is a number, [B, 1] or []."""

    name: str
    factor: float
    value: Tensor
    weight: Tensor | float

    def weighted(self) -> Tensor:
        """``weight`` x ``value``, as ``value`` is."""
        weight = self.weight
        if isinstance(weight, Tensor) and weight.ndim:
            weight = weight.squeeze(1)
        return self.value * weight

    def reduced(self) -> tuple[float, Tensor]:
        """A number and a [] whose product is the mean."""
        share, value = 1.0 / self.value.numel(), self.value
        if isinstance(self.weight, Tensor) and self.weight.ndim:
            return share, torch.dot(self.weight.squeeze(1), value)
        value = value.sum() if value.ndim else value
        return (share, self.weight * value) if isinstance(self.weight, Tensor) else (share * self.weight, value)


@dataclass(frozen=True)
class TermResult:
    """One term of a method in a batch."""

    policy: Policy
    temperatures: Temperatures
    summands: list[Summand]
    shown: Temperatures
    varies: bool


@dataclass(frozen=True)
class Objective:
    """One batch's loss.

    Attributes:
        total: [] with gradient: what to call ``backward`` on.
        names: of the terms, ``ce`` first.
        shares, values: a number and a [] each, detached, whose product is the term.
        student_temperature: of the first term whose temperatures vary, else of the first term: [B] detached, or a
            number if it is one for every batch of the epoch; None for a method without terms.
        teacher_temperature: likewise; the mean over classes where the label's class has its own.
        paper_temperature: likewise, the T of the method's paper, of both networks; None where it is what divides.
        labelled_share: share of rows with a label, []; None where all data are labelled.
        watched: [] each, detached: all finite, unless a check would raise; the total is the first.
        inside: boolean [B, 1] for each set of rows that some of the policies are defined for, see ``Policy.domain``.
    """

    total: Tensor
    names: tuple[str, ...]
    shares: Sequence[float]
    values: Sequence[Tensor]
    student_temperature: Tensor | float | None
    teacher_temperature: Tensor | float | None
    watched: Sequence[Tensor]
    inside: Sequence[Tensor] = ()
    paper_temperature: Tensor | float | None = None
    labelled_share: Tensor | None = None

    @property
    def inside_share(self) -> Tensor | None:
        """Share of rows, [], that lie in the domain of every policy; None if no policy has one."""
        return reduce(and_, self.inside).mean(dtype=torch.float32) if self.inside else None

    @property
    def terms(self) -> dict[str, Tensor]:
        """[] each, detached and unweighted: no method weight and no warm-up, but with the factors that belong to the
        term itself (T^2 and the like).
        """
        ce, *values = self.values
        means = torch._foreach_mul(values, self.shares[1:]) if values else ()
        return dict(zip(self.names, [ce, *means], strict=True))


def shown_temperature(tau: Tensor | float) -> Tensor | float:
    """Temperature for the metrics, [B] without gradient, the mean over classes; or a number."""
    if not isinstance(tau, Tensor):
        return tau
    return tau.detach().squeeze(1) if tau.shape[1] == 1 else tau.detach().mean(dim=1)


def domains_of(method: Method, terms: Sequence[TermResult]) -> tuple[Tensor, ...]:
    """Boolean [B, 1] of each set of rows that policies are defined for, once where terms of a view share it."""
    domains: dict[Hashable, Tensor] = {}
    for term, result in zip(method.terms, terms, strict=False):
        key, inside = (term.view, term.policy.domain_key), result.temperatures.inside
        if inside is not None and key not in domains:
            domains[key] = inside()
    return tuple(domains.values())
