"""Dry runs and lists of jobs: what they show of evaluations, and what they do not hold up."""

from pathlib import Path

import pytest

from service.api.rate_limits import KeyedSemaphore
from service.db.models import JobRecord
from tests.support.reported import post_results, result
from tests.support.service_helpers import Api, make_settings, running_api

pytest_plugins = ["tests.support.service_fixtures"]
EVALUATES = {"evaluate": True, "students": [], "methods": []}


def without_training(api: Api, **changes: object) -> dict[str, object]:
    return {name: value for name, value in api.job_body(**changes).items() if name != "training"}


def test_a_dry_run_of_an_evaluation_shows_the_run_that_the_job_makes(shared_api: Api) -> None:
    body = shared_api.job_body(**EVALUATES)
    preview = shared_api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    job = shared_api.client.post("/v1/jobs", json=body).json()
    [run] = shared_api.client.get(f"/v1/jobs/{job['id']}/runs").json()["data"]
    shared_api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert preview["runs"] == [{name: run[name] for name in ("name", "student", "method", "seed")}]


def test_an_evaluation_has_no_epochs_that_a_limit_would_refuse(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, job_epochs_max=100)) as api:
        answer = api.client.post("/v1/jobs", json=without_training(api, **EVALUATES))
        assert answer.status_code == 201, answer.text


def test_long_requests_of_a_key_wait_for_each_other(shared_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run, which may read a cache, and a report; the posting of a job does not."""
    job_id = post_results(shared_api, {("ce", 0): result(0.5)})
    held, begin = list[str](), KeyedSemaphore.held

    def recorded(semaphore: KeyedSemaphore, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        if semaphore is shared_api.context.heavy:
            held.append(name)
        return begin(semaphore, name)

    monkeypatch.setattr(KeyedSemaphore, "held", recorded)
    body = shared_api.job_body()
    assert shared_api.client.post("/v1/jobs", params={"dry_run": True}, json=body).status_code == 200
    assert len(held) == 1
    posted = shared_api.client.post("/v1/jobs", json=body).json()
    shared_api.client.post(f"/v1/jobs/{posted['id']}/cancel")
    assert len(held) == 1
    assert shared_api.client.get(f"/v1/jobs/{job_id}/report").status_code == 200
    assert len(held) == 2


def test_lists_of_jobs_leave_out_the_accuracy_of_each_class(shared_api: Api) -> None:
    job_id = post_results(shared_api, {("ce", 0): result(0.5)})
    whole = {"test": {"top1": 0.5, "per_class": [0.25, 0.75]}}
    with shared_api.context.database.write() as session:
        session.get_one(JobRecord, job_id).teacher_metrics = whole
    listed = shared_api.client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
    assert (listed["id"], listed["teacher_metrics"]) == (job_id, {"test": {"top1": 0.5}})
    assert shared_api.client.get(f"/v1/jobs/{job_id}").json()["teacher_metrics"] == whole
