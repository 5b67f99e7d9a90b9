"""Downloads: whole, in parts, by digest, and never from outside the data directory."""

import base64
import hashlib
from pathlib import Path

import pytest

from service.db.models import RunRecord
from service.db.states import State
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, make_settings, running_api, start_run

pytest_plugins = ["tests.support.service_fixtures"]
CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def leave_file(api: Api, path: str = "jobs/j/r/a1/artifacts/student.onnx") -> tuple[str, str]:
    """A run with one artifact; returns the run's id and the URL."""
    job = api.post_job()
    api.records.claim_job()
    run: str = job["run_ids"][0]
    assert start_run(api.records, run) == 1
    file = api.settings.data_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(CONTENT)
    row = {"name": "student.onnx", "path": path, "size_bytes": len(CONTENT), "sha256": SHA256}
    assert api.records.record_result(run, 1, [{**row, "media_type": "application/octet-stream"}], {})
    return run, f"/v1/runs/{run}/artifacts/student.onnx"


@pytest.fixture(scope="module")
def url(shared_api: Api) -> str:
    """One file for the tests that only read."""
    return leave_file(shared_api)[1]


def test_a_file_comes_whole_with_its_digest(shared_api: Api, url: str) -> None:
    """As a download, never as a page."""
    response = shared_api.client.get(url)
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["etag"] == f'"{SHA256}"'
    assert response.headers["content-disposition"] == 'attachment; filename="student.onnx"'
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-content-type-options"] == "nosniff"
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
    listed = shared_api.client.get(url.rpartition("/")[0]).json()["data"]
    assert [(file["name"], file["size_bytes"], file["sha256"]) for file in listed] == [
        ("student.onnx", len(CONTENT), SHA256)
    ]


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=10000-99999", slice(10000, None)),
        ("bytes=-99999", slice(None)),
    ],
)
def test_a_part_of_a_file(shared_api: Api, url: str, header: str, part: slice) -> None:
    """From here, to there, or the last bytes."""
    response = shared_api.client.get(url, headers={"Range": header})
    assert (response.status_code, response.content) == (206, CONTENT[part])
    assert response.headers["content-range"].endswith(f"/{len(CONTENT)}")


@pytest.mark.parametrize(
    "header", ["bytes=99999-", "bytes=9-1", "lines=1-2", "bytes=", "bytes=a-b", "bytes=-0", f"bytes={'9' * 5000}-"]
)
def test_a_part_that_there_is_not(shared_api: Api, url: str, header: str) -> None:
    """416, with the size that there is."""
    response = shared_api.client.get(url, headers={"Range": header})
    problem(response, 416, "range-not-satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_conditions_by_digest(shared_api: Api, url: str) -> None:
    """What the client has is not sent again; a part of another file is not mixed in."""
    response = shared_api.client.get(url, headers={"If-None-Match": f'"other", W/"{SHA256}"'})
    assert (response.status_code, response.content) == (304, b"")
    assert shared_api.client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    same = shared_api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": f'"{SHA256}"'})
    assert same.status_code == 206
    modified = same.headers["last-modified"]
    for other in ('"other"', "Sat, 01 Jan 2000 00:00:00 GMT"):
        for part in ("bytes=0-9", "bytes=99999-", "bytes=9-1"):
            whole = shared_api.client.get(url, headers={"Range": part, "If-Range": other})
            assert (whole.status_code, whole.content) == (200, CONTENT)
    assert shared_api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": modified}).status_code == 206
    for part in ("bytes=99999-", "bytes=9-1"):
        response = shared_api.client.get(url, headers={"Range": part, "If-Range": modified})
        problem(response, 416, "range-not-satisfiable")


def test_only_the_newest_attempts_files_are_shown(api: Api) -> None:
    """A lost attempt's file does not look complete."""
    run, url = leave_file(api)
    with api.context.database.write() as session:
        record = session.get_one(RunRecord, run)
        record.state, record.attempt = State.RUNNING, 2
    assert api.client.get(f"/v1/runs/{run}/artifacts").json()["data"] == []
    problem(api.client.get(url), 404, "not-found")


def test_a_path_out_of_the_data_directory_is_not_served(tmp_path: Path) -> None:
    """Neither by dots nor by a link, nor a file that is gone."""
    with running_api(make_settings(tmp_path)) as api:
        _, url = leave_file(api, "../outside")
        problem(api.client.get(url), 404, "not-found")
        _, url = leave_file(api, "jobs/linked")
        assert api.client.get(url).status_code == 200
        (api.settings.data_dir / "jobs/linked").unlink()
        problem(api.client.get(url), 404, "not-found")
        (api.settings.data_dir / "jobs/linked").symlink_to(tmp_path / "outside")
        problem(api.client.get(url), 404, "not-found")
