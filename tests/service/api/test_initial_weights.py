"""First weights over HTTP: found, hashed and named in the job's plan, or refused while the client waits."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from service.db.models import RunRecord
from service.db.states import State
from tests.support.service_helpers import Api, start_run
from workers.config.job import Plan
from workers.students.build import build_student

pytest_plugins = ["tests.support.service_fixtures"]

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def with_init(init: object, name: str = "cnn_s") -> dict[str, Any]:
    return {"students": [{"name": name, "init": init}]}


def finished_run(api: Api, *, name: str = "student.safetensors") -> str:
    """A run that has succeeded and left a file."""
    job = api.post_job(methods=["kd"])
    assert api.records.claim_job() is not None
    [run_id] = job["run_ids"]
    attempt = start_run(api.records, run_id)
    assert attempt is not None
    path = Path("jobs", job["id"], run_id, str(attempt), "artifacts", name)
    (api.settings.data_dir / path).parent.mkdir(parents=True)
    (api.settings.data_dir / path).write_bytes(CONTENT)
    file = {"name": name, "path": str(path), "size_bytes": 7, "sha256": SHA256, "media_type": "text/plain"}
    assert api.records.record_result(run_id, attempt, [file], {"last": {"top1": 0.5}})
    return str(run_id)


def test_job_names_the_content_of_a_file_of_weights(api: Api) -> None:
    path = api.settings.data_root / "begun.safetensors"
    body = api.job_body(**with_init({"weights": path.name}))
    for content, message in (
        (CONTENT, "cannot begin with the weights 'begun.safetensors': the file is no safetensors file"),
        (save(build_student("cnn_m", 10, 1).state_dict()), "these weights are not of this student"),
    ):
        path.write_bytes(content)
        assert message in api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()["detail"]
    content = save(build_student("cnn_s", 10, 1).half().state_dict())
    path.write_bytes(content)
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    job = api.client.post("/v1/jobs", json=body).json()
    sha256 = hashlib.sha256(content).hexdigest()
    expected = {"name": "cnn_s", "init": {"weights": "begun.safetensors", "sha256": sha256}}
    assert any("are converted, F16 to F32" in warning for warning in preview["warnings"])
    assert job["plan"]["students"] == preview["plan"]["students"] == [expected]
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["plan"]["students"] == [expected]
    # As a bundle says it: the same content is taken, another one is refused.
    assert api.client.post("/v1/jobs", json=body | {"students": [expected]}).status_code == 201
    path.write_bytes(b"others")
    refused = api.client.post("/v1/jobs", json=body | {"students": [expected]})
    assert refused.status_code == 422
    assert f"expected {sha256}: they have changed" in refused.json()["detail"]


def test_job_names_the_content_of_a_runs_weights(api: Api) -> None:
    run_id = finished_run(api)
    job = api.post_job(**with_init({"run": run_id, "file": "../elsewhere"}))
    [student] = job["plan"]["students"]
    run = api.queries.get(RunRecord, run_id)
    path = f"jobs/{run.job_id}/{run_id}/1/artifacts/student.safetensors"
    assert student["init"] == {"run": run_id, "sha256": SHA256, "file": path}
    assert Plan.model_validate(job["plan"]).runs()[0].student.model_dump(mode="json") == student


def test_job_refuses_weights_that_are_not_there_and_says_where_it_names_them(api: Api) -> None:
    run_id, unfinished = finished_run(api), api.post_job(methods=["kd"])["run_ids"][0]
    for init, name, message in (
        ({"run": "run_0"}, "cnn_s", "run_0"),
        ({"run": run_id}, "cnn_m", f"run {run_id} has trained 'cnn_s', and the student is 'cnn_m'"),
        ({"run": unfinished}, "cnn_s", f"run {unfinished} is {State.QUEUED} and has left no weights"),
    ):
        refused = api.client.post("/v1/jobs", json=api.job_body(**with_init(init, name)))
        assert refused.status_code == 422, refused.text
        assert message in refused.json()["detail"]
        assert "#/students/0/init" in refused.text
    for init, message in (
        ({"weights": "none.safetensors"}, "does not exist below the data root"),
        ({"weights": "/etc/passwd"}, "is not allowed"),
        ({"run": run_id, "sha256": "a" * 64}, f"have SHA-256 {SHA256}, expected aaa"),
        ({"weights": "x", "run": run_id}, "unknown field of RunWeights 'weights'"),
    ):
        refused = api.client.post("/v1/jobs", json=api.job_body(**with_init(init)))
        assert refused.status_code == 422, refused.text
        assert message in refused.text


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra timm)")
def test_students_of_timm_are_listed_and_taken_by_a_job(api: Api) -> None:
    listed = {each["name"]: each for each in api.client.get("/v1/students").json()["data"]}
    assert listed["timm/resnet18"]["parameters_100"] is None
    assert listed["timm/resnet18"]["summary"]
    assert api.post_job(students=["timm/resnet18"])["plan"]["students"] == [{"name": "timm/resnet18"}]


def test_training_options_are_kept_in_the_plan_where_they_are_set(api: Api) -> None:
    training = {"epochs": 2, "ema": {"decay": 0.99}, "optimizer": {"kind": "rmsprop"}, "accumulate": 4}
    kept = api.post_job(training=training)["plan"]["training"]
    assert kept["ema"] == {"decay": 0.99, "export": "ema"}
    assert kept["optimizer"]["eps"] == 1e-8
    assert kept["accumulate"] == 4
    assert not {"ema", "accumulate", "drop_last", "drop_path", "no_decay"} & api.post_job()["plan"]["training"].keys()
    refused = api.client.post("/v1/jobs", json=api.job_body(training={"epochs": 2, "drop_path": 0.1}))
    assert "student 'cnn_s' has none" in refused.text
