"""Objective of mixed pictures: cross-entropy with both labels, and what becomes of losses that take one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workers.config.test_mixed_views import FOR_MIXED
from workers.methods.catalog import parse_method
from workers.objective.mixed_labels import MixedLabels
from workers.objective.objective import objective_of
from workers.objective.statistics import batch_as_cache, row_statistics
from workers.objective.view import View
from workers.training.metrics.epoch_sums import EpochSums

OWN = torch.tensor([0, 3, 4, 1, 1, 2, 2, 0])
OTHERS = torch.tensor([1, 3, 0, 2, 4, 4, 0, 0])
SHARES = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 0.9, 0.4, 0.6])
MIXED = MixedLabels(OTHERS, SHARES)


def logits(seed: int, rows: int = 8, classes: int = 5) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def soft_labels() -> Tensor:
    """Float64 [B, C]."""
    share_B1 = SHARES.double()[:, None]
    return share_B1 * F.one_hot(OWN, 5) + (1 - share_B1) * F.one_hot(OTHERS, 5)


def losses(name: object, labels_B: Tensor, mixed: MixedLabels | None, **changes: object) -> tuple[float, Tensor]:
    """(total, gradient [B, C] of the first view) of a method in its 30th epoch."""
    method = parse_method(name).expand()
    students, teachers = [logits(k).requires_grad_() for k in (0, 2)], [logits(k) for k in (1, 3)]
    views = [
        View(z_BC, t_BC, row_statistics(t_BC), mixed=mixed) for z_BC, t_BC in zip(students, teachers, strict=True)
    ][: method.views]
    total = objective_of(
        method,
        views,
        labels_B,
        epoch=30,
        epochs=40,
        learned={place: torch.tensor(value) for place, value in method.learned.items()},
        cache_statistics=batch_as_cache(method.cache_statistics, teachers[0]),
        **changes,
    ).total
    return float(total.detach()), torch.autograd.grad(total, students[0])[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_pictures_is_that_with_soft_labels(smoothing: float) -> None:
    total, gradient = losses("ce", OWN, MIXED, label_smoothing=smoothing)
    z_BC = logits(0).requires_grad_()
    expected = F.cross_entropy(z_BC, soft_labels(), label_smoothing=smoothing)
    assert total == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z_BC)[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", FOR_MIXED)
def test_distillation_of_mixed_pictures_is_that_of_the_teachers_answer(name: str) -> None:
    """The labels of mixed pictures are in the cross-entropy alone, of each view."""
    method = parse_method(name).expand()
    mixed, hard = losses(name, OWN, MIXED)[0], losses(name, OWN, None)[0]
    ce = [F.cross_entropy(logits(k), soft_labels()) - F.cross_entropy(logits(k), OWN) for k in (0, 2)[: method.views]]
    factor, _ = method.factors(30)
    assert mixed - hard == pytest.approx(factor * float(sum(ce)), rel=1e-6, abs=1e-9)


def test_nkd_takes_the_label_with_the_larger_share_for_the_true_one() -> None:
    method = {"preset": "custom", "ce_weight": 0.0, "terms": [{"loss": "nkd"}]}
    heavier = torch.tensor([1, 3, 4, 1, 1, 2, 0, 0])
    total, gradient = losses(method, OWN, MIXED)
    expected, of_heavier = losses(method, heavier, None)
    assert total == expected
    assert torch.equal(gradient, of_heavier)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_without_labels_add_nothing_to_the_cross_entropy_of_mixed_pictures(smoothing: float) -> None:
    known = torch.tensor([True, False, True, True, False, True, False, True])
    own, others = torch.where(known, OWN, -1), torch.where(known, OTHERS, -1)
    unlabelled = {"some_unlabelled": True, "label_smoothing": smoothing}
    total, gradient = losses("ce", own, MixedLabels(others, SHARES), **unlabelled)
    expected = F.cross_entropy(logits(0)[known], soft_labels()[known], label_smoothing=smoothing)
    assert total == pytest.approx(float(expected), rel=1e-12)
    assert not gradient[~known].any()
    none_B = torch.full((8,), -1)
    assert losses("ce", none_B, MixedLabels(none_B, SHARES), **unlabelled)[0] == 0.0


def test_train_accuracy_of_mixed_pictures_counts_each_label_with_its_share() -> None:
    """As mixup's authors count it."""
    z_BC, sums = logits(0), EpochSums(torch.device("cpu"))
    predicted = z_BC.argmax(1)
    outcome = objective_of(parse_method("ce").expand(), [View(z_BC, mixed=MIXED)], OWN, epoch=1)
    sums.add(outcome, z_BC, OWN, torch.zeros(()), mixed=MIXED)
    sums.count(8)
    expected = (SHARES * (predicted == OWN) + (1 - SHARES) * (predicted == OTHERS)).mean()
    assert sums.read().means["train_accuracy"] == pytest.approx(float(expected), rel=1e-6)
    assert 0 < float(expected) < 1
