"""The scalar that a student descends: cross-entropy plus a method's terms, from cached or live logits.

One function. It computes in float32 (float64 if the student's logits are float64) whatever the
cache's dtype and with autocast off, reads the teacher's statistics from what it is given and never
from the teacher's logits, and refuses a total that is not finite by naming the sample. It knows no
model, optimizer or store.

With ``check=False`` it can be captured in a CUDA graph: no shape depends on a value, and nothing passes
between host and device. Numbers of the host (weights, warm-up, the epoch) are constants of such a graph.

Shapes: B batch, C classes, 1 kept for broadcasting.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.methods.cache_statistics import CacheStatistic
from workers.methods.method import Method
from workers.methods.policies.base import Temperatures
from workers.methods.policies.catalog import POLICIES
from workers.methods.policies.expression import Expression
from workers.methods.policies.usable import finite_if_usable
from workers.objective.distillation import LOSSES
from workers.objective.kl import compute_divergences
from workers.objective.log_softmax import AutogradContext
from workers.objective.not_finite import explain_not_finite
from workers.objective.results import (
    LossResult,
    Objective,
    SoftenedKl,
    Summand,
    TermResult,
    domains_of,
    shown_temperature,
)
from workers.objective.statistics import LiveBatch, LiveStatistics, Logits, SharedTeacherTerms
from workers.objective.view import View, check_cache_statistics, check_view
from workers.precision import without_autocast
from workers.unlabelled import NO_LABEL


def objective(
    method: Method,
    student_logits_BC: Tensor,
    labels_B: Tensor,
    *,
    epoch: int,
    epochs: int | None = None,
    teacher_logits_BC: Tensor | None = None,
    teacher_statistics: Mapping[str, Tensor] | None = None,
    second: View | None = None,
    learned: Mapping[str, Tensor] | None = None,
    cache_statistics: Mapping[CacheStatistic, Tensor] = MappingProxyType({}),
    label_smoothing: float = 0.0,
    some_unlabelled: bool = False,
    check: bool = True,
) -> Objective:
    """``objective_of`` a first view, given by its parts as in ``View``, and of a second for a method of two."""
    views = [View(student_logits_BC, teacher_logits_BC, teacher_statistics)]
    if second is not None:
        views.append(second)
    return objective_of(
        method,
        views,
        labels_B,
        epoch=epoch,
        epochs=epochs,
        learned=learned,
        cache_statistics=cache_statistics,
        label_smoothing=label_smoothing,
        some_unlabelled=some_unlabelled,
        check=check,
    )


def objective_of(
    method: Method,
    views: Sequence[View],
    labels_B: Tensor,
    *,
    epoch: int,
    epochs: int | None = None,
    learned: Mapping[str, Tensor] | None = None,
    cache_statistics: Mapping[CacheStatistic, Tensor] = MappingProxyType({}),
    label_smoothing: float = 0.0,
    some_unlabelled: bool = False,
    check: bool = True,
) -> Objective:
    """The method's loss of one batch.

    Args:
        method: what to compute.
        views: of the same samples, at least ``method.views``; more are not looked at.
        labels_B: true classes, int64; -1 for a row without one, where ``some_unlabelled``. Mixed pictures have second
            ones in ``View.mixed``; a method whose terms need one is not for those, see ``Method.one_label_readers``.
        epoch: counted from 1; the warm-up reads it.
        epochs: of the whole run; only expressions read it.
        learned: [] for each of ``method.learned``, with gradient: the parameters beside the student's.
        cache_statistics: values of at least ``method.cache_statistics``; those of samples are of this batch's, [B].
            ``statistics.batch_as_cache`` makes them for a teacher that is run live.
        label_smoothing: of the cross-entropy alone.
        some_unlabelled: rows of the data may have no label: the cross-entropy is the mean over the batch's rows with
            one, and 0 where there are none; the terms are of all rows. A method whose terms need the label is not for
            such data, see ``Method.needs_every_label``.
        check: whether to look at the values, which waits for the device. If not, one of ``Objective.watched`` is NaN or
            infinite wherever a check would raise ``NotFinite``: whoever takes a step by it looks first, on the device,
            and calls again with a check to learn why.

    Raises:
        NotFinite: the total, or a logit of the teacher under whatever loss, is NaN or infinite, or an expression gave a
            temperature that is not positive and finite; says which sample of the batch and which part.
        ValueError: shapes that do not fit, or something that the method needs and was not given.
    """
    if len(views) < method.views:
        raise ValueError(f"method {method.name!r} trains on two views of each sample; give the second")
    views = views[: method.views]
    if epoch < 1:
        raise ValueError(f"epoch is {epoch}; epochs are counted from 1")
    if missing := sorted(set(method.learned) - set(learned or {})):
        raise ValueError(f"method {method.name!r} learns the temperature of its terms {missing}; give their parameters")
    check_cache_statistics(method, cache_statistics)
    for view in views:
        check_view(method, view, labels_B)
    first_BC = views[0].student_logits_BC
    dtype = torch.float64 if first_BC.dtype == torch.float64 else torch.float32
    with without_autocast(first_BC.device.type):
        students = [Logits(view.student_logits_BC.to(dtype), dtype, SharedTeacherTerms()) for view in views]
        labelled = (labels_B >= 0).sum() if some_unlabelled else None
        pairs = zip(students, views, strict=True)
        ce = reduce(add, [_cross_entropy(*pair, labels_B, label_smoothing, labelled=labelled) for pair in pairs])
        ce_factor, scale = method.factors(epoch)
        teachers = [
            Logits(view.teacher_logits_BC.detach(), dtype, view.known, cache_statistics)
            for view in views
            if method.needs_teacher and view.teacher_logits_BC is not None
        ]
        batch_of = partial(LiveBatch, y_B=labels_B, epoch=epoch, epochs=epochs, cache_statistics=cache_statistics)
        terms = _distil(method, scale, views, students, teachers, labels_B, batch_of, learned or {})
        summands = [summand for term in terms for summand in term.summands]
        shares, values = zip((1.0, ce), *(summand.reduced() for summand in summands), strict=True)
        factors = [ce_factor, *(summand.factor * share for summand, share in zip(summands, shares[1:], strict=True))]
        total = weighted_sum(factors, values)
        for term in terms:
            if isinstance(term.policy, Expression):
                # Adds 0, or what 0 times infinity is.
                total = torch.add(total, finite_if_usable(term.temperatures, torch).detach().sum(), alpha=0.0)
    # Some losses are finite where a teacher rules classes out.
    watched = (total.detach(), *(teacher.largest for teacher in teachers))
    if check and not all(map(math.isfinite, watched)):
        raise explain_not_finite(method.name, views, labels_B, students, terms)
    shown = next(iter([term for term in terms if term.varies] + terms), None)
    return Objective(
        total=total,
        names=("ce", *(summand.name for summand in summands)),
        shares=shares,
        values=tuple(value.detach() for value in values),
        student_temperature=None if shown is None else shown_temperature(shown.shown.student),
        teacher_temperature=None if shown is None else shown_temperature(shown.shown.teacher),
        watched=watched,
        inside=domains_of(method, terms),
        paper_temperature=None if shown is None or shown.shown.paper is None else shown_temperature(shown.shown.paper),
        labelled_share=None if labelled is None else labelled / len(labels_B),
    )


def _distil(
    method: Method,
    scale: float,
    views: Sequence[View],
    students: list[Logits],
    teachers: list[Logits],
    labels_B: Tensor,
    batch_of: Callable[..., LiveBatch],
    learned: Mapping[str, Tensor],
) -> list[TermResult]:
    """Every term's parts, with their full factors, and temperatures."""
    if not method.needs_teacher:
        return []
    statistics = [LiveStatistics(student.raw_BC) for student in students]
    dtype = students[0].raw_BC.dtype
    computed: list[tuple[Temperatures, LossResult]] = []
    for place, term in enumerate(method.terms):
        student, teacher = students[term.view - 1], teachers[term.view - 1]
        cached = {name: (views[term.view - 1].teacher_statistics or {})[name] for name in term.policy.reads}
        batch = batch_of(student.raw_BC, parameter=learned.get(str(place)))
        temperatures = POLICIES[term.policy.kind](
            statistics[term.view - 1],
            {name: x_B.detach().to(dtype).unsqueeze(1) for name, x_B in cached.items()},
            term.policy,
            batch,
        )
        counted = temperatures if term.loss.scale == "tau_squared" else replace(temperatures, weight=1.0)
        mixed = views[term.view - 1].mixed
        y_B = mixed.heavier(labels_B) if mixed is not None and term.loss.takes_heavier_label else labels_B
        result = LOSSES[term.loss.kind](student, teacher, y_B, counted, term.loss)
        computed.append((temperatures, result))
    values = _values(method, students, teachers, [result for _, result in computed])
    terms = []
    for term, (temperatures, result), of_term in zip(method.terms, computed, values, strict=True):
        summands = [
            Summand(name, scale * term.weight * part.coefficient, of_term[key], part.weight)
            for name, (key, part) in zip(term.part_names, result.parts.items(), strict=True)
        ]
        varies = result.temperatures is not None or term.policy.kind != "fixed"
        terms.append(TermResult(term.policy, temperatures, summands, result.temperatures or temperatures, varies))
    return terms


