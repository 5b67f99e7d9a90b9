"""Reason why an objective is not finite, with the sample and the part of the method."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.errors import NotFinite
from workers.methods.policies.expression import Expression
from workers.methods.policies.usable import first_unusable
from workers.objective.results import Summand, TermResult
from workers.objective.statistics import Logits
from workers.objective.view import View
from workers.unlabelled import NO_LABEL


def explain_not_finite(
    name: str, views: Sequence[View], labels_B: Tensor, students: Sequence[Logits], terms: Sequence[TermResult]
) -> NotFinite:
    """Explain why the total is not finite: an unusable temperature, else the first sample with a bad input, else the
    first bad part.
    """
    for term in terms:
        if isinstance(term.policy, Expression) and (unusable := first_unusable(term.temperatures, torch)):
            reason = unusable.explain(term.policy, f"sample {unusable.sample} of the batch")
            return NotFinite(f"method {name!r}: {reason}", unusable.sample)
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
    ce_B = [
        F.nll_loss(student.log_softmax_BC, labels_B, ignore_index=NO_LABEL, reduction="none")
        if view.mixed is None
        else view.mixed.negative_log_likelihood(student.log_softmax_BC, labels_B)
        for student, view in zip(students, views, strict=True)
    ]
    for part in (
        *(Summand("ce", 1.0, value_B, 1.0) for value_B in ce_B),
        *(part for term in terms for part in term.summands),
    ):
        value = part.weighted()
        sample = _first_bad(torch.isfinite(value).reshape(-1))
        if sample is not None and value.ndim:
            return NotFinite(
                f"{where}{part.name!r} overflows on sample {sample} of the batch; lower the learning rate", sample
            )
        if sample is not None:
            return NotFinite(f"{where}{part.name!r} overflows on the batch as a whole; lower the learning rate")
    return NotFinite(f"{where}its parts are finite but their weighted sum is not; lower the weights")


def _first_bad(good_B: Tensor) -> int | None:
    return None if bool(good_B.all()) else int((~good_B).nonzero()[0, 0])
