"""The scalar that a student descends: cross-entropy plus a method's terms, from cached or live logits.

One function. It computes in float32 (float64 if the student's logits are float64) whatever the
cache's dtype and with autocast off, reads the teacher's statistics from what it is given and never
from the teacher's logits, and refuses a total that is not finite by naming the sample. It knows no
model, optimizer or store.

Shapes: B batch, C classes, 1 kept for broadcasting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.composition import Method
from workers.errors import NotFinite
from workers.live import Known, LiveBatch, LiveStatistics
from workers.losses import LOSSES
from workers.policy_configs import Expression, Fixed
from workers.softmax import tempered
from workers.temperature import POLICIES, Temperatures, first_unusable


@dataclass(frozen=True)
class View:
    """One view of a batch, seen by both networks.

    Attributes:
        student_logits_BC: with gradient; any float dtype.
        teacher_logits_BC: raw cached logits of the same view; needed if the method has terms.
        teacher_statistics: name -> [B] for at least ``method.statistics``, as cached;
            ``live.row_statistics`` makes them for a teacher that is run live.
        known: what other students have derived from the same teacher logits.
    """

    student_logits_BC: Tensor
    teacher_logits_BC: Tensor | None = None
    teacher_statistics: Mapping[str, Tensor] | None = None
    known: Known = field(default_factory=Known)


@dataclass(frozen=True)
class Objective:
    """One batch's loss.

    Attributes:
        total: [] with gradient: what to call ``backward`` on.
        terms: [] each, detached and unweighted: no method weight and no warm-up, but with the
            factors that belong to the term itself (T^2 and the like). ``ce`` is always among them.
        student_temperature_B: [B] detached, of the first term whose temperatures vary, else of the
            first term; None for a method without terms.
        teacher_temperature_B: likewise; the mean over classes where the label's class has its own.
    """

    total: Tensor
    terms: dict[str, Tensor]
    student_temperature_B: Tensor | None
    teacher_temperature_B: Tensor | None

    @property
    def student_temperature(self) -> Tensor | None:
        return self.student_temperature_B

    @property
    def teacher_temperature(self) -> Tensor | None:
        return self.teacher_temperature_B


@dataclass(frozen=True)
class _Summand:
    """``factor`` x the mean of ``value``, [B] or []."""

    name: str
    factor: float
    value: Tensor


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
    label_smoothing: float = 0.0,
) -> Objective:
    """``objective_of`` a first view, given by its parts as in ``View``, and of a second for a method of two."""
    views = [View(student_logits_BC, teacher_logits_BC, teacher_statistics)]
    if second is not None:
        views.append(second)
    return objective_of(
        method, views, labels_B, epoch=epoch, epochs=epochs, learned=learned, label_smoothing=label_smoothing
    )


def objective_of(
    method: Method,
    views: Sequence[View],
    labels_B: Tensor,
    *,
    epoch: int,
    epochs: int | None = None,
    learned: Mapping[str, Tensor] | None = None,
    label_smoothing: float = 0.0,
    check: bool = True,
) -> Objective:
    """The method's loss of one batch.

    Args:
        method: what to compute.
        views: of the same samples, at least ``method.views``; more are not looked at.
        labels_B: true classes, int64.
        epoch: counted from 1; the warm-up reads it.
        epochs: of the whole run; only expressions read it.
        learned: [] for each of ``method.learned``, with gradient: the parameters beside the student's.
        label_smoothing: of the cross-entropy alone.

    Raises:
        NotFinite: the total is NaN or infinite, or an expression gave a temperature that is not positive and finite;
            says which sample of the batch and which part. The check costs one device synchronisation per call, so
            that no update can use such a total.
        ValueError: shapes that do not fit, or something that the method needs and was not given.
    """
    if len(views) < method.views:
        raise ValueError(f"method {method.name!r} trains on two views of each sample; give the second")
    views = views[: method.views]
    if epoch < 1:
        raise ValueError(f"epoch is {epoch}; epochs are counted from 1")
    if missing := sorted(set(method.learned) - set(learned or {})):
        raise ValueError(f"method {method.name!r} learns the temperature of its terms {missing}; give their parameters")
    for view in views:
        _check(method, view, labels_B)
    first_BC = views[0].student_logits_BC
    dtype = torch.float64 if first_BC.dtype == torch.float64 else torch.float32
    with torch.autocast(device_type=first_BC.device.type, enabled=False):
        cast = [_cast(view, dtype) for view in views]
        ce_B = reduce(add, [_cross_entropy(view.student_logits_BC, labels_B, label_smoothing) for view in cast])
        ce_factor, scale = method.factors(epoch)
        summands, shown = [_Summand("ce", ce_factor, ce_B)], None
        if method.needs_teacher:
            distilled, shown = _distil(method, scale, cast, labels_B, epoch, epochs, learned or {})
            summands += distilled
        terms = {summand.name: summand.value.mean() for summand in summands}
        total = reduce(add, [summand.factor * terms[summand.name] for summand in summands])
    if check and not bool(torch.isfinite(total)):
        raise _not_finite(method.name, views, summands)
    return Objective(
        total=total,
        terms={name: value.detach() for name, value in terms.items()},
        student_temperature_B=None if shown is None else shown.student.detach().mean(dim=1),
        teacher_temperature_B=None if shown is None else shown.teacher.detach().mean(dim=1),
    )


def _check(method: Method, view: View, labels_B: Tensor) -> None:
    """The shapes and the presence of everything, without touching a value on the device."""
    shape = tuple(view.student_logits_BC.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise ValueError(f"student logits are {shape}; [batch >= 1, classes >= 2] is needed")
    if tuple(labels_B.shape) != shape[:1]:
        raise ValueError(f"labels are {tuple(labels_B.shape)}; the student's logits {shape}")
    if not method.needs_teacher:
        return
    if view.teacher_logits_BC is None or tuple(view.teacher_logits_BC.shape) != shape:
        got = None if view.teacher_logits_BC is None else tuple(view.teacher_logits_BC.shape)
        raise ValueError(f"method {method.name!r} needs teacher logits {shape}; got {got}")
    for name in method.statistics:
        value_B = (view.teacher_statistics or {}).get(name)
        if value_B is None or tuple(value_B.shape) != shape[:1]:
            got = None if value_B is None else tuple(value_B.shape)
            raise ValueError(
                f"method {method.name!r} reads the cached statistic {name!r}, {shape[:1]}; got "
                f"{got}. Pass the cache's, or row_statistics(teacher_logits) for a live teacher"
            )


def _cast(view: View, dtype: torch.dtype) -> View:
    """The same in the dtype of the arithmetic; the teacher's statistics as [B, 1], and constants."""
    logits_BC = view.teacher_logits_BC
    return View(
        view.student_logits_BC.to(dtype),
        None if logits_BC is None else view.known.get(dtype, lambda: logits_BC.detach().to(dtype)),
        {name: x_B.detach().to(dtype).unsqueeze(1) for name, x_B in (view.teacher_statistics or {}).items()},
        view.known,
    )


