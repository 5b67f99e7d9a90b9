"""Jobs of several teachers over HTTP: what a dry run shows, what is stored, and what is refused."""

import hashlib
from typing import Any

import pytest

from service.db.models import JobRecord
from service.engine.scheduler import job_spec
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, onnx_bytes, teacher_row, void

pytest_plugins = ["tests.support.service_fixtures"]


def another_teacher(api: Api, salt: float = 2.0) -> str:
    """The id of a teacher with other bytes, which is there with its file."""
    content = onnx_bytes(salt=salt)
    sha256 = hashlib.sha256(content).hexdigest()
    path = api.settings.teacher_path(sha256)
    return api.queries.add_teacher(teacher_row(sha256), lambda: void(path.write_bytes(content)))[0].id


def body_of(api: Api, **changes: object) -> dict[str, Any]:
    body = api.job_body()
    choices = [{"id": body.pop("teacher"), "weight": 3.0}, {"id": another_teacher(api)}]
    return {**body, "teachers": choices, **changes}


def test_a_job_of_several_teachers_is_shown_stored_and_given_to_the_workers(shared_api: Api) -> None:
    client, body = shared_api.client, body_of(shared_api, combine={"space": "probabilities"})
    ids = [choice["id"] for choice in body["teachers"]]
    preview = client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    assert [(each["id"], each["weight"]) for each in preview["teachers"]] == list(zip(ids, (3.0, 1.0), strict=True))
    # Two caches of each teacher, and two that are combined, for which no teacher is run.
    assert [(each["teacher"], each["split"]) for each in preview["cost"]["caches"]] == [
        (id, split) for id in (*ids, None) for split in ("train", "test")
    ]
    rows = sum(each["rows"] for each in preview["cost"]["caches"] if each["teacher"] is not None)
    assert preview["cost"]["forwards"]["needed"] == preview["cost"]["forwards"]["to_run"] == rows
    job = client.post("/v1/jobs", json=body).json()
    assert (job["teacher"], [each["id"] for each in job["teachers"]]) == (ids[0], ids)
    assert job["plan"]["combine"] == {"space": "probabilities", "weights": "fixed"}
    spec = job_spec(shared_api.queries.get(JobRecord, job["id"]), shared_api.settings)
    assert [(each.weight, each.path.stem) for each in spec.teachers] == [
        (each["weight"], each["sha256"]) for each in job["teachers"]
    ]
    assert spec.teacher == spec.teachers[0].alone
    # Found by either, and neither is deleted under it.
    for id in ids:
        found = client.get("/v1/jobs", params={"teacher": id}).json()["data"]
        assert job["id"] in [each["id"] for each in found]
        refused = client.delete(f"/v1/teachers/{id}")
        assert (refused.status_code, job["id"] in refused.json()["detail"]) == (409, True)
    client.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_job_of_one_teacher_shows_it_as_the_only_one_and_stores_what_it_did(shared_api: Api) -> None:
    job = shared_api.post_job()
    [only] = job["teachers"]
    assert (only["id"], only["weight"], only["sha256"]) == (job["teacher"], 1.0, job["teacher_sha256"])
    stored = shared_api.queries.get(JobRecord, job["id"])
    assert "members" not in stored.teacher
    assert "combine" not in stored.plan
    shared_api.client.post(f"/v1/jobs/{job['id']}/cancel")


@pytest.mark.parametrize(
    ("changes", "kind", "pointer", "said"),
    [
        ({"teachers": []}, "invalid-request", "#/teacher", "`teachers`"),
        ({"teacher": "tch_x"}, "invalid-request", "#/teacher", "leave one of them out"),
        ({"teachers": [{"id": "tch_a"}, {"id": "tch_a"}]}, "invalid-request", "#/teachers", "tch_a twice"),
        ({"teachers": [{"id": "tch_a"}]}, "invalid-job", None, "write it as `teacher`"),
        ({"teachers": [{"id": "tch_a"}, {"id": "tch_b"}]}, "invalid-request", "#/teachers/0/id", "tch_a"),
        ({"combine": {"space": "odds"}}, "invalid-request", "#/combine/space", "logits"),
    ],
)
def test_what_is_wrong_with_several_teachers_is_said_where_it_is(
    shared_api: Api, changes: dict[str, Any], kind: str, pointer: str | None, said: str
) -> None:
    answer = shared_api.client.post("/v1/jobs", json=body_of(shared_api, **changes))
    shown = problem(answer, 422, kind)
    assert said in str(shown)
    if pointer is not None:
        assert pointer in str(shown)
