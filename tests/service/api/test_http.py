"""HTTP itself: validators and checksums, pages that hold still, one job however often and wherever it is asked for."""

import asyncio
import base64
import hashlib
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import HTMLResponse
from starlette.types import Message, Receive, Scope, Send

from service.api.middleware.security_headers import PagePolicy
from service.db.states import State
from tests.service.api.test_multipart import wait_until
from tests.service.api.test_routes import pages, problem
from tests.support.client_cases import ARTIFACT, run_with_artifact
from tests.support.service_helpers import Api, finish, make_settings, running_api

pytest_plugins = ["tests.support.service_fixtures"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_docs_run_and_load_what_this_service_has_and_nothing_else(shared_api: Api, path: str) -> None:
    answer = shared_api.client.get(path)
    assert answer.status_code == 200
    given = (directive.split() for directive in answer.headers["Content-Security-Policy"].split(";"))
    policy = {name: sources for name, *sources in given}
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", answer.text, re.DOTALL)
    needed = {
        "'self'"
        if "src=" in attributes
        else f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in scripts
    }
    assert needed
    assert set(policy["script-src"]) == needed
    styles = re.findall(r'<link[^>]*href="([^"]+)"[^>]*rel="stylesheet"', answer.text)
    styles += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', answer.text)
    loaded = [*styles, *re.findall(r'src="([^"]+)"', answer.text)]
    assert all(shared_api.client.get(address).status_code == 200 for address in loaded)
    assert not re.findall(r"https?://", "".join(loaded) + answer.headers["Content-Security-Policy"])


def test_other_html_may_run_nothing() -> None:
    headers: dict[str, str] = {}

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await HTMLResponse("<script>alert(1)</script>")(scope, receive, send)

    async def keep(message: Message) -> None:
        headers.update({name.decode(): value.decode() for name, value in message.get("headers", [])})

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/other", "headers": []}
    asyncio.run(PagePolicy(page, {"/docs": "any"})(scope, nothing, keep))
    assert headers["content-security-policy"].startswith("default-src 'none';")
    assert "script-src" not in headers["content-security-policy"]


def documents(job: dict[str, Any]) -> list[str]:
    """What clients poll."""
    path, run = f"/v1/jobs/{job['id']}", f"/v1/runs/{job['run_ids'][0]}"
    of_job = [path, f"{path}/runs", f"{path}/report", f"{path}/curves", f"{path}/events"]
    return ["/v1/jobs", "/v1/jobs?status=queued", *of_job, run, f"{run}/metrics", f"{run}/artifacts"]


# --------------------------------------------------------------------------------------------------------------- HEAD


def test_head_is_answered_as_get_without_the_body(api: Api) -> None:
    """Documents, health, metrics, downloads and streams, on a connection that goes on; a Range is no affair of HEAD."""
    run_id = run_with_artifact(api, 5_000_000)
    done = api.client.get(f"/v1/runs/{run_id}").json()["job_id"]
    paths = [
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v1/nothing",
        f"/v1/runs/{run_id}/artifacts/{ARTIFACT}",
    ]
    for path in [*paths, *documents(api.client.get(f"/v1/jobs/{done}").json())]:
        for headers in ({}, {"If-None-Match": "*"}):
            got = api.client.get(path, headers=headers)
            head = api.client.head(path, headers={**headers, "Range": "bytes=0-1"})
            assert (head.status_code, head.content) == (got.status_code, b""), path
            own = {"x-request-id", "date", *(["content-length", "etag", "repr-digest"] if path == "/metrics" else [])}
            assert {name: value for name, value in head.headers.items() if name not in own} == {
                name: value for name, value in got.headers.items() if name not in own
            }, path
    live = api.post_job()["id"]
    head = api.client.head(f"/v1/jobs/{live}/events", headers={"Accept": "text/event-stream"})
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    wait_until(lambda: api.requests() == 0)
    refused = api.client.head("/v1/methods/preview")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert api.client.post("/healthz").headers["allow"] == "GET, HEAD"
    heads = [line for line in api.logs if line["event"] == "request" and line["method"] == "HEAD"]
    assert len(heads) > len(paths)
    assert not [line for line in api.logs if line["event"] in ("client left", "broken answer")]


# --------------------------------------------------------------------------------------------------- conditional GET


def test_a_document_is_not_sent_to_a_client_that_has_it(shared_api: Api) -> None:
    """Its ETag and digest are those of its bytes, and no shared cache may keep it."""
    for path in documents(shared_api.post_job()):
        whole = shared_api.client.get(path)
        sha256 = hashlib.sha256(whole.content)
        assert whole.headers["etag"] == f'"{sha256.hexdigest()}"', path
        assert whole.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
        assert whole.headers["cache-control"] == "private, no-cache"
        for tag in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}', "*"):
            same = shared_api.client.get(path, headers={"If-None-Match": tag})
            assert (same.status_code, same.content) == (304, b""), (path, tag)
            assert {name: same.headers[name] for name in ("etag", "cache-control", "vary")} == {
                "etag": whole.headers["etag"],
                "cache-control": "private, no-cache",
                "vary": "Accept",
            }
            assert not {"content-length", "content-type"} & set(same.headers)
            assert same.headers["x-request-id"]
        assert shared_api.client.get(path, headers={"If-None-Match": '"other"'}).content == whole.content