def _distil(
    method: Method,
    scale: float,
    views: list[View],
    labels_B: Tensor,
    epoch: int,
    epochs: int | None,
    learned: Mapping[str, Tensor],
) -> tuple[list[_Summand], Temperatures | None]:
    """Every term's parts with their full factors, and the temperatures worth showing."""
    students = [LiveStatistics(view.student_logits_BC) for view in views]
    summands: list[_Summand] = []
    varying: list[Temperatures] = []
    constant: list[Temperatures] = []
    for place, term in enumerate(method.terms):
        view, student = views[term.view - 1], students[term.view - 1]
        z_s_BC, z_t_BC, teacher = view.student_logits_BC, view.teacher_logits_BC, view.teacher_statistics
        assert z_t_BC is not None
        assert teacher is not None
        batch = LiveBatch(z_s_BC, labels_B, epoch, epochs, learned.get(str(place)))
        temperatures = POLICIES[term.policy.kind](student, teacher, term.policy, batch)
        if isinstance(term.policy, Expression) and (unusable := first_unusable(temperatures, torch)):
            sample = f"sample {unusable.sample} of the batch"
            raise NotFinite(f"method {method.name!r}: {unusable.explain(term.policy, sample)}", unusable.sample)
        if isinstance(term.policy, Fixed):
            temperatures = replace(temperatures, teacher_softened=_softener(view, temperatures, term.policy))
        result = LOSSES[term.loss.kind](z_s_BC, z_t_BC, labels_B, temperatures, term.loss)
        varies = result.temperatures is not None or term.policy.kind != "fixed"
        (varying if varies else constant).append(result.temperatures or temperatures)
        for name, part in zip(term.part_names, result.parts.values(), strict=True):
            factor = scale * term.weight * part.coefficient
            summands.append(_Summand(name, factor, part.value))
    return summands, next(iter(varying + constant), None)


def _softener(view: View, temperatures: Temperatures, policy: Fixed) -> Callable[[], Tensor]:
    """log S(z_t / T), the same for every student that asks for this T and dtype."""
    z_t_BC = view.teacher_logits_BC
    assert z_t_BC is not None
    key = (z_t_BC.dtype, policy.temperature)
    return lambda: view.known.get(key, lambda: tempered(z_t_BC, temperatures.teacher).log_softmax(dim=1))


def _cross_entropy(z_BC: Tensor, labels_B: Tensor, label_smoothing: float) -> Tensor:
    """-log S(z)[y] at T=1, mixed with the mean over classes by ``label_smoothing``: [B]."""
    ce_B: Tensor = F.cross_entropy(z_BC, labels_B, reduction="none", label_smoothing=label_smoothing)
    return ce_B


def _not_finite(name: str, views: Sequence[View], summands: list[_Summand]) -> NotFinite:
    """Why the total is not finite: the first sample with a bad input, else the first bad part."""
    where = f"the loss of method {name!r} is not finite: "
    for view in views:
        for source, z_BC, advice in (
            ("student", view.student_logits_BC, "lower the learning rate"),
            ("teacher", view.teacher_logits_BC, "verify the cache"),
        ):
            sample = None if z_BC is None else _first_bad(torch.isfinite(z_BC).all(dim=1))
            if sample is not None:
                what = f"the {source}'s logits of sample {sample} of the batch hold NaN or infinity"
                return NotFinite(f"{where}{what}; {advice}", sample)
    for part in summands:
        sample = _first_bad(torch.isfinite(part.value).reshape(-1))
        if sample is not None and part.value.ndim:
            return NotFinite(
                f"{where}{part.name!r} overflows on sample {sample} of the batch; lower the learning rate", sample
            )
        if sample is not None:
            return NotFinite(f"{where}{part.name!r} overflows on the batch as a whole; lower the learning rate")
    return NotFinite(f"{where}its parts are finite but their weighted sum is not; lower the weights")


def _first_bad(good_B: Tensor) -> int | None:
    return None if bool(good_B.all()) else int((~good_B).nonzero()[0, 0])
