"""Whole runs on a CUDA device, as far as the fake one shows them: nothing is on another device than it should be."""

from typing import Any

import pytest

from tests.fake_cuda.lives import live_presets, live_students, smallest_of_families
from tests.fake_cuda.processes import FakeCuda
from tests.fake_cuda.steps import ALL

pytestmark = [pytest.mark.fake_cuda, pytest.mark.timeout(900)]

ARTIFACTS = [
    "config.json",
    "evaluation.json",
    "events.out.tfevents.retort",
    "logits.safetensors",
    "metrics.jsonl",
    "model.zip",
    "result.json",
    "student.onnx",
    "student.safetensors",
]

# An export is of the student on the CPU, and takes seconds.
EXPORTED_PRESETS = ["ctkd"]
EXPORTED_STUDENTS = ["cnn_s", "resnet8", "torchvision/squeezenet1_1"]

SMALL = [info.name for info in smallest_of_families() if (info.parameters_100 or 0) < 50_000_000]
# Gigabytes of weights, momentum and checkpoint.
LARGE = [info.name for info in smallest_of_families() if (info.parameters_100 or 0) >= 50_000_000]


def _check(run: dict[str, Any], is_exported: bool, more: tuple[str, ...] = ()) -> None:
    assert run["error"] is None, run["error"]
    assert run["checkpoint"]
    if is_exported:
        assert (run["epochs"], run["device"][:4], run["artifacts"]) == (2, "cuda", [*ARTIFACTS, *more])
    else:
        assert run["epochs"] == 1


@pytest.fixture(scope="module")
def presets(fake_cuda: FakeCuda) -> dict[str, Any]:
    return fake_cuda.call(live_presets, ALL, EXPORTED_PRESETS)


@pytest.mark.parametrize("preset", ALL)
def test_training_by_each_preset_stays_on_the_device(preset: str, presets: dict[str, Any]) -> None:
    _check(presets[preset], preset in EXPORTED_PRESETS, ("temperatures.json",))


@pytest.fixture(scope="module")
def students(fake_cuda: FakeCuda) -> dict[str, Any]:
    return fake_cuda.call(live_students, SMALL, EXPORTED_STUDENTS)


@pytest.mark.parametrize("student", SMALL)
def test_training_of_each_family_stays_on_the_device(student: str, students: dict[str, Any]) -> None:
    _check(students[student], student in EXPORTED_STUDENTS)


@pytest.mark.slow
@pytest.mark.parametrize("student", LARGE)
def test_training_of_each_large_family_stays_on_the_device(student: str, fake_cuda: FakeCuda) -> None:
    _check(fake_cuda.call(live_students, [student], [])[student], is_exported=False)
