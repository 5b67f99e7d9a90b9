"""``retort reproduce``: what is compared, and what is said to differ; the whole command is in tests/service/engine."""

from copy import deepcopy
from typing import Any, cast

import pytest

from service.cli.base import CommandFailed
from service.cli.job_commands.reproduce import compare, find_teacher, rename_customs
from service.client.client import Client

BUNDLE: dict[str, Any] = {
    "format": 1,
    "job": {"name": "a", "seeds": [0]},
    "teacher": {"name": "t", "sha256": "1" * 64, "output": "logits", "preprocessing": {"size": None}},
    "datasets": {"train": "2" * 64},
    "versions": {"torch": "2.15.0", "zarr": "3.1.6"},
    "machine": {"device": "cpu", "threads": 1},
    "weights": {"file": "student.safetensors", "sha256": "3" * 64},
}
METRICS: list[dict[str, Any]] = [
    {"epoch": 1, "top1": 0.5, "seconds": 1.0, "images_per_s": 10.0},
    {"epoch": 2, "top1": 0.6, "seconds": 1.0, "images_per_s": 10.0},
]


def other(**fields: dict[str, Any]) -> dict[str, Any]:
    """The bundle of another run, with other weights."""
    made = deepcopy(BUNDLE)
    made["weights"]["sha256"] = "4" * 64
    for name, change in fields.items():
        made[name] |= change
    return made


def test_compare_passes_over_names_and_times() -> None:
    again = deepcopy(BUNDLE)
    again["job"]["name"] = "b"
    faster = [{**line, "seconds": 0.5, "images_per_s": 20.0} for line in METRICS]
    assert compare(BUNDLE, again, METRICS, faster) == {
        "same_weights": True,
        "weights_sha256": "3" * 64,
        "differences": [],
    }


def test_compare_names_versions_before_the_machine_before_the_first_epoch_that_differs() -> None:
    again = other(machine={"threads": 2}, versions={"torch": "2.16.0", "numpy": "2.4.0"})
    metrics = [METRICS[0], {**METRICS[1], "top1": 0.61}]
    report = compare(BUNDLE, again, METRICS, metrics)
    assert not report["same_weights"]
    assert report["differences"] == [
        'versions.torch was "2.15.0", is "2.16.0"',
        'versions.numpy was absent, is "2.4.0"',
        "machine.threads was 1, is 2",
        "top1 of epoch 2 was 0.6, is 0.61",
    ]


def test_compare_says_so_where_nothing_explains_other_weights() -> None:
    [told] = compare(BUNDLE, other(), METRICS, METRICS)["differences"]
    assert "nothing that the bundles tell differs" in told


class Teachers:
    """A client whose service has one teacher."""

    def __init__(self, **fields: object) -> None:
        self._teacher = {"id": "tch_1", **BUNDLE["teacher"], **fields}

    def teachers(self) -> list[dict[str, Any]]:
        return [self._teacher]


def test_find_teacher_wants_digest_output_and_preprocessing() -> None:
    def find(**fields: object) -> str:
        return find_teacher(cast("Client", Teachers(**fields)), BUNDLE["teacher"])

    assert find(name="another") == "tch_1"
    with pytest.raises(CommandFailed, match=f"SHA-256 {'1' * 64} is there not at all: upload it"):
        find(sha256="5" * 64)
    for other in ({"preprocessing": {"size": [8, 8]}}, {"output_kind": "sigmoid"}, {"class_names": ["a", "b"]}):
        with pytest.raises(CommandFailed, match="with another output, preprocessing or reading: upload it"):
            find(**other)


def test_custom_methods_named_like_a_preset_are_renamed_and_no_others() -> None:
    """As earlier versions took them; today's refuse such a job."""
    terms = [{"policy": {"kind": "fixed"}}]
    named = [{"preset": "custom", "name": name, "terms": terms} for name in ("kd", "mine", "custom")]
    job = {"seeds": [0], "methods": [{"preset": "kd"}, *named]}
    found = rename_customs(job, {"ce", "kd", "custom"})
    assert [method.get("name") for method in found["methods"]] == [None, "custom_kd", "mine", "custom"]
    assert {**found, "methods": 0} == {**job, "methods": 0}
    assert found["methods"][1]["terms"] == terms
