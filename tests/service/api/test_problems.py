"""Every error is a problem of the right kind that helps, and leaves nothing half-made."""

import errno
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service import errors
from service.api.problems import KINDS, kind_of
from service.db.models import JobRecord
from store import DiskFull
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, make_settings, running_api
from workers.errors import InvalidMethod, UserError, WorkerError

pytest_plugins = ["tests.support.service_fixtures"]

UNKNOWN = "01m7yt5knp2b4d7r46qbv3d8r3"


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nope", 404, "not-found"),
        ("GET", "/v1/nope", 404, "not-found"),
        ("PUT", "/v1/jobs", 405, "method-not-allowed"),
        ("GET", "/v1/jobs/nonsense", 404, "not-found"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}", 404, "not-found"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}/runs", 404, "not-found"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}/events", 404, "not-found"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}/report", 404, "not-found"),
        ("POST", f"/v1/jobs/job_{UNKNOWN}/cancel", 404, "not-found"),
        ("GET", f"/v1/runs/run_{UNKNOWN}", 404, "not-found"),
        ("GET", f"/v1/runs/run_{UNKNOWN}/metrics", 404, "not-found"),
        ("GET", f"/v1/runs/run_{UNKNOWN}/artifacts", 404, "not-found"),
        ("GET", f"/v1/runs/run_{UNKNOWN}/artifacts/x", 404, "not-found"),
        ("GET", f"/v1/runs/run_{UNKNOWN}/events", 404, "not-found"),
        ("GET", f"/v1/teachers/tch_{UNKNOWN}", 404, "not-found"),
        ("DELETE", f"/v1/teachers/tch_{UNKNOWN}", 404, "not-found"),
        ("GET", f"/v1/datasets/ds_{UNKNOWN}", 404, "not-found"),
        ("DELETE", f"/v1/datasets/ds_{UNKNOWN}", 404, "not-found"),
        ("GET", f"/v1/caches/{'a' * 64}", 404, "not-found"),
        ("DELETE", f"/v1/caches/{'a' * 64}", 404, "not-found"),
        ("POST", f"/v1/caches/{'a' * 64}/verify", 404, "not-found"),
        ("GET", "/v1/jobs/%00", 404, "not-found"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid-request"),
        ("GET", "/v1/jobs?limit=101", 422, "invalid-request"),
        ("GET", "/v1/jobs?after=%00", 422, "invalid-request"),
        ("GET", "/v1/jobs?status=sleeping", 422, "invalid-request"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}/events?after=-1", 422, "invalid-request"),
        ("GET", f"/v1/jobs/job_{UNKNOWN}/events?after=99999999999999999999", 422, "invalid-request"),
    ],
)
def test_a_wrong_address_is_a_problem(shared_api: Api, method: str, path: str, status: int, slug: str) -> None:
    """With everything that RFC 9457 wants."""
    response = shared_api.client.request(method, path)
    body = problem(response, status, slug)
    assert set(body) == {"type", "title", "status", "detail", "instance", "request_id", "errors"}
    assert body["status"] == status
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]


