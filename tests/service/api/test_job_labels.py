"""Tags, notes and names of jobs over HTTP, the filters of lists, and names of query parameters."""

from itertools import chain

import pytest

from service.db.keys.scopes import Scope
from tests.service.api.test_auth import filled, operations
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]


def names(api: Api, path: str, **query: str) -> list[str]:
    answer = api.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["data"]]


def test_job_labels_are_posted_changed_and_shown(shared_api: Api) -> None:
    """A change makes another document for whoever has the old one; what was posted stays, and is no part of them."""
    job = shared_api.post_job(name="first", tags=["a", "cafe\u0301"], note="one\n\ttwo")
    path = f"/v1/jobs/{job['id']}"
    assert (job["tags"], job["note"]) == (["a", "caf\u00e9"], "one\n\ttwo")
    assert not {"tags", "note"} & job["plan"].keys()
    plain = shared_api.client.get(path)
    assert plain.json() == job
    changed = shared_api.client.patch(path, json={"name": "second"}).json()
    assert changed == {**job, "name": "second"}
    assert shared_api.client.get(path, headers={"If-None-Match": plain.headers["etag"]}).json() == changed
    emptied = shared_api.client.patch(path, json={"tags": [], "note": "", "name": ""}).json()
    assert emptied == {**job, "name": "", "tags": [], "note": ""}
    listed = shared_api.client.get("/v1/jobs", params={"q": job["id"]}).json()["data"]
    assert [(entry["id"], entry["tags"], entry["note"]) for entry in listed] == [(job["id"], [], "")]
    line = next(line for line in reversed(shared_api.logs) if line["event"] == "audit")
    assert (line["method"], line["route"], line["object_id"]) == ("PATCH", "/v1/jobs/{job_id}", job["id"])


@pytest.mark.parametrize(
    ("changes", "slug", "says"),
    [
        ({}, "invalid-request", "name at least one of name, tags, note"),
        ({"tag": ["a"]}, "unknown-name", "Did you mean 'tags'?"),
        ({"state": "failed"}, "unknown-name", "unknown field of JobChanges 'state'. Allowed: name, note, tags"),
        ({"tags": None}, "invalid-request", "valid list"),
        ({"tags": "a"}, "invalid-request", "valid list"),
        ({"tags": ["a", "a"]}, "invalid-request", "'a' is there twice"),
        ({"tags": ["A", "b", "a"]}, "invalid-request", "'A' is there twice"),
        ({"tags": ["\u00e9", "e\u0301"]}, "invalid-request", "is there twice"),
        ({"tags": [""]}, "invalid-request", "at least 1 character"),
        ({"tags": ["a "]}, "invalid-request", "blank at an end"),
        ({"tags": ["a\nb"]}, "invalid-request", "characters that do not show"),
        ({"tags": ["a\u202eb"]}, "invalid-request", "characters that do not show"),
        ({"tags": ["a" * 51]}, "invalid-request", "at most 50 characters"),
        ({"tags": [str(n) for n in range(21)]}, "invalid-request", "there are 21 items, at most 20"),
        ({"note": "a" * 2001}, "invalid-request", "at most 2000 characters"),
        ({"note": "a\x1b[2J"}, "invalid-request", "only tabs and newlines are allowed"),
        ({"name": "a\nb"}, "invalid-request", "pattern"),
    ],
)
def test_job_labels_that_cannot_be_are_refused_and_nothing_changes(
    shared_api: Api, changes: dict[str, object], slug: str, says: str
) -> None:
    listed = shared_api.client.get("/v1/jobs", params={"name": "kept"}).json()["data"]
    job = listed[0] if listed else shared_api.post_job(name="kept", tags=["a"], note="b")
    path = f"/v1/jobs/{job['id']}"
    assert says in problem(shared_api.client.patch(path, json=changes), 422, slug)["detail"]
    kept = shared_api.client.get(path).json()
    assert (kept["name"], kept["tags"], kept["note"]) == ("kept", ["a"], "b")
    if changes.keys() <= {"tags", "note", "name"} and changes:
        assert (
            says
            in problem(shared_api.client.post("/v1/jobs", json=shared_api.job_body(**changes)), 422, slug)["detail"]
        )