def test_a_document_that_has_changed_is_sent(api: Api) -> None:
    """A job that has ended: itself, its runs, its report, the list."""
    job = api.post_job()
    paths = [path for path in documents(job) if not path.endswith(("/metrics", "/artifacts"))]
    before = {path: api.client.get(path).headers["etag"] for path in paths}
    finish(api.records, job["id"])
    for path, etag in before.items():
        response = api.client.get(path, headers={"If-None-Match": etag})
        assert response.status_code == 200, path
        assert response.headers["etag"] != etag


def test_every_kind_of_a_document_has_its_own_validator(shared_api: Api) -> None:
    """The report as CSV is not the report as JSON."""
    path = f"/v1/jobs/{shared_api.post_job()['id']}/report"
    etag = shared_api.client.get(path).headers["etag"]
    table = shared_api.client.get(path, headers={"Accept": "text/csv", "If-None-Match": etag})
    assert table.status_code == 200
    again = shared_api.client.get(path, headers={"Accept": "text/csv", "If-None-Match": table.headers["etag"]})
    assert again.status_code == 304


def test_what_is_no_document_is_not_kept(shared_api: Api) -> None:
    """Neither a problem nor what a POST has made; a stream has no validator."""
    job = shared_api.post_job()
    for response in (
        shared_api.client.get("/v1/jobs/job_nothing", headers={"If-None-Match": "*"}),
        shared_api.client.post(f"/v1/jobs/{job['id']}/cancel"),
        shared_api.client.post("/v1/jobs", json={}),
    ):
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers
        assert response.content
    headers = {"Accept": "text/event-stream", "If-None-Match": "*"}
    with shared_api.client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as stream:
        assert stream.status_code == 200
        assert "etag" not in stream.headers


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs", "GET, HEAD, POST"),
        ("/v1/teachers/x", "DELETE, GET, HEAD"),
        ("/v1/jobs/x/cancel", "POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
def test_a_method_that_there_is_not_is_answered_with_those_there_are(shared_api: Api, path: str, methods: str) -> None:
    """All of them, whichever route they belong to."""
    response = shared_api.client.request("PATCH", path)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == methods


def test_of_very_many_mistakes_the_first_ones_are_told(shared_api: Api) -> None:
    body = {**shared_api.job_body(), "seeds": ["a"] * 1000}
    told = problem(shared_api.client.post("/v1/jobs", json=body), 422, "invalid-request")
    assert [error["pointer"] for error in told["errors"]] == [f"#/seeds/{n}" for n in range(20)]
    assert told["detail"].endswith("; and more")
    few = problem(shared_api.client.post("/v1/jobs", json={**body, "seeds": ["a"] * 20}), 422, "invalid-request")
    assert len(few["errors"]) == 20
    assert "and more" not in few["detail"]


# ------------------------------------------------------------------------------------------------------------- paging


def test_pages_of_a_state_hold_still_while_jobs_leave_it_and_come(api: Api) -> None:
    """Every job that stays in it comes once; who left before his page was asked for does not come at all."""
    posted = [api.post_job()["id"] for _ in range(8)]
    seen = []
    for number, page in enumerate(pages(api, "/v1/jobs", 2, status="queued")):
        seen += [job["id"] for job in page["data"]]
        if number == 0:
            api.client.post(f"/v1/jobs/{posted[7]}/cancel")  # seen already
            api.client.post(f"/v1/jobs/{posted[5]}/cancel")  # the first of the next page
        api.post_job()
    assert seen == [posted[n] for n in (7, 6, 4, 3, 2, 1, 0)]


def test_pages_of_events_hold_still_while_more_are_told(api: Api) -> None:
    """In the order of their numbers, none twice."""
    job = api.post_job()
    api.records.claim_job()

    def tell(number: int) -> None:
        assert api.records.record_events(job["id"], None, 1, [(number, {"type": "log", "message": str(number)})])

    tell(0)
    seen = []
    for number, page in enumerate(pages(api, f"/v1/jobs/{job['id']}/events", 1), start=1):
        seen += page["data"]
        if number < 5:
            tell(number)
    assert [event["data"].get("message") for event in seen] == [None, *"01234"]
    assert [event["seq"] for event in seen] == sorted({event["seq"] for event in seen})


# -------------------------------------------------------------------------------------------------------- idempotency


def test_one_job_though_two_servers_are_asked_at_once(tmp_path: Path, database_url: str) -> None:
    """Both look into the same database; one answers 201, all others 200, and after a restart still 200."""
    settings = make_settings(tmp_path, database_url=database_url)
    with running_api(settings) as one, running_api(settings) as two:
        body, key = one.job_body(), {"Idempotency-Key": "k1"}
        # A route is made ready at its first request, which switches warnings off and on for all threads of a process.
        for api in (one, two):
            api.client.post("/v1/jobs", params={"dry_run": True}, json=body).raise_for_status()
        barrier = threading.Barrier(8)

        def post(number: int) -> tuple[int, str]:
            with httpx2.Client(base_url=(one, two)[number % 2].url, timeout=30, trust_env=False) as client:
                barrier.wait()
                response = client.post("/v1/jobs", json=body, headers=key)
                return response.status_code, response.json()["id"]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(post, range(8)))
        assert sorted(status for status, _ in answers) == [200] * 7 + [201]
        (job,) = {id for _, id in answers}
    with running_api(settings) as api:
        again = api.client.post("/v1/jobs", json=body, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, job)
        problem(api.client.post("/v1/jobs", json={**body, "seeds": [9]}, headers=key), 422, "idempotency-mismatch")
        assert [job["id"] for job in api.client.get("/v1/jobs").json()["data"]] == [job]
        assert api.records.job(job).state is State.QUEUED


# -------------------------------------------------------------------------------------------------------------- pauses


def test_what_a_server_begins_with_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    """That would take 0.1 s, in which nobody is answered, several times a minute."""
    code = f"""if True:
        import gc
        from pathlib import Path
        from service.api import server
        from tests.support.service_helpers import make_settings

        def run(self):
            assert gc.get_freeze_count() > 10 * len(gc.get_objects()), len(gc.get_objects())

        server.Server.run = run
        server.serve(make_settings(Path({str(tmp_path)!r})))
    """
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
