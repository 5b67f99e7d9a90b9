"""Comparison of jobs through the API: one table over several, its baseline, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from service.db.models import EventRecord, JobRecord
from service.db.queries.packed_events import compact
from tests.service.api.reports.test_reports import KD, SEEDS
from tests.support.reported import logits_of, post_results, result
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]


def compare(api: Api, *jobs: str, **body: object) -> dict[str, Any]:
    answer = api.client.post("/v1/reports", json={"jobs": jobs, **body})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_comparison_takes_the_baseline_of_the_own_job_or_of_the_first_that_has_one(shared_api: Api) -> None:
    both = post_results(shared_api, SEEDS)
    kd_alone = post_results(shared_api, {("kd", seed): result(KD[seed] + 0.1) for seed in range(3)})
    document = compare(shared_api, both, kd_alone)
    assert [job["job_id"] for job in document["jobs"]] == [both, kd_alone]
    found = {(group["job_id"], group["method"]): group["test"]["difference"] for group in document["groups"]}
    assert found[both, "ce"] is None
    assert found[kd_alone, "kd"]["baseline_job_id"] == found[both, "kd"]["baseline_job_id"] == both
    assert found[kd_alone, "kd"]["mean"] == pytest.approx(found[both, "kd"]["mean"] + 0.1)
    itself = compare(shared_api, both, kd_alone, baseline_job=both)
    found = {(group["job_id"], group["method"]): group["test"]["difference"] for group in itself["groups"]}
    assert found[kd_alone, "kd"]["baseline"] == "kd"
    assert found[kd_alone, "kd"]["mean"] == pytest.approx(0.1)
    assert found[both, "kd"] is None
    text = shared_api.client.post("/v1/reports", json={"jobs": [both, kd_alone], "format": "markdown"}).text
    # Both jobs have cnn_s kd.
    assert text.startswith("| job | student | method |")
    lines = [line for line in text.splitlines() if line.startswith(f"| {kd_alone}".replace("_", "\\_"))]
    assert len(lines) == 2
    assert f" to {both} |" in lines[1]


def test_comparison_names_the_job_of_a_baseline_and_what_else_differs(shared_api: Api) -> None:
    both = post_results(shared_api, SEEDS)
    other = post_results(shared_api, {("kd", 0): result(0.6)}, training={"epochs": 7, "device": "cpu"})
    notes = compare(shared_api, both, other)["notes"]
    assert f"difference of cnn_s kd of {other} is to ce of {both}, which differs in training" in notes
    assert not any(f"of {both} is to" in note for note in notes)
    text = shared_api.client.post("/v1/reports", json={"jobs": [both, other], "format": "latex"}).text
    assert f" to {both}".replace("_", "\\_") in text


def test_comparison_names_first_weights_that_differ(shared_api: Api) -> None:
    both = post_results(shared_api, SEEDS)
    (shared_api.settings.data_root / "begun.safetensors").write_bytes(b"weights")
    begun = {"name": "cnn_s", "init": {"weights": "begun.safetensors"}}
    other = post_results(shared_api, {("kd", 0): result(0.6)}, students=[begun])
    notes = compare(shared_api, both, other)["notes"]
    assert f"difference of cnn_s kd of {other} is to ce of {both}, which differs in first weights" in notes


def test_comparison_refuses_other_data_unless_somebody_insists(shared_api: Api) -> None:
    digits = post_results(shared_api, {("ce", 0): result(0.5)})
    other = post_results(shared_api, {("kd", 0): result(0.6)})
    with shared_api.context.database.write() as session:
        job = session.get_one(JobRecord, other)
        job.plan = {**job.plan, "validation": {"holdout": 0.1}}
    refused = shared_api.client.post("/v1/reports", json={"jobs": [digits, other]})
    assert refused.status_code == 422
    assert f"{other} has another validation than {digits}: {{'holdout': 0.1}}" in refused.json()["detail"]
    assert "accept_different_data" in refused.json()["detail"]
    document = compare(shared_api, digits, other, accept_different_data=True)
    assert document["notes"][0].startswith(f"{other} has another validation than {digits}")


def _tell(api: Api, job_id: str, **fingerprints: str) -> None:
    """Store what a job was told of its splits, without the queue: it has ended."""
    with api.context.database.write() as session:
        for n, (split, fingerprint) in enumerate(fingerprints.items()):
            data = {"split": split, "fingerprint": fingerprint}
            session.add(EventRecord(job_id=job_id, attempt=1, n=n, type="dataset_ready", data=data))


def test_comparison_refuses_another_content_of_any_split_after_events_are_packed(shared_api: Api) -> None:
    one, other = (post_results(shared_api, {("ce", 0): result(0.5)}) for _ in range(2))
    _tell(shared_api, one, train="a" * 64, test="b" * 64)
    _tell(shared_api, other, train="a" * 64, test="c" * 64)
    for job_id in (one, other):
        compact(shared_api.context.database, job_id)
    refused = shared_api.client.post("/v1/reports", json={"jobs": [one, other]})
    assert refused.status_code == 422
    assert f"{other} has another content of the test split than {one}" in refused.json()["detail"]
    [note, *_] = compare(shared_api, one, other, accept_different_data=True)["notes"]
    assert note.startswith(f"{other} has another content of the test split")


def test_comparison_says_of_which_job_and_split_the_content_is_unknown(shared_api: Api) -> None:
    """The first that knows a split is the one that others are compared with."""
    none, one, other = (post_results(shared_api, {("ce", 0): result(0.5)}) for _ in range(3))
    _tell(shared_api, one, train="a" * 64, test="b" * 64)
    _tell(shared_api, other, test="b" * 64)
    notes = compare(shared_api, none, one, other)["notes"]
    assert notes[0].startswith(f"whether {none} has the same pictures is unknown")
    assert notes[1].startswith(f"whether {other} has the same train split is unknown")
    third = post_results(shared_api, {("ce", 0): result(0.5)})
    _tell(shared_api, third, test="c" * 64)
    assert shared_api.client.post("/v1/reports", json={"jobs": [none, other, third]}).status_code == 422


def test_comparison_pairs_no_rows_of_different_data_even_if_somebody_insists(shared_api: Api) -> None:
    """Stratified holdouts of two seeds have the same labels, in the same order."""
    labels = np.arange(10) % 2
    logits = logits_of(labels, labels == 0, "validation")
    one = post_results(shared_api, {("ce", 0): result(0.5, 0.5)}, {("ce", 0): logits}, validation={"holdout": 0.1})
    other_cut = {"holdout": 0.1, "seed": 1}
    other = post_results(shared_api, {("kd", 0): result(0.5, 0.5)}, {("kd", 0): logits}, validation=other_cut)
    assert compare(shared_api, one, other, accept_different_data=True)["notes"][0].startswith(other)
    body = {"jobs": [one, other], "accept_different_data": True, "paired": "samples"}
    refused = shared_api.client.post("/v1/reports", json=body)
    assert refused.status_code == 422
    assert "rows of different data cannot be paired" in refused.json()["detail"]
    assert [error["pointer"] for error in refused.json()["errors"]] == ["#/paired"]


def test_comparison_is_bounded_and_names_what_is_missing(shared_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = post_results(shared_api, SEEDS)
    unknown = f"job_{'0' * 32}"
    for body, status, words in (
        ({"jobs": [job_id, unknown]}, 404, unknown),
        ({"jobs": [job_id] * 21}, 422, ""),
        ({"jobs": []}, 422, ""),
        ({"jobs": [job_id], "baseline_job": unknown}, 422, "is none of the jobs"),
        ({"jobs": [job_id], "confidence": 1.5}, 422, ""),
    ):
        answer = shared_api.client.post("/v1/reports", json=body)
        assert answer.status_code == status, answer.text
        assert words in answer.text
    monkeypatch.setattr("service.api.routes.reports.RUNS_MAX", 5)
    refused = shared_api.client.post("/v1/reports", json={"jobs": [job_id]})
    assert refused.status_code == 413
    assert "the 1 jobs have 6 runs, at most 5 go into one table" in refused.json()["detail"]
