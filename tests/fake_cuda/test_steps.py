"""A training step on a CUDA device, counted on the fake one: it never waits, and launches little beside the student."""

from typing import Any

import pytest

from tests.fake_cuda.processes import FakeCuda
from tests.fake_cuda.steps import ALL, measure_epoch_end, measure_group, measure_options, measure_presets

pytestmark = [pytest.mark.fake_cuda, pytest.mark.timeout(900)]

# Launches of a step beyond those of cross-entropy and nothing else.
BEYOND = {"kd": 45, "dkd": 75, "rld": 75, "dtkd": 75, "normkd": 75, "atkd": 75}
TOGETHER = 0.85
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("rmsprop", "adam")


def _everything() -> dict[str, Any]:
    return {
        "float32": measure_presets(ALL, "float32"),
        "bfloat16": measure_presets(list(BEYOND), "bfloat16"),
        "options": {optimizer: measure_options(optimizer) for optimizer in OPTIMIZERS},
        "group": {precision: measure_group(precision) for precision in PRECISIONS},
        # Learned temperatures and two views are more to save and to read.
        "end": {preset: measure_epoch_end(preset) for preset in ("kd", "ctkd", "mlld")},
    }


@pytest.fixture(scope="module")
def counted(fake_cuda: FakeCuda) -> dict[str, Any]:
    """All that is counted, in one process on the fake device."""
    return fake_cuda.call(_everything)


@pytest.mark.parametrize("preset", ALL)
def test_training_step_never_waits_for_the_device(preset: str, counted: dict[str, Any]) -> None:
    step = counted["float32"][preset]
    assert step["synchronising"] == []
    assert (step["synchronisations"], step["blocking_copies"]) == (0, 0)


@pytest.mark.parametrize("graph", ["off", "on"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_step_with_every_option_never_waits_for_the_device(
    optimizer: str, graph: str, counted: dict[str, Any]
) -> None:
    """Averages, parts of a batch, groups of parameters; with a graph it is one launch, and no reason to do without."""
    step = counted["options"][optimizer][graph]
    assert step["synchronising"] == []
    assert (step["synchronisations"], step["blocking_copies"]) == (0, 0)
    assert step["launches"] > 100 if graph == "off" else step["launches"] < 50


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("preset", BEYOND)
def test_training_step_launches_little_beyond_cross_entropy(
    preset: str, precision: str, counted: dict[str, Any]
) -> None:
    table = counted[precision]
    assert table[preset]["launches"] - table["bare"]["launches"] <= BEYOND[preset]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_group_launches_less_than_its_runs_apart(precision: str, counted: dict[str, Any]) -> None:
    group = counted["group"][precision]
    apart = sum(step["launches"] for step in group["apart"])
    assert 0 < group["together"]["launches"] <= TOGETHER * apart


@pytest.mark.parametrize("preset", ["kd", "ctkd", "mlld"])
def test_evaluation_waits_for_the_device_at_most_twice(preset: str, counted: dict[str, Any]) -> None:
    assert 1 <= counted["end"][preset]["evaluation"]["synchronisations"] <= 2


@pytest.mark.parametrize("preset", ["kd", "ctkd", "mlld"])
def test_checkpoint_takes_few_copies_that_block(preset: str, counted: dict[str, Any]) -> None:
    assert 1 <= counted["end"][preset]["checkpoint"]["blocking_copies"] <= 8