def test_job_labels_are_changed_by_whoever_may_write(api: Api) -> None:
    job = api.post_job()
    for scope, status in ((Scope.READ, 403), (Scope.WRITE, 200)):
        bearer = {"Authorization": f"Bearer {api.context.keys.issue(scope, scope)[1]}"}
        api.context.ring.forget()
        answer = api.client.patch(f"/v1/jobs/{job['id']}", json={"name": "x"}, headers=bearer)
        assert answer.status_code == status
    answer = api.client.patch(filled("/v1/jobs/{job_id}"), json={"name": "x"}, headers=bearer)
    problem(answer, 404, "not-found")


def test_job_filters_are_query_parameters_and_a_dataset_goes_by_its_name(shared_api: Api) -> None:
    client = shared_api.client
    assert client.post("/v1/datasets", json={"name": "numerals", "spec": {"kind": "digits"}}).status_code == 201
    job = shared_api.post_job(name="filtered", tags=["rare"])
    teacher = job["teacher"]
    for query in (
        {"tag": "Rare"},
        {"name": "FILTER"},
        {"tag": "rare", "dataset": "numerals", "teacher": teacher, "state": "queued", "status": "queued"},
        {"tag": "rare", "created_after": job["created_at"], "sort": "-finished_at"},
        {"tag": "rare", "created_after": "2026-01-01", "created_before": "9999-12-31T23:59:59-12:00"},
        {"q": job["run_ids"][0]},
    ):
        assert names(shared_api, "/v1/jobs", **query) == ["filtered"], query
    for other in ({"state": "failed"}, {"state": "queued", "status": "failed"}, {"dataset": "numeral"}):
        assert names(shared_api, "/v1/jobs", tag="rare", **other) == []
    assert names(shared_api, "/v1/jobs", tag="rare", created_before="2026-01-01T00:00:00") == []
    assert len(names(shared_api, f"/v1/jobs/{job['id']}/runs", method="kd", state="queued")) == 1
    assert names(shared_api, f"/v1/jobs/{job['id']}/runs", student="resnet8") == []
    assert names(shared_api, "/v1/teachers", name="TEACH") == ["teacher"]
    assert names(shared_api, "/v1/datasets", name="mera") == ["numerals"]
    assert names(shared_api, "/v1/datasets", name="m_ra") == names(shared_api, "/v1/teachers", name="%") == []
    for name, value in (("created_after", "1764500000"), ("created_after", "tomorrow"), ("sort", "size"), ("q", "")):
        assert name in problem(client.get("/v1/jobs", params={name: value}), 422, "invalid-request")["detail"]
    problem(client.get("/v1/jobs", params={"sort": "name", "after": filled("{job_id}")}), 404, "not-found")


def test_query_parameter_that_a_route_does_not_have_is_refused_on_every_route(shared_api: Api) -> None:
    """With the nearest that it has, if one is near; what a dependency asks for counts as well."""
    get = shared_api.client.get
    asked = chain(operations(shared_api.settings), (("GET", "/healthz"), ("GET", "/readyz")))
    for method, template in asked:
        kind = {"Content-Type": "multipart/form-data; boundary=b"} if template == "/v1/teachers" else {}
        body = b"{}" if method in {"POST", "PATCH"} and not kind else None
        headers = kind or {"Content-Type": "application/json"}
        answer = shared_api.client.request(
            method, filled(template), params={"dry_runs": "1"}, content=body, headers=headers
        )
        found = problem(answer, 422, "unknown-name")
        assert "unknown query parameter 'dry_runs'" in found["detail"], (method, template)
    for path, says in (
        ("/v1/jobs?tags=a", "Did you mean 'tag'? Allowed: after, created_after,"),
        ("/v1/jobs?limit=3&Sort=name", "Did you mean 'sort'?"),
        ("/v1/jobs?user=me", "unknown query parameter 'user'. Allowed: after"),
        ("/v1/datasets?tags=a", "unknown query parameter 'tags'. Allowed: after, limit, name"),
    ):
        assert says in problem(get(path), 422, "unknown-name")["detail"]
    assert get("/v1/jobs?limit=1&status=queued&state=queued").status_code == 200
    # Clients send it to every list, those of earlier versions, too.
    run = shared_api.post_job()["run_ids"][0]
    for path in ("methods", "students", "recipes", f"runs/{run}/metrics", f"runs/{run}/artifacts"):
        assert get(f"/v1/{path}?limit=100").status_code == 200, path
