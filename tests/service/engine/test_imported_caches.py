"""Imported logits through the service for real: exported, imported again, trained on, combined with a teacher."""

from typing import Any

import pytest

from service.cli import main
from service.client.errors import ApiProblem
from tests.support.processes import Processes, job_of, weights_of

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DIGITS = {"kind": "digits"}


def trained(service: Processes, body: dict[str, Any]) -> dict[str, Any]:
    """A job that has succeeded."""
    client = service.client
    job = client.submit(body)
    for event in client.events(job["id"]):
        if event["type"] == "done":
            break
    ended: dict[str, Any] = client.job(job["id"])
    assert ended["state"] == "succeeded", (ended["error"], service.logs())
    return ended


@pytest.fixture(scope="module")
def taught(service: Processes, teacher_id: str) -> dict[str, Any]:
    """A job whose caches a teacher has filled."""
    return trained(service, {**job_of(teacher_id, "kd"), "cache": {"dtype": "float32"}})


@pytest.fixture(scope="module")
def imported(service: Processes, taught: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The logits of that job, exported and imported again: keys by split."""
    client, folder = service.client, tmp_path_factory.mktemp("exports")
    keys = {}
    for split, key in taught["caches"].items():
        path = client.export_cache(key, folder / f"{split}.npz")
        views = taught["plan"]["views"] if split == "train" else None
        made = client.import_cache(path, DIGITS, split=split, views=views, source="an export")
        assert (made["state"], made["pinned"], made["warnings"]) == ("complete", True, [])
        assert made["accuracy"] > 0.4
        keys[split] = made["key"]
    return keys


def test_imported_logits_of_an_export_train_the_same_weights(
    service: Processes, taught: dict[str, Any], imported: dict[str, str]
) -> None:
    client = service.client
    body = job_of("", "kd")
    del body["teacher"]
    job = trained(service, {**body, "caches": imported})
    assert job["caches"] == imported
    first, second = (weights_of(service, client, each["id"]) for each in (taught, job))
    assert first.keys() == second.keys()
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert job["teacher_metrics"] == taught["teacher_metrics"]
    assert job["teacher_forwards"]["run"] == 0
    [teacher] = job["teachers"]
    assert (teacher["id"], teacher["name"], teacher["caches"]) == (None, "an export", imported)
    [one], [other] = (client.runs(each["id"]) for each in (taught, job))
    assert one["result"]["last"]["agreement"] == other["result"]["last"]["agreement"]
    assert client.report(job["id"])["teacher"]["test"]["top1"] == taught["teacher_accuracy"]
    assert client.verify_cache(imported["train"])["ok"]
    assert client.cache(imported["train"])["use"]["jobs"][0]["id"] == job["id"]


def test_imported_logits_are_combined_with_a_teacher(
    service: Processes, teacher_id: str, taught: dict[str, Any], imported: dict[str, str]
) -> None:
    # The mean of equal logits is these logits, whoever gives them.
    body = {**job_of("", "kd"), "cache": {"dtype": "float32"}}
    del body["teacher"]
    teachers = [{"id": teacher_id}, {"caches": imported, "weight": 3.0}]
    job = trained(service, {**body, "teachers": teachers})
    first, second = (weights_of(service, service.client, each["id"]) for each in (taught, job))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    with pytest.raises(ApiProblem, match="without logits of test"):
        service.client.submit({**body, "teachers": [teachers[0], {"caches": {"train": imported["train"]}}]})


def test_students_of_imported_logits_are_measured_where_none_were_imported(
    service: Processes, imported: dict[str, str]
) -> None:
    client = service.client
    body = job_of("", "kd", "ce", epochs=1)
    del body["teacher"]
    job = trained(service, {**body, "caches": {"train": imported["train"]}})
    assert (job["teacher_accuracy"], job["teacher_metrics"]) == (None, {})
    told = " ".join(str(event["data"].get("message")) for event in client.events(job["id"]) if event["type"] == "log")
    assert "no logits of the test split were imported" in told
    for run in client.runs(job["id"]):
        assert run["result"]["last"]["top1"] is not None
        assert run["result"]["last"].get("agreement") is None
    [first, _] = client.runs(job["id"])
    assert main(["--url", client.base_url, "reproduce", first["id"]]) == 0
