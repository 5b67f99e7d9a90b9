"""More epochs for a run over HTTP: the job that is made, what is refused, and what keeps the checkpoint."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.api.schemas.extensions import ExtensionRequest
from service.cli import main
from service.client.asynchronous.client import AsyncClient
from service.client.client import Client
from service.db.deletions.deletion import Deleter
from service.db.models import JobRecord
from service.db.states import State
from service.errors import Conflict
from tests.support.service_helpers import Api, finish, make_settings, running_api
from workers.config.extension import check_extension, extended_training
from workers.config.schedules import StepSchedule
from workers.config.training import Training
from workers.methods.catalog import parse_method
from workers.run_files import CHECKPOINT

pytest_plugins = ["tests.support.service_fixtures"]
TRAINING = {"epochs": 4, "schedule": {"kind": "step", "milestones": [0.5]}, "keep_checkpoint": True}
LATER = {"kind": "step", "milestones": [0.25, 0.75], "gamma": 0.1}


def extend(api: Api, run_id: str, body: dict[str, Any], **headers: str) -> httpx2.Response:
    return api.client.post(f"/v1/runs/{run_id}/extend", json=body, headers=headers)


def ended(api: Api, *, state: State = State.SUCCEEDED, keeps: bool = True, **changes: Any) -> tuple[str, str]:  # noqa: ANN401
    """A job of one run that has ended, with its checkpoint, and that run: their ids."""
    body = {"methods": ["kd"], "training": TRAINING, **changes}
    job = api.post_job(**body)
    finish(api.records, job["id"], state)
    [run] = api.records.runs(job["id"])
    with api.context.database.write() as session:
        session.get_one(type(run), run.id).epoch = run.epochs
    if keeps:
        folder = api.settings.jobs_dir / job["id"] / run.id / "a1"
        folder.mkdir(parents=True)
        (folder / CHECKPOINT).touch()
    return job["id"], run.id


def test_schedule_of_an_extension_is_of_all_epochs_since_the_last_restart_and_all_who_explain_it_say_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = {"kind": "step", "milestones": []}
    restart = {"after_epochs": 100, "learning_rate": 0.02, "schedule": constant}
    before = Training.model_validate({"epochs": 150, "schedule": constant, "restarts": [restart]})
    after = extended_training(before, 200, schedule=StepSchedule(milestones=(0.9,)), learning_rate=None)
    check_extension(before, after, parse_method("kd"), 150)
    last = after.phases[-1]
    assert isinstance(last.schedule, StepSchedule)
    assert [last.begin + epoch for epoch in last.schedule.boundaries(last.end - last.begin)] == [190]
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["extend", "--help"]) == 0
    texts = (
        capsys.readouterr().out,
        ExtensionRequest.model_fields["schedule"].description,
        extended_training.__doc__,
        Client.extend.__doc__,
        AsyncClient.extend.__doc__,
        (Path(__file__).parents[3] / "service/README.md").read_text(),
    )
    for text in texts:
        assert "of all epochs since the last restart" in " ".join((text or "").lower().replace("│", " ").split())


def test_extend_makes_a_job_of_the_run_with_all_epochs_that_says_what_it_goes_on_from(shared_api: Api) -> None:
    _, run_id = ended(shared_api, tags=["mine"], name="first", seeds=[3])
    key = {"Idempotency-Key": f"extend-{run_id}"}
    body = {"epochs": 8, "schedule": LATER}
    answer, again = (extend(shared_api, run_id, body, **key) for _ in range(2))
    assert (answer.status_code, again.status_code) == (201, 200), answer.text
    job = answer.json()
    shared_api.context.job_control.cancel_job(job["id"])
    assert again.json()["id"] == job["id"]
    assert (job["state"], job["name"], job["tags"]) == ("queued", "first", ["mine"])
    plan = job["plan"]
    assert (plan["training"]["epochs"], plan["training"]["schedule"], plan["seeds"]) == (8, LATER, [3])
    assert plan["extends"]["run"] == run_id
    assert plan["extends"]["training"]["epochs"] == 4
    assert plan["extends"]["checkpoint"].endswith(f"{run_id}/a1/{CHECKPOINT}")
    [run] = shared_api.client.get(f"/v1/jobs/{job['id']}/runs").json()["data"]
    assert (run["name"], run["epochs"]) == ("cnn_s kd seed 3", 8)
    notes = shared_api.client.get(f"/v1/jobs/{job['id']}/report").json()["notes"]
    assert f"the run of {job['id']} goes on from {run_id}, which has trained its first 4 epochs" in notes


def test_extend_of_any_schedule_from_a_stated_rate_makes_a_job_that_can_be_posted_as_well(shared_api: Api) -> None:
    cosine = {"kind": "cosine", "final": 0.0}
    _, run_id = ended(shared_api, training={**TRAINING, "schedule": cosine})
    answer = extend(shared_api, run_id, {"epochs": 8, "schedule": LATER, "learning_rate": 0.02})
    assert answer.status_code == 201, answer.text
    job = answer.json()
    shared_api.context.job_control.cancel_job(job["id"])
    restart = {"after_epochs": 4, "learning_rate": 0.02, "schedule": LATER}
    assert job["plan"]["training"]["schedule"] == cosine
    assert job["plan"]["training"]["restarts"] == [restart]
    notes = shared_api.client.get(f"/v1/jobs/{job['id']}/report").json()["notes"]
    assert f"runs of {job['id']} restart warm after 4 epochs: learning rate 0.02, schedule step" in notes
    posted = shared_api.post_job(training={**TRAINING, "epochs": 8, "schedule": cosine, "restarts": [restart]})
    shared_api.context.job_control.cancel_job(posted["id"])
    assert posted["plan"]["training"] == job["plan"]["training"]
    # Its own refusal says how to insist.
    assert "state a `learning_rate`" in extend(shared_api, run_id, {"epochs": 8}).json()["detail"]


def test_extend_refuses_what_would_not_be_a_run_of_all_epochs(shared_api: Api) -> None:
    _, run_id = ended(shared_api)
    for body, word in (
        ({"epochs": 4, "schedule": LATER}, "give more than 4"),
        ({"epochs": 8}, "the learning rate of the run has stepped after epochs [2]"),
        ({"epochs": 8, "schedule": {"kind": "cosine"}}, "state a `learning_rate`"),
        ({"epochs": 8, "schedule": {"kind": "exponential"}}, "cosine"),
        ({}, "epochs"),
    ):
        answer = extend(shared_api, run_id, body)
        assert answer.status_code == 422, answer.text
        assert word in answer.text
    _, run_id = ended(shared_api, training={**TRAINING, "schedule": {"kind": "cosine"}})
    assert "other learning rates from the first on" in extend(shared_api, run_id, {"epochs": 8}).json()["detail"]


def test_extend_refuses_runs_that_have_no_checkpoint_or_no_success(shared_api: Api) -> None:
    _, run_id = ended(shared_api, keeps=False)
    answer = extend(shared_api, run_id, {"epochs": 8, "schedule": LATER})
    assert (answer.status_code, "has kept no checkpoint" in answer.json()["detail"]) == (409, True)
    _, run_id = ended(shared_api, state=State.CANCELLED)
    answer = extend(shared_api, run_id, {"epochs": 8, "schedule": LATER})
    assert (answer.status_code, "is cancelled" in answer.json()["detail"]) == (409, True)
    assert extend(shared_api, "run_" + "0" * 26, {"epochs": 8}).status_code == 404


def test_extend_is_limited_as_a_new_job_and_its_plan_cannot_be_posted(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, job_epochs_max=6, key_live_jobs_max=1)) as api:
        job_id, run_id = ended(api)
        answer = extend(api, run_id, {"epochs": 8, "schedule": LATER})
        assert (answer.status_code, "at most 6 are allowed" in answer.text) == (422, True)
        constant = {"kind": "step", "milestones": [0.4]}
        plan = extend(api, run_id, {"epochs": 5, "schedule": constant}).json()["plan"]
        assert extend(api, run_id, {"epochs": 6, "schedule": {**constant, "milestones": [0.35]}}).status_code == 429
        answer = api.client.post("/v1/jobs", json={**plan, "teacher": api.teacher()})
        assert (answer.status_code, "POST /v1/runs/{id}/extend" in answer.text) == (422, True)
        # Neither is more added to it, nor is deleted what it needs.
        [live] = [job for job in api.queries.jobs(None, None, 9)[0] if job.id != job_id]
        block = {"students": ["cnn_s"], "methods": ["ce"]}
        assert f"goes on from {run_id}" in api.client.post(f"/v1/jobs/{live.id}/runs", json=block).json()["detail"]
        deletion = Deleter(api.context.database, api.settings)
        with pytest.raises(Conflict, match=live.id):
            deletion.delete_run(run_id)
        api.context.job_control.cancel_job(live.id)
        deletion.delete_run(run_id)
        assert api.queries.get(JobRecord, live.id).plan["extends"]["run"] == run_id
