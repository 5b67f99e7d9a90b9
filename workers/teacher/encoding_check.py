"""Check of a lossy cache's encoding: the gradient that a method has on it, beside the exact one.

A lossy cache keeps the exact logits of its first rows. For those, the gradient of a method's distillation terms with
respect to the student's logits is computed twice: from the exact logits and from the decoded ones, with the cached
statistics in both, as in training. The cosine of the angle between the two, row by row and then the mean, is what
decides; below ``BAR`` the student would learn something else than the method means.

The student is a stand-in that has learned a part of its teacher: 0.6 z + noise of standard deviation 1, the same noise
every time. Rows stand for both views of a method of two, and are compared in batches of 64, as methods that look at the
whole batch would have them.

What the figure leaves out: a sparse cache's soft targets are unbiased over the draws, so that errors of single rows
cancel over many views; a cosine sees each row alone. Whoever trusts in that, trains with ``allow_lossy``.

Shapes: R rows, b of a batch, C classes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from store import CacheSpec, Reference
from workers.errors import LossyCache
from workers.events import Emit, Log
from workers.methods.method import Method
from workers.objective.objective import objective_of
from workers.objective.statistics import batch_as_cache
from workers.objective.view import View
from workers.teacher.cache_plan import EncodingCheck

BAR = 0.98
BATCH = 64


def check_lossy_encoding(
    check: EncodingCheck, spec: CacheSpec, reference: Reference, labels_R: Tensor, *, emit: Emit
) -> None:
    """Log the cosine of every method's gradient on this cache.

    Args:
        labels_R: of the reference's rows, int64; -1 for one without.

    Raises:
        LossyCache: one is below ``BAR``, and that is not allowed.
        NotFinite: a method cannot be computed on these rows.
    """
    figures = {
        choice.label: cosine
        for choice in check.methods
        if (cosine := gradient_cosine(choice.expand(), reference, labels_R, check.epochs)) is not None
    }
    if not figures:
        return
    encoding = describe(spec)
    said = ", ".join(f"{label} {cosine:.4f}" for label, cosine in figures.items())
    if all(cosine >= BAR for cosine in figures.values()):
        emit(Log(message=f"encoding {encoding} keeps the gradient's direction, cosine on the first rows: {said}"))
        return
    message = (
        f"encoding {encoding} changes what is learned: the mean cosine between a method's gradient on the cached and "
        f"on the exact logits, for the first {len(labels_R)} rows, is: {said}; the bar is {BAR:g}"
    )
    if not check.allow_lossy:
        raise LossyCache(
            f"{message}. Use another encoding (uint8, dense), a higher top or tail, another temperature of the "
            'encoding or the method, or train nevertheless with "allow_lossy": true'
        )
    emit(Log(level="warning", message=f"{message}; allow_lossy is set, so it is trained nevertheless"))


def describe(spec: CacheSpec) -> str:
    """Name of an encoding and its parameters, for a message."""
    if isinstance(spec.encoding, str):
        return spec.encoding
    return f"sparse (top {spec.encoding.top}, tail {spec.encoding.tail}, temperature {spec.encoding.temperature:g})"


def gradient_cosine(method: Method, reference: Reference, labels_R: Tensor, epochs: int = 1) -> float | None:
    """The mean cosine over the rows, in the first epoch in which the method's terms count.

    Rows without a gradient on either side say nothing; None if that is all rows of all epochs.
    """
    if not method.needs_teacher:
        return None
    for epoch in range(1, epochs + 1):
        exact_RG, decoded_RG = (
            torch.cat(list(_gradients(method, logits_RC, reference, labels_R, epoch=epoch, epochs=epochs)))
            for logits_RC in (torch.from_numpy(reference.exact), torch.from_numpy(reference.decoded))
        )
        norms_R = exact_RG.norm(dim=1) * decoded_RG.norm(dim=1)
        counts_R = (exact_RG != 0).any(dim=1) | (decoded_RG != 0).any(dim=1)
        if bool((exact_RG != 0).any()):
            tiny = torch.finfo(torch.float64).tiny
            cosines_R = (exact_RG * decoded_RG).sum(dim=1) / norms_R.clamp(min=tiny)
            return float(cosines_R[counts_R].mean())
    return None


def _gradients(
    method: Method, logits_RC: Tensor, reference: Reference, labels_R: Tensor, *, epoch: int, epochs: int
) -> Iterator[Tensor]:
    """Per batch, the terms' gradient with respect to the student's logits of all views: float64 [b, views x C]."""
    terms_alone = method.model_copy(update={"ce_weight": 0.0})
    exact_RC = torch.from_numpy(reference.exact).double()
    generator = torch.Generator().manual_seed(0)
    students = [
        0.6 * exact_RC + torch.randn(exact_RC.shape, dtype=torch.float64, generator=generator)
        for _ in range(method.views)
    ]
    statistics = {name: torch.from_numpy(values_R) for name, values_R in reference.statistics.items()}
    # The first rows stand for the whole cache, which is not there yet.
    over_cache = batch_as_cache(method.cache_statistics, logits_RC)
    some_unlabelled = bool((labels_R < 0).any())
    for start in range(0, len(labels_R), BATCH):
        rows = slice(start, start + BATCH)
        given = [z_RC[rows].requires_grad_() for z_RC in students]
        here = {name: values_R[rows] for name, values_R in statistics.items()}
        views = [View(z_bC, logits_RC[rows], here) for z_bC in given]
        learned = {place: torch.tensor(value) for place, value in method.learned.items()}
        total = objective_of(
            terms_alone,
            views,
            labels_R[rows],
            epoch=epoch,
            epochs=epochs,
            learned=learned,
            cache_statistics={each: x[rows] if each.is_per_sample else x for each, x in over_cache.items()},
            some_unlabelled=some_unlabelled,
        ).total
        gradients = torch.autograd.grad(total, given, materialize_grads=True)
        yield torch.cat(gradients, dim=1)