BAD_JOBS: list[tuple[dict[str, Any], str, str | None, str]] = [
    ({"methods": ["kdd"]}, "unknown-name", None, "Did you mean 'kd'"),
    ({"students": ["resnet9"]}, "unknown-name", None, "Did you mean 'resnet8'"),
    ({"methods": [{"preset": "kd", "temprature": 1}]}, "unknown-name", None, "Did you mean 'temperature'"),
    ({"training": {"epoch": 1}}, "unknown-name", None, "Did you mean 'epochs'"),
    ({"studens": ["resnet8"]}, "unknown-name", None, "Did you mean 'students'"),
    ({"dataset": "flowers"}, "unknown-name", None, "unknown dataset 'flowers'"),
    ({"methods": [{"preset": "kd", "temperature": 0}]}, "invalid-request", "#/methods/0", "temperature is 0"),
    ({"methods": [{"preset": "kd", "temperature": "hot"}]}, "invalid-request", "#/methods/0", "temperature is 'hot'"),
    ({"training": {"epochs": 0}}, "invalid-request", "#/training/epochs", "got 0"),
    ({"students": []}, "invalid-request", "#", "students is empty: name at least one"),
    ({"seeds": [1, 1]}, "invalid-request", "#", "twice"),
    ({"seeds": list(range(600))}, "invalid-request", "#", "at most 1000"),
    ({"seeds": ["a"] * 100_000}, "invalid-request", "#/seeds", "there are 100000 items, at most 1000"),
    ({"dataset": {"kind": "digit"}}, "invalid-request", "#/dataset", "'digits'"),
    ({"dataset": {"kind": "folder"}}, "invalid-request", "#/dataset/path", "required"),
    ({"dataset": 3}, "invalid-request", "#/dataset", "got 3"),
    ({"teacher": f"tch_{UNKNOWN}"}, "invalid-request", "#/teacher", "upload one"),
    ({"teacher": None}, "invalid-request", "#/teacher", "string"),
    ({"name": "a\x00b"}, "invalid-request", "#/name", "match pattern"),
    ({"name": "x" * 201}, "invalid-request", "#/name", "at most 200"),
    ({"students": ["torchvision/vit_b_16"]}, "invalid-job", None, "at least 16 pixels"),
    ({"training": {"batch_size": 1}}, "invalid-job", None, "'cnn_s' has batch normalisation, which needs 2 pictures"),
    ({"training": {"epochs": "3"}}, "invalid-request", "#/training/epochs", "valid integer"),
    ({"training": {"label_smoothing": False}}, "invalid-request", "#/training/label_smoothing", "valid number"),
    ({"views": {"augmentation": {"recipe": "crop_flip", "flip": 1}}}, "invalid-request", None, "valid boolean"),
    ({"methods": [{"preset": "custom", "terms": [{"loss": {"kind": {}}}]}]}, "unknown-name", None, "loss '{}'"),
    ({"dataset": {"kind": "npz", "path": "x" * 300}}, "invalid-dataset", None, "name too long"),
]


@pytest.mark.parametrize(("change", "slug", "pointer", "words"), BAD_JOBS)
def test_a_bad_job_is_refused_with_what_is_wrong(
    shared_api: Api, change: dict[str, Any], slug: str, pointer: str | None, words: str
) -> None:
    """Named, with what is allowed, and nothing is made."""
    response = shared_api.client.post("/v1/jobs", json=shared_api.job_body(**change))
    body = problem(response, 422, slug)
    assert words in body["detail"]
    if pointer is not None:
        assert [error["pointer"] for error in body["errors"]] == [pointer]
    assert shared_api.client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", "/v1/methods/preview", "/v1/keys"])
def test_a_body_without_the_content_type_of_json_is_refused_naming_the_header(shared_api: Api, path: str) -> None:
    """As `curl -d` sends one."""
    for given, told in (
        ("application/x-www-form-urlencoded", "the Content-Type is 'application/x-www-form-urlencoded'"),
        ("text/plain", "the Content-Type is 'text/plain'"),
        (None, "there is no Content-Type"),
    ):
        headers = {} if given is None else {"Content-Type": given}
        body = problem(shared_api.client.post(path, content=b"{}", headers=headers), 422, "invalid-request")
        assert f"{told}: send the header `Content-Type: application/json`" in body["detail"]
        assert [error["pointer"] for error in body["errors"]] == ["#"]


def test_half_a_surrogate_pair_is_a_problem_not_a_crash(shared_api: Api) -> None:
    """JSON can spell it, UTF-8 cannot."""
    for text in ('{"name": "\\ud800", "spec": {"kind": "digits"}}', '{"\\ud800": 1, "spec": {"kind": "digits"}}'):
        response = shared_api.client.post("/v1/datasets", content=text, headers={"Content-Type": "application/json"})
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"


def test_a_teacher_with_other_classes_than_the_data_set_is_refused(shared_api: Api) -> None:
    """With both numbers."""
    body = shared_api.job_body(teacher=shared_api.teacher(classes=7))
    detail = problem(shared_api.client.post("/v1/jobs", json=body), 422, "contract-violation")["detail"]
    assert "7 classes" in detail
    assert "10" in detail


