"""What clients may ask of jobs and runs over HTTP: cancel, pause, resume, retry, priorities; and what they are told."""

from pathlib import Path
from typing import Any

import pytest

from service.db.states import State
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, make_settings, running_api, start_run

pytest_plugins = ["tests.support.service_fixtures"]


def ask(api: Api, path: str, verb: str, status: int = 200) -> dict[str, Any]:
    """The document that a request is answered with."""
    response = api.client.post(f"/v1/{path}/{verb}")
    assert response.status_code == status, response.text
    document: dict[str, Any] = response.json()
    return document


def test_a_job_is_paused_resumed_and_cancelled_as_often_as_somebody_asks(api: Api) -> None:
    """Each answer is the job as it is then, with its runs counted."""
    job = api.post_job()
    path = f"jobs/{job['id']}"
    for _ in range(2):
        paused = ask(api, path, "pause")
        assert (paused["state"], paused["progress"]["runs"]["paused"]) == ("paused", 2)
    for _ in range(2):
        resumed = ask(api, path, "resume")
        assert (resumed["state"], resumed["progress"]["runs"]["queued"]) == ("queued", 2)
    for _ in range(2):
        cancelled = ask(api, path, "cancel")
        assert (cancelled["state"], cancelled["progress"]["runs"]["cancelled"]) == ("cancelled", 2)
    for verb in ("pause", "resume"):
        refused = problem(api.client.post(f"/v1/{path}/{verb}"), 409, "conflict")
        assert refused["detail"] == f"{job['id']} cannot be {verb}d: it was cancelled, but it can be retried"


def test_one_run_is_paused_resumed_and_cancelled(api: Api) -> None:
    """Its job's other run goes on."""
    job = api.post_job()
    first, second = job["run_ids"]
    api.records.claim_job()
    assert start_run(api.records, first) == 1
    for verb, state in [("pause", "pausing"), ("pause", "pausing"), ("resume", "running"), ("resume", "running")]:
        assert ask(api, f"runs/{first}", verb)["state"] == state
    for _ in range(2):
        assert ask(api, f"runs/{first}", "cancel")["state"] == "cancelling"
    assert api.client.get(f"/v1/runs/{second}").json()["state"] == "queued"
    problem(api.client.post(f"/v1/runs/{first}/pause"), 409, "conflict")


def test_a_job_is_retried_once_and_found_again(api: Api) -> None:
    """201 and its address the first time, 200 and the same job ever after."""
    job = api.post_job(priority=5, parallel_runs=1, name="mine")
    path = f"/v1/jobs/{job['id']}/retry"
    assert "can be retried" in problem(api.client.post(path), 409, "conflict")["detail"]
    ask(api, f"jobs/{job['id']}", "cancel")
    first = api.client.post(path)
    again = api.client.post(path)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["Location"] == again.headers["Location"] == f"/v1/jobs/{first.json()['id']}"
    made = first.json()
    assert made == again.json()
    kept = ("name", "teacher", "teacher_sha256", "plan", "priority", "parallel_runs")
    assert {name: made[name] for name in kept} == {name: job[name] for name in kept}
    assert (made["state"], made["retry_of"], job["retry_of"]) == ("queued", job["id"], None)
    runs = api.client.get(f"/v1/jobs/{made['id']}/runs").json()["data"]
    assert [run["retry_of"] for run in runs] == job["run_ids"]


def test_one_run_is_retried_in_a_job_of_its_own(api: Api) -> None:
    """The answer is that job."""
    job = api.post_job()
    api.records.claim_job()
    failed = job["run_ids"][1]
    assert start_run(api.records, failed) == 1
    assert api.records.move_run(failed, 1, State.FAILED, error={"type": "NotFinite", "message": "nan"})
    made = ask(api, f"runs/{failed}", "retry", 201)
    assert len(made["run_ids"]) == 1
    retried = api.client.get(f"/v1/runs/{made['run_ids'][0]}").json()
    assert (retried["retry_of"], retried["index"], retried["error"]) == (failed, 1, None)
    assert ask(api, f"runs/{failed}", "retry")["id"] == made["id"]
    running = job["run_ids"][0]
    detail = problem(api.client.post(f"/v1/runs/{running}/retry"), 409, "conflict")["detail"]
    assert detail.endswith(f"there is {running} queued")


def test_a_retry_needs_room_on_the_disk_and_its_teacher(tmp_path: Path) -> None:
    """What was made before is found even so."""
    with running_api(make_settings(tmp_path)) as api:
        retried, left = api.post_job(), api.post_job()
        for job in (retried, left):
            ask(api, f"jobs/{job['id']}", "cancel")
        made = ask(api, f"jobs/{retried['id']}", "retry", 201)
        ask(api, f"jobs/{made['id']}", "cancel")
        teacher = left["teacher"]
    with running_api(make_settings(tmp_path, disk_floor_bytes=2**60)) as api:
        assert ask(api, f"jobs/{retried['id']}", "retry")["id"] == made["id"]
        problem(api.client.post(f"/v1/jobs/{left['id']}/retry"), 507, "disk-full")
    with running_api(make_settings(tmp_path)) as api:
        assert api.client.delete(f"/v1/teachers/{teacher}").status_code == 204
        refused = problem(api.client.post(f"/v1/jobs/{left['id']}/retry"), 409, "conflict")
        assert "upload it again" in refused["detail"]
        assert ask(api, f"jobs/{retried['id']}", "retry")["id"] == made["id"]


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_a_wish_about_nothing_is_not_found(shared_api: Api, verb: str) -> None:
    """Neither a job nor a run, nor an id of the other kind."""
    job = shared_api.post_job()
    for path in ("jobs/job_x", f"jobs/{job['run_ids'][0]}", "runs/%00", f"runs/{job['id']}"):
        problem(shared_api.client.post(f"/v1/{path}/{verb}"), 404, "not-found")


def test_job_keeps_in_its_plan_that_it_insists_on_its_teacher(shared_api: Api) -> None:
    """Left out by default: an Idempotency-Key from before the field is known by the digest of a body without it."""
    plain, insists = shared_api.post_job(), shared_api.post_job(accept_teacher=True)
    assert "accept_teacher" not in plain["plan"]
    assert insists["plan"]["accept_teacher"] is True


def test_priority_and_runs_at_once_are_part_of_the_job(shared_api: Api) -> None:
    """By default it waits its turn and takes what room there is."""
    plain, urgent = shared_api.post_job(), shared_api.post_job(priority=-100, parallel_runs=3)
    assert (plain["priority"], plain["parallel_runs"]) == (0, None)
    assert (urgent["priority"], urgent["parallel_runs"]) == (-100, 3)
    assert "priority" not in urgent["plan"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("priority", value) for value in (101, -101, 1.5, "1", True, None)),
        *(("parallel_runs", value) for value in (0, 2**40, "2")),
    ],
)
def test_a_priority_that_is_none_is_refused(shared_api: Api, field: str, value: object) -> None:
    """By its name."""
    response = shared_api.client.post("/v1/jobs", json=shared_api.job_body(**{field: value}))
    assert [error["pointer"] for error in problem(response, 422, "invalid-request")["errors"]] == [f"#/{field}"]


def test_the_urgent_job_is_begun_first(api: Api) -> None:
    """Though it came last."""
    ids = [api.post_job(priority=priority)["id"] for priority in (0, 1, -1, 2)]
    claimed = [job.id for job in iter(api.records.claim_job, None)]
    assert claimed == [ids[3], ids[1], ids[0], ids[2]]
