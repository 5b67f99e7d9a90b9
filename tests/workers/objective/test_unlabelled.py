"""Objective of batches in which rows have no label: cross-entropy of the labelled rows, distillation of all."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workers.config.test_labels import SOME
from workers.methods.catalog import parse_method
from workers.objective.objective import objective
from workers.objective.statistics import batch_as_cache, row_statistics


def logits(seed: int, rows: int = 12, classes: int = 5) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


LABELS = torch.tensor([0, -1, 4, -1, -1, 2, 2, -1, 1, -1, -1, -1])


def losses(name: str, labels_B: Tensor, *, some_unlabelled: bool = True, **changes: object) -> tuple[Tensor, Tensor]:
    """(total, gradient [B, C]) of a method in its 5th epoch."""
    method = parse_method({"preset": name, **changes}).expand()
    student, teacher = logits(0).requires_grad_(), logits(1)
    total = objective(
        method,
        student,
        labels_B,
        epoch=5,
        epochs=40,
        teacher_logits_BC=teacher,
        teacher_statistics=row_statistics(teacher),
        learned={place: torch.tensor(value) for place, value in method.learned.items()},
        cache_statistics=batch_as_cache(method.cache_statistics, teacher),
        some_unlabelled=some_unlabelled,
    ).total
    return total.detach(), torch.autograd.grad(total, student)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_over_the_labelled_rows_of_the_batch(smoothing: float) -> None:
    student = logits(0).requires_grad_()
    found = objective(
        parse_method("ce").expand(), student, LABELS, epoch=1, label_smoothing=smoothing, some_unlabelled=True
    )
    rows = LABELS >= 0
    expected = F.cross_entropy(student[rows], LABELS[rows], label_smoothing=smoothing)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(torch.autograd.grad(found.total, student), torch.autograd.grad(expected, student))
    assert found.labelled_share is not None
    assert float(found.labelled_share) == pytest.approx(5 / 12)


@pytest.mark.parametrize("name", [name for name in SOME if name not in ("mlld", "lskd_mlkd")])
def test_distillation_of_methods_that_need_no_label_is_of_all_rows(name: str) -> None:
    """With the cross-entropy off, labels change nothing."""
    weight = {"ce_weight": 0.0}
    total, gradient = losses(name, LABELS, **weight)
    same, same_gradient = losses(name, LABELS.clamp(min=0), some_unlabelled=False, **weight)
    assert torch.equal(total, same)
    assert torch.equal(gradient, same_gradient)
    assert bool((gradient != 0).any(dim=1).all())


def test_batch_without_any_label_has_the_distillation_alone_and_is_finite() -> None:
    none = torch.full_like(LABELS, -1)
    total, gradient = losses("kd", none)
    expected, expected_gradient = losses("kd", none, ce_weight=0.0)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_labels_for_all_rows_give_what_they_give_without_the_mask() -> None:
    whole = LABELS.clamp(min=0)
    for name in ("kd", "normkd"):
        torch.testing.assert_close(losses(name, whole), losses(name, whole, some_unlabelled=False))