def test_a_teacher_whose_file_is_gone_is_refused(api: Api) -> None:
    """Uploading it again heals it."""
    body = api.job_body()
    for file in api.settings.teachers_dir.iterdir():
        file.unlink()
    detail = problem(api.client.post("/v1/jobs", json=body), 422, "invalid-teacher")["detail"]
    assert "upload it again" in detail
    assert str(api.settings.data_dir.resolve()) not in detail
    api.teacher()
    assert api.client.post("/v1/jobs", json=body).status_code == 201


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[1]", b"null"])
def test_a_body_that_is_no_json_object_is_a_problem(shared_api: Api, content: bytes) -> None:
    """400 for what is no JSON, 422 for another value."""
    response = shared_api.client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", "/v1/keys"])
def test_a_name_that_is_twice_in_an_object_is_refused_at_any_depth(shared_api: Api, path: str) -> None:
    """One reader takes the first and one the last: a check by one would not be of what the other does."""
    for content in (b'{"name": "a", "name": "b"}', b'{"dataset": [{"kind": "digits", "kind": "folder"}]}'):
        answer = shared_api.client.post(path, content=content, headers={"Content-Type": "application/json"})
        detail = problem(answer, 400, "malformed-body")["detail"]
        assert detail.startswith("the body has an object with 2 members '")
    long = json.dumps("x" * 10_000).encode()
    content = b"{" + long + b": 1, " + long + b": 2}"
    answer = shared_api.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert len(problem(answer, 400, "malformed-body")["detail"]) < 200


@pytest.mark.parametrize("field", ["methods", "students", "name of a field", "teacher", "dataset", "path"])
def test_a_text_of_any_length_is_quoted_in_part(shared_api: Api, field: str) -> None:
    long = "x" * 500_000
    changes: dict[str, Any] = {
        "methods": {"methods": [long]},
        "students": {"students": [long]},
        "name of a field": {long: 1},
        "teacher": {"teacher": long},
        "dataset": {"dataset": long},
        "path": {"dataset": {"kind": "npz", "path": long}},
    }
    answer = shared_api.client.post("/v1/jobs", json=shared_api.job_body(**changes[field]))
    assert answer.status_code == 422
    assert len(answer.content) < 4000


def test_a_body_over_the_limit_is_refused_announced_or_not(shared_api: Api) -> None:
    """As Content-Length, and in chunks that announce nothing."""
    big = b'{"name": "' + b"x" * (shared_api.settings.body_max_bytes + 1) + b'"}'
    headers = {"Content-Type": "application/json"}
    for content, words in ((big, f"has {len(big)} bytes"), (iter([big]), "has more bytes")):
        response = shared_api.client.post("/v1/jobs", content=content, headers=headers)
        detail = problem(response, 413, "too-large")["detail"]
        assert words in detail
        assert "1048576" in detail


