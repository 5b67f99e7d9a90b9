"""Adding runs to a job over HTTP: what is stored, what is refused as at a new job, and requests at the same time."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.db.deletions.deletion import Deleter
from service.db.models import JobRecord
from service.db.states import State
from service.db.webhook_outbox import WebhookOutbox
from tests.support.service_helpers import Api, finish, make_settings, running_api, start_run

pytest_plugins = ["tests.support.service_fixtures"]
KD2 = {"students": ["cnn_s"], "methods": [{"preset": "kd", "temperature": 2}], "seeds": [0, 1]}


def add(api: Api, job_id: str, runs: dict[str, Any], **headers: str) -> httpx2.Response:
    return api.client.post(f"/v1/jobs/{job_id}/runs", json=runs, headers=headers)


def runs_of(api: Api, job_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.get(f"/v1/jobs/{job_id}/runs").json()["data"]
    return found


def ended(api: Api, **changes: object) -> dict[str, Any]:
    """A job that has succeeded; no other is queued."""
    job = api.post_job(**changes)
    finish(api.records, job["id"])
    return job


@pytest.fixture
def job(shared_api: Api) -> Iterator[dict[str, Any]]:
    """A queued job, cancelled in the end."""
    posted = shared_api.post_job()
    yield posted
    shared_api.context.job_control.cancel_job(posted["id"])


def test_added_runs_come_after_those_of_the_plan_which_says_what_they_are(shared_api: Api, job: dict[str, Any]) -> None:
    answer = add(shared_api, job["id"], KD2)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    runs = runs_of(shared_api, job["id"])
    assert [run["id"] for run in runs] == answer.json()["run_ids"]
    names = ["cnn_s ce seed 0", "cnn_s kd seed 0", "cnn_s kd(temperature=2) seed 0", "cnn_s kd(temperature=2) seed 1"]
    assert [run["name"] for run in runs] == names
    assert [run["index"] for run in runs] == [0, 1, 2, 3]
    [block] = answer.json()["plan"]["added"]
    assert [student["name"] for student in block["students"]] == ["cnn_s"]
    assert block["seeds"] == [0, 1]
    before = {name: value for name, value in job["plan"].items() if name != "added"}
    assert {name: value for name, value in answer.json()["plan"].items() if name != "added"} == before


def test_a_job_that_has_ended_is_queued_again_with_its_runs_as_they_were(shared_api: Api) -> None:
    job = ended(shared_api)
    answer = add(shared_api, job["id"], KD2).json()
    assert (answer["state"], answer["finished_at"], answer["error"], answer["stage"]) == ("queued", None, None, None)
    states = [run["state"] for run in runs_of(shared_api, job["id"])]
    assert states == ["succeeded", "succeeded", "queued", "queued"]
    told = [each["data"] for each in shared_api.client.get(f"/v1/jobs/{job['id']}/events").json()["data"]]
    assert [each["state"] for each in told if "state" in each and "run" not in each][-1] == "queued"
    finish_added(shared_api, job["id"])
    again = shared_api.client.get(f"/v1/jobs/{job['id']}").json()
    assert again["state"] == "succeeded"
    assert again["finished_at"] is not None


def finish_added(api: Api, job_id: str) -> None:
    """Has an engine take the queued runs of a job to their ends."""
    claimed = api.records.claim_job()
    assert claimed is not None
    assert claimed.id == job_id
    for run in api.records.runs(job_id):
        if run.state is State.QUEUED:
            attempt = start_run(api.records, run.id)
            assert attempt is not None
            assert api.records.move_run(run.id, attempt, State.SUCCEEDED, result={"last": {"top1": 0.5}})
    assert api.records.end_job(job_id, claimed.attempt) is State.SUCCEEDED


def test_runs_that_the_job_has_are_refused_by_name(shared_api: Api, job: dict[str, Any]) -> None:
    same = {"students": ["cnn_s"], "methods": ["ce", "kd"], "seeds": [1, 0]}
    answer = add(shared_api, job["id"], same)
    assert answer.status_code == 409
    assert "'cnn_s ce seed 0', 'cnn_s kd seed 0' are in the job's plan already" in answer.json()["detail"]
    assert len(runs_of(shared_api, job["id"])) == 2
    # And those that were added before.
    assert add(shared_api, job["id"], KD2).status_code == 201
    answer = add(shared_api, job["id"], {**KD2, "seeds": [1]})
    assert "'cnn_s kd(temperature=2) seed 1' is in the job's plan already" in answer.json()["detail"]


REFUSED = {
    "students": ({**KD2, "students": ["resnet9000"]}, "resnet9000"),
    "view": ({**KD2, "methods": ["mlld"]}, "compares two views"),
    "empty": ({**KD2, "students": []}, "students"),
    "unknown": ({**KD2, "training": {"epochs": 3}}, "training"),
    "twice": ({**KD2, "seeds": [1, 1]}, "twice"),
    "weights": ({**KD2, "students": [{"name": "cnn_s", "init": {"run": "run_" + "0" * 26}}]}, "name a run of this"),
    "other weights": ({**KD2, "students": [{"name": "cnn_s", "init": {"weights": "nowhere.safetensors"}}]}, "nowhere"),
    "runs": ({**KD2, "seeds": list(range(2000))}, "at most"),
    "product": ({**KD2, "methods": ["kd", "dkd"], "seeds": list(range(1000))}, "has 2000 runs, at most 1000"),
    "terms": (
        {**KD2, "methods": [{"preset": "custom", "name": "x", "terms": [{"loss": {"kind": "kl"}}] * 5000}]},
        "5000 terms",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_added_runs_are_checked_as_those_of_a_new_job(shared_api: Api, job: dict[str, Any], case: str) -> None:
    body, word = REFUSED[case]
    answer = add(shared_api, job["id"], body)
    assert answer.status_code == 422, answer.text
    assert word in answer.text
    assert len(runs_of(shared_api, job["id"])) == 2
    assert "added" not in shared_api.client.get(f"/v1/jobs/{job['id']}").json()["plan"]


def test_runs_are_limited_in_all_and_jobs_that_live_again_count_as_live(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, job_runs_max=3, key_live_jobs_max=1)) as api:
        job = ended(api)
        answer = add(api, job["id"], KD2)
        assert (answer.status_code, "has 4 runs, at most 3" in answer.text) == (422, True)
        api.post_job(name="another")
        answer = add(api, job["id"], {**KD2, "seeds": [0]})
        assert answer.status_code == 429, answer.text
        assert len(runs_of(api, job["id"])) == 2


def test_number_of_runs_is_limited_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the runs were made before they were counted")

    with running_api(make_settings(tmp_path, job_runs_max=3)) as api:
        job = api.post_job()
        monkeypatch.setattr("service.api.added_runs.with_added", never)
        assert "has 502 runs, at most 3" in add(api, job["id"], {**KD2, "seeds": list(range(500))}).text


def test_nothing_is_added_to_what_is_being_cancelled_evaluates_or_has_lost_its_teacher(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path)) as api:
        evaluation = api.client.post(
            "/v1/jobs", json=api.job_body(evaluate=True, students=[], methods=[], training={})
        ).json()
        assert "trains nothing" in add(api, evaluation["id"], KD2).json()["detail"]
        api.context.job_control.cancel_job(evaluation["id"])
        job = api.post_job()
        api.records.claim_job()
        api.context.job_control.cancel_job(job["id"])
        assert add(api, job["id"], KD2).status_code == 409
        assert api.records.move_job(job["id"], State.CANCELLED)
        assert add(api, job["id"], KD2).status_code == 201
        api.context.job_control.cancel_job(job["id"])
        Deleter(api.context.database, api.settings).delete_teacher(job["teacher"])
        answer = add(api, job["id"], {**KD2, "seeds": [7]})
        assert (answer.status_code, "was deleted" in answer.json()["detail"]) == (409, True)
        assert add(api, "job_" + "0" * 26, KD2).status_code == 404


def test_a_dry_run_shows_the_added_runs_alone_and_makes_none(shared_api: Api, job: dict[str, Any]) -> None:
    path = f"/v1/jobs/{job['id']}/runs"
    answer = shared_api.client.post(path, json=KD2, params={"dry_run": True})
    assert answer.status_code == 200, answer.text
    preview = answer.json()
    assert [run["name"] for run in preview["runs"]] == [f"cnn_s kd(temperature=2) seed {seed}" for seed in (0, 1)]
    assert preview["plan"]["added"][0]["seeds"] == [0, 1]
    samples = preview["cost"]["samples"]
    assert preview["cost"]["break_even"]["live_forwards"] == 2 * (3 * samples["train"] + samples["test"])
    assert len(runs_of(shared_api, job["id"])) == 2


def test_an_idempotency_key_adds_runs_once(shared_api: Api, job: dict[str, Any]) -> None:
    key = {"Idempotency-Key": f"add-{job['id']}"}
    first, again = (add(shared_api, job["id"], KD2, **key) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["run_ids"] == again.json()["run_ids"]
    assert add(shared_api, job["id"], {**KD2, "seeds": [5]}, **key).status_code == 422


def test_requests_at_the_same_time_add_all_runs_or_none_of_each(shared_api: Api, job: dict[str, Any]) -> None:
    """Those of other seeds all land; of equal ones a single one does."""
    seeds = [[1, 2], [3, 4], [5, 6], [1, 2], [3, 4]]
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda each: add(shared_api, job["id"], {**KD2, "seeds": each}), seeds))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 201, 409, 409]
    runs = runs_of(shared_api, job["id"])
    assert sorted(run["seed"] for run in runs[2:]) == [1, 2, 3, 4, 5, 6]
    plan = shared_api.client.get(f"/v1/jobs/{job['id']}").json()["plan"]
    assert [seed for block in plan["added"] for seed in block["seeds"]] == [run["seed"] for run in runs[2:]]


def test_runs_added_to_a_paused_job_wait_until_it_is_resumed(shared_api: Api, job: dict[str, Any]) -> None:
    shared_api.context.job_control.pause_job(job["id"])
    assert add(shared_api, job["id"], KD2).json()["state"] == "paused"
    assert {run["state"] for run in runs_of(shared_api, job["id"])} == {"paused"}
    shared_api.context.job_control.resume_job(job["id"])
    assert {run["state"] for run in runs_of(shared_api, job["id"])} == {"queued"}


def test_a_plan_with_added_runs_can_be_posted_as_a_new_job(shared_api: Api, job: dict[str, Any]) -> None:
    plan = add(shared_api, job["id"], KD2).json()["plan"]
    answer = shared_api.client.post("/v1/jobs", json={**plan, "teacher": shared_api.teacher()})
    assert answer.status_code == 201, answer.text
    again = runs_of(shared_api, answer.json()["id"])
    shared_api.context.job_control.cancel_job(answer.json()["id"])
    assert [run["name"] for run in again] == [run["name"] for run in runs_of(shared_api, job["id"])]


def test_the_next_end_of_a_job_is_another_message(tmp_path: Path) -> None:
    """Receivers tell by its id what came twice."""
    with running_api(make_settings(tmp_path, webhook_hosts="127.0.0.1")) as api:
        job = ended(api, webhook={"url": "https://127.0.0.1/"})
        outbox = WebhookOutbox(api.context.database)
        first = outbox.of_job(job["id"])
        add(api, job["id"], KD2)
        waiting = outbox.of_job(job["id"])
        assert first is not None
        assert waiting is not None
        assert (waiting.status, waiting.url, waiting.body) == ("waiting", first.url, None)
        assert waiting.id != first.id
        # What was not delivered yet is not any more: nobody is told of the first end after the second.
        assert first.status == "pending"
        assert outbox.claim({}) == []
        finish_added(api, job["id"])
        [claim] = outbox.claim({})
        assert claim.id == waiting.id
        assert json.loads(claim.body)["data"]["runs"] == {"cancelled": 0, "failed": 0, "succeeded": 4}


def test_a_job_that_was_queued_again_is_cancelled_as_a_whole_or_ends_as_its_runs_say(shared_api: Api) -> None:
    job = ended(shared_api)
    add(shared_api, job["id"], KD2)
    for run in runs_of(shared_api, job["id"])[2:]:
        shared_api.context.job_control.cancel_run(run["id"])
    assert shared_api.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "succeeded"
    add(shared_api, job["id"], {**KD2, "seeds": [5]})
    shared_api.context.job_control.cancel_job(job["id"])
    again = shared_api.client.get(f"/v1/jobs/{job['id']}").json()
    assert again["state"] == "cancelled"
    assert [run["state"] for run in runs_of(shared_api, job["id"])] == ["succeeded"] * 2 + ["cancelled"] * 3


def test_a_plan_that_this_version_cannot_read_gets_no_runs(shared_api: Api, job: dict[str, Any]) -> None:
    with shared_api.context.database.write() as session:
        row = session.get_one(JobRecord, job["id"])
        row.plan = {**row.plan, "of_a_later_version": 1}
    answer = add(shared_api, job["id"], KD2)
    assert (answer.status_code, "cannot be read by this version" in answer.text) == (409, True)