def _values(
    method: Method, students: list[Logits], teachers: list[Logits], results: list[LossResult]
) -> list[dict[str, Tensor]]:
    """The value of every part of every term, the divergences of each view computed together."""
    values = [
        {key: part.value for key, part in result.parts.items() if isinstance(part.value, Tensor)} for result in results
    ]
    for view, (student, teacher) in enumerate(zip(students, teachers, strict=True), start=1):
        wanted = [
            (of_term, key, part.value)
            for term, result, of_term in zip(method.terms, results, values, strict=True)
            for key, part in result.parts.items()
            if term.view == view and isinstance(part.value, SoftenedKl)
        ]
        if wanted:
            found = compute_divergences(student, teacher, [one for _, _, one in wanted])
            for (of_term, key, _), value_B in zip(wanted, found, strict=True):
                of_term[key] = value_B
    return values


def _cross_entropy(
    student: Logits, view: View, labels_B: Tensor, label_smoothing: float, *, labelled: Tensor | None
) -> Tensor:
    """The mean of -log S(z)[y] at T=1, mixed with the mean over classes by ``label_smoothing``: [].

    Args:
        labelled: int64 [], rows with a label, over which the mean is; None if all have one.
    """
    log_p_BC, mixed = student.log_softmax_BC, view.mixed
    if labelled is not None:
        if mixed is None:
            total: Tensor = F.nll_loss(log_p_BC, labels_B, ignore_index=NO_LABEL, reduction="sum")
        else:
            total = mixed.negative_log_likelihood(log_p_BC, labels_B).sum()
        if label_smoothing > 0.0:
            over_classes_B = log_p_BC.mean(dim=1) * (labels_B >= 0)
            total = torch.lerp(total, -over_classes_B.sum(), label_smoothing)
        return total / labelled.clamp(min=1)
    if mixed is None:
        ce: Tensor = F.nll_loss(log_p_BC, labels_B)
    else:
        ce = mixed.negative_log_likelihood(log_p_BC, labels_B).mean()
    return ce if label_smoothing == 0.0 else torch.lerp(ce, -log_p_BC.mean(), label_smoothing)


class _FactorsContext(AutogradContext, Protocol):
    factors: Sequence[float]


def weighted_sum(factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of factor x value over [] values, in few kernels."""
    if len(values) < 3:
        return _add_up(factors, values)
    total: Tensor = _WeightedSum.apply(factors, *values)
    return total


def _add_up(factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    if len(values) > 3:
        return torch.stack(torch._foreach_mul(list(values), factors)).sum()
    total = values[0] if factors[0] == 1.0 else values[0] * factors[0]
    for factor, value in zip(factors[1:], values[1:], strict=True):
        total = torch.add(total, value, alpha=factor)
    return total


class _WeightedSum(torch.autograd.Function):
    """``weighted_sum`` whose derivatives are one kernel."""

    @staticmethod
    def forward(ctx: _FactorsContext, factors: Sequence[float], *values: Tensor) -> Tensor:
        ctx.factors = factors
        return _add_up(factors, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: _FactorsContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul([gradient] * len(ctx.factors), ctx.factors)
