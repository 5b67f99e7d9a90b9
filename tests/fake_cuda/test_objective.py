"""The objective on a CUDA device, counted on the fake one: it waits for nothing, copies nothing, launches little."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.fake_cuda.counts import Counts, counting
from tests.fake_cuda.processes import FakeCuda
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.methods.method import Method
from workers.objective.objective import objective_of
from workers.objective.statistics import SharedTeacherTerms, row_statistics
from workers.objective.view import View

pytestmark = pytest.mark.fake_cuda

NAMES = [name for name in PRESETS if name != "custom"]
EXPRESSION = {
    "preset": "custom",
    "terms": [
        {"policy": {"kind": "expression", "temperature": "clip(max / log(classes), 1, 16)"}, "name": "a"},
        {"policy": {"kind": "expression", "student": "2 + student_std", "teacher": "where(std > 1, std, 1)"}},
    ],
}
# Launches beyond those of cross-entropy alone, forward and backward to the logits.
BEYOND = {"ce": 0, "kd": 25, "dkd": 50, "rld": 50, "normkd": 50, "atkd": 58, "dtkd": 58, "mlkd": 230}
# Presets that are counted on rows without labels, too.
WITHOUT_LABELS = ("ce", "kd")
BATCH, CLASSES = 64, 100


# Made before training, on the host here, and so not counted; ``_measure`` moves them.
OVER_CACHE = {
    CacheStatistic("class_confidence", 4.0): torch.ones(CLASSES),
    CacheStatistic("confident_classes", 4.0): torch.arange(CLASSES // 2),
}

Seen = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def _view(device: torch.device) -> Seen:
    """Student logits, cached logits, cached statistics."""
    z_t_BC = torch.randn(BATCH, CLASSES)
    statistics = {name: x_B.to(device) for name, x_B in row_statistics(z_t_BC).items()}
    return torch.randn(BATCH, CLASSES, device=device).requires_grad_(), z_t_BC.half().to(device), statistics


def _measure() -> dict[str, Any]:
    """Of each method, and of cross-entropy by itself as ``bare``."""
    device = torch.device("cuda", 0)
    labels_B = torch.randint(CLASSES, (BATCH,)).to(device)
    OVER_CACHE.update({each: values.to(device) for each, values in OVER_CACHE.items()})
    seen = [_view(device), _view(device)]

    def bare() -> torch.Tensor:
        return F.cross_entropy(seen[0][0], labels_B)

    def count(total: Callable[[], torch.Tensor]) -> dict[str, int]:
        for _ in range(2):  # the first call loads libraries
            for z_BC, _, _ in seen:
                z_BC.grad = None
            torch.cuda.set_sync_debug_mode("error")
            with counting() as counts:
                torch.autograd.backward(total())
            torch.cuda.set_sync_debug_mode("default")
        return _summary(counts)

    counted = {"bare": count(bare)}
    for name in [*NAMES, "expression"]:
        method = parse_method(EXPRESSION if name == "expression" else name).expand()
        learned = {place: torch.tensor(theta).to(device).requires_grad_() for place, theta in method.learned.items()}
        counted[name] = count(functools.partial(_total, method, seen, labels_B, learned))
    few_B = torch.where(torch.arange(BATCH) % 8 == 0, 1, -1).to(device)
    for name in WITHOUT_LABELS:
        counted[f"{name} without labels"] = count(
            functools.partial(_total, parse_method(name).expand(), seen, few_B, {}, some_unlabelled=True)
        )
    return counted


def _total(
    method: Method,
    seen: list[Seen],
    labels_B: torch.Tensor,
    learned: dict[str, torch.Tensor],
    *,
    some_unlabelled: bool = False,
) -> torch.Tensor:
    views = [View(z_s_BC, z_t_BC, statistics, SharedTeacherTerms()) for z_s_BC, z_t_BC, statistics in seen]
    return objective_of(
        method,
        views,
        labels_B,
        epoch=3,
        epochs=10,
        learned=learned,
        cache_statistics=OVER_CACHE,
        some_unlabelled=some_unlabelled,
        check=False,
    ).total


def _summary(counts: Counts) -> dict[str, int]:
    return {
        "launches": counts.launches,
        "synchronisations": counts.synchronisations,
        "copies": counts.copies_to_device + counts.copies_to_host,
    }


@pytest.fixture(scope="module")
def counted(fake_cuda: FakeCuda) -> dict[str, Any]:
    return fake_cuda.call(_measure)


@pytest.mark.parametrize("name", [*NAMES, "expression", *(f"{name} without labels" for name in WITHOUT_LABELS)])
def test_objective_passes_nothing_between_host_and_device(name: str, counted: dict[str, Any]) -> None:
    assert (counted[name]["synchronisations"], counted[name]["copies"]) == (0, 0)


@pytest.mark.parametrize("name", BEYOND)
def test_objective_launches_little_beyond_cross_entropy(name: str, counted: dict[str, Any]) -> None:
    assert counted[name]["launches"] - counted["bare"]["launches"] <= BEYOND[name]