def test_an_announced_size_over_the_limit_is_refused_before_a_byte_of_it_is_read(shared_api: Api) -> None:
    """A client that asks first (curl does) need not send it."""
    address = urlsplit(shared_api.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Expect: 100-continue\r\nContent-Length: 1048577\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_too_little_disk_refuses_jobs_and_uploads(tmp_path: Path) -> None:
    """And nothing is left of either."""
    with running_api(make_settings(tmp_path, disk_floor_bytes=1 << 60)) as api:
        body = problem(api.client.post("/v1/jobs", json=api.job_body()), 507, "disk-full")
        assert "stay in reserve" in body["detail"]
        before = set(api.settings.teachers_dir.iterdir())
        problem(api.upload(), 507, "disk-full")
        assert set(api.settings.teachers_dir.iterdir()) == before
        assert api.client.get("/v1/jobs").json()["data"] == []


def test_an_unforeseen_error_is_a_500_that_tells_nothing(api: Api) -> None:
    """What broke stays in the log, under the request id."""
    job = api.post_job()
    with api.context.database.write() as session:
        session.get_one(JobRecord, job["id"]).teacher = {"secret": "value"}
    response = api.client.get(f"/v1/jobs/{job['id']}")
    body = problem(response, 500, "internal")
    assert "secret" not in response.text
    assert "sha256" not in response.text
    assert body["request_id"] == response.headers["x-request-id"]
    logged = [entry for entry in api.logs if entry["event"] == "unforeseen error"]
    assert [(entry["log_level"], entry["path"]) for entry in logged] == [("error", f"/v1/jobs/{job['id']}")]
    assert api.client.get("/healthz").status_code == 200


def test_what_a_problem_keeps_to_itself_is_in_the_log(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours with its trace, a database that is away in a line; wherever it was noticed."""

    def fails(*_: object) -> None:
        raise WorkerError("the child could not start")

    monkeypatch.setattr("service.api.routes.teachers.inspect_in_subprocess", fails)
    request_id = problem(api.upload(), 500, "internal")["request_id"]
    logged = [entry for entry in api.logs if entry["event"] == "unforeseen error"]
    assert [(entry["path"], entry["request_id"]) for entry in logged] == [("/v1/teachers", request_id)]
    assert "could not start" in str(logged[0]["exc_info"])
    api.context.database.close()
    (api.settings.data_dir / "retort.sqlite3").rename(api.settings.data_dir / "away")
    (api.settings.data_dir / "retort.sqlite3").mkdir()
    for path in ("/v1/jobs", "/v1/teachers"):
        problem(api.client.get(path), 503, "database-unavailable")
        api.context.ring.forget()  # The second is noticed where a key is asked for.
    lines = [entry for entry in api.logs if entry["event"] == "unforeseen error"][1:]
    assert [entry["path"] for entry in lines] == ["/v1/jobs", "/v1/teachers"]
    assert all("unable to open database file" in entry["error"] for entry in lines)


def test_a_request_that_is_no_http_ends_the_connection_only(shared_api: Api) -> None:
    """The next one is served."""
    address = urlsplit(shared_api.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert shared_api.client.get("/healthz").status_code == 200


def test_a_new_error_class_is_answered_as_its_nearest_base() -> None:
    """So an entry that is missing is not a 500."""

    class Newer(InvalidMethod):
        pass

    class Unlisted(UserError):
        pass

    assert kind_of(Newer()).slug == "invalid-method"
    assert kind_of(Unlisted()).status == 422


def test_a_database_that_has_no_connection_left_is_unavailable() -> None:
    """Not broken: the client comes back."""
    for error in (PoolTimeout("no connection"), OperationalError("select", {}, Exception("gone"))):
        kind = kind_of(error)
        assert (kind.status, kind.slug) == (503, "database-unavailable")
        assert kind.headers
        assert int(kind.headers["Retry-After"]) > 0


def test_a_full_disk_is_507_whoever_noticed() -> None:
    """The store by its own class, the operating system by its number."""
    assert kind_of(DiskFull("full", 1, 0)).status == 507
    assert kind_of(OSError(errno.ENOSPC, "no space")).status == 507
    assert kind_of(OSError(errno.EDQUOT, "quota")).status == 507
    assert kind_of(OSError(errno.EPERM, "broken")).status == 500


def test_a_disk_that_is_read_only_or_fails_is_503_and_says_so() -> None:
    for number in (errno.EROFS, errno.EIO):
        kind = kind_of(OSError(number, "broken"))
        assert (kind.status, kind.slug, kind.shows_message) == (503, "storage-unavailable", True)


def test_every_error_of_the_service_that_a_request_can_meet_has_an_entry() -> None:
    """The others end a process at its start, or never leave it."""
    at_the_start = {
        errors.InvalidSettings,
        errors.UnsafeBinding,
        errors.BadKeyFile,
        errors.IllegalMove,
        errors.LeaseLost,
        errors.RayFailed,
        errors.NewerDatabase,
        errors.DamagedCopy,
        errors.DataDirBusy,
        errors.DataDirNotEmpty,
        errors.BadBackup,
        errors.BackupFailed,
    }
    declared = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ServiceError) and value is not errors.ServiceError
    }
    assert declared - at_the_start <= set(KINDS)
