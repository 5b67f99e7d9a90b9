"""Who may call, what each key may do, where the API listens, and what is written down about it."""

import asyncio
import http.client
import itertools
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import APIRouter
from fastapi.routing import RouteContext, iter_route_contexts
from sqlalchemy import text

from service.api.app import create_app
from service.api.auth import READ, authorize, check_scopes, load_key_digest, scopes_of
from service.api.server import build_server
from service.cli.processes.serve import ready_text
from service.db.database import Database, upgrade_to_head
from service.db.ids import new_id
from service.db.keys.api_keys import KeyRing, Keys, digest_of_secret
from service.db.keys.scopes import OPERATOR, THIS_MACHINE, Caller, Scope
from service.db.models import KeyRecord
from service.errors import BadKeyFile, UnsafeBinding
from service.settings import Settings
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, make_settings, onnx_bytes, running_api

pytest_plugins = ["tests.support.service_fixtures"]
KEY = "0123456789abcdef0123456789abcdef"
IDS = {
    **{"teacher_id": "tch", "dataset_id": "ds", "dataset": "ds", "job_id": "job", "run_id": "run", "key_id": "key"},
    **{"split": "test", "row": "row", "student_file_id": "stf"},
}
# What a client might try in place of an id, as it stands in the request.
STRANGE = (
    "..",
    "../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fsecret",
    "..%2f..%2fsecret",
    "%2fetc%2fpasswd",
    "secret%00.onnx",
    "%00",
    "%ff%fe",
    "%0d%0aX-Evil:%201",
    "..%5c..%5csecret",
    "a" * 5000,
    "*",
)


def routes(settings: Settings) -> list[RouteContext]:
    """Every route under /v1, and /metrics."""
    found = [route for route in iter_route_contexts(create_app(settings).routes) if route.path is not None]
    return [route for route in found if route.path.startswith(("/v1", "/metrics"))]


def operations(settings: Settings) -> list[tuple[str, str]]:
    """(method, template) of every one of them."""
    return [(method, str(route.path)) for route in routes(settings) for method in sorted(route.methods or ())]


def filled(template: str) -> str:
    """A path with ids of things that are not there."""
    path = template.replace("{key}", "a" * 64).replace("{name}", "student.safetensors")
    return path.format(**{name: new_id(prefix) for name, prefix in IDS.items()})


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[Api, dict[Scope, dict[str, str]]]]:
    """An API with a key of each scope, and the headers that bring them."""
    with running_api(make_settings(tmp_path)) as api:
        secrets = {scope: api.context.keys.issue(f"the {scope} one", scope)[1] for scope in Scope}
        yield api, {scope: {"Authorization": f"Bearer {secret}"} for scope, secret in secrets.items()}


# -------------------------------------------------------------------------------------------------------- keys


def test_with_a_key_every_route_of_v1_asks_for_it(tmp_path: Path) -> None:
    """Before it reads a body, and with every method. Health does not: a load balancer has no key."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    settings = make_settings(tmp_path, api_key_file=tmp_path / "key")
    with running_api(settings) as api:
        asked = operations(settings)
        assert len(asked) > 35
        for method, template in asked:
            response = api.client.request(method, filled(template), content=b"{")
            problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer", "Bearer \xe9"):
            headers = {"Authorization": wrong.encode("latin-1")}
            problem(api.client.get("/v1/jobs", headers=headers), 401, "unauthorized")
        assert api.upload().status_code == 401
        assert list(api.settings.teachers_dir.iterdir()) == []
        for right in (f"Bearer {KEY}", f"bearer  {KEY}"):
            assert api.client.get("/v1/jobs", headers={"Authorization": right}).status_code == 200
        assert api.client.get("/healthz").status_code == 200
        assert api.client.get("/readyz").status_code == 503


@pytest.mark.parametrize(("scope", "status"), [(None, 401), (Scope.READ, 403)])
def test_a_body_is_not_read_before_the_key_and_its_scope_are_known(
    keyed: tuple[Api, dict[Scope, dict[str, str]]], scope: Scope | None, status: int
) -> None:
    """Otherwise anybody could make the service parse a megabyte of JSON."""
    api, headers = keyed
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers[scope] if scope else {}).items())
        connection.sendall(head.encode() + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(1000).startswith(f"HTTP/1.1 {status}".encode())


def needed_scope(method: str, path: str) -> Scope:
    """Reading needs read, the rest write; what deletes what is everybody's, and all of /v1/keys, admin."""
    is_everybodys = path == "/v1/gc" or (
        method == "DELETE" and path.split("/")[2] in ("teachers", "student-files", "datasets", "caches", "jobs", "runs")
    )
    if path.startswith("/v1/keys") or (is_everybodys and not path.endswith("/pin")):
        return Scope.ADMIN
    # Its request has a body, but nothing is changed by it.
    is_read = method in ("GET", "HEAD") or path == "/v1/reports"
    return Scope.READ if is_read else Scope.WRITE


def test_every_route_asks_first_for_the_scope_that_its_method_needs(tmp_path: Path) -> None:
    """A new one cannot be forgotten; the OpenAPI document shows it."""
    settings = make_settings(tmp_path)
    described = create_app(settings).openapi()["paths"]
    assert routes(settings)
    for route in routes(settings):
        (method,), path = route.methods or (), str(route.path)
        first = route.dependant.dependencies[0]  # type: ignore[attr-defined]  # of the route that it stands for
        assert first.call is authorize, path
        assert first.own_oauth_scopes == [needed_scope(method, path)], (method, path)
        assert scopes_of(route.original_route) == first.own_oauth_scopes  # type: ignore[arg-type]  # no other is there
        assert described[path][method.lower()]["security"] == [{"HTTPBearer": first.own_oauth_scopes}]


def test_app_refuses_a_router_with_a_route_that_says_no_scope() -> None:
    router = APIRouter()
    router.get("/open", dependencies=[READ])(lambda: None)
    check_scopes(router)
    router.post("/forgotten")(lambda: None)
    with pytest.raises(ValueError, match=r"\['POST'\] /forgotten says no scope"):
        check_scopes(router)


def test_a_key_opens_what_its_scope_covers_and_nothing_else(
    keyed: tuple[Api, dict[Scope, dict[str, str]]],
) -> None:
    """Over the wire, for every route and every scope."""
    api, headers = keyed
    order = list(Scope)
    for method, template in operations(api.settings):
        needed = needed_scope(method, template)
        for scope in order:
            response = api.client.request(method, filled(template), headers=headers[scope])
            if order.index(scope) < order.index(needed):
                detail = problem(response, 403, "forbidden")["detail"]
                assert f"scope {scope}" in detail
                assert f"needs {needed}" in detail
            else:
                assert response.status_code not in (401, 403), (method, template, scope)
                assert response.status_code < 500


def test_the_first_key_closes_the_door_and_revoking_the_last_does_not_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running service is told by the database, within seconds."""
    monkeypatch.setattr("service.db.keys.api_keys.FRESH_S", 0.05)
    with running_api(make_settings(tmp_path)) as api:
        assert api.client.get("/v1/jobs").status_code == 200
        other = Keys(api.context.database)  # as `retort keys` has it
        key, secret = other.issue("ci", Scope.READ)
        headers = {"Authorization": f"Bearer {secret}"}
        assert settles(api.client, {}, 401)
        assert settles(api.client, headers, 200)
        other.revoke(key.id)
        assert settles(api.client, headers, 401)
        detail = problem(api.client.get("/v1/jobs", headers=headers), 401, "unauthorized")["detail"]
        assert "revoked" in detail
        problem(api.client.get("/v1/jobs"), 401, "unauthorized")


def settles(client: httpx2.Client, headers: dict[str, str], status: int) -> bool:
    """Whether the answer becomes this one soon, and then stays."""
    for _ in range(2000):
        if client.get("/v1/jobs", headers=headers).status_code == status:
            return client.get("/v1/jobs", headers=headers).status_code == status
    return False


def test_a_stream_ends_when_its_key_is_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one without a key when there is the first; those of others go on, and a job may be followed for days."""
    monkeypatch.setattr("service.db.keys.api_keys.FRESH_S", 0.05)
    with running_api(make_settings(tmp_path, keep_alive_s=0.05)) as api, ExitStack() as opened:
        path = f"/v1/jobs/{api.post_job()['id']}/events"

        def follow(secret: str | None = None) -> Iterator[str]:
            headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
            response = opened.enter_context(api.client.stream("GET", path, headers=headers))
            assert response.status_code == 200
            return response.iter_text()

        def ends(stream: Iterator[str]) -> bool:
            """Else it goes on for ever, and is found out by a timeout."""
            return len(list(itertools.islice(stream, 200))) < 200

        keyless = follow()
        first, second = (api.context.keys.issue(name, Scope.READ) for name in ("first", "second"))
        assert ends(keyless)
        revoked, other = follow(first[1]), follow(second[1])
        assert next(revoked)
        api.context.keys.revoke(first[0].id)
        assert ends(revoked)
        assert all(next(other) for _ in range(5))


def test_who_is_in_stays_while_the_keys_cannot_be_read(tmp_path: Path) -> None:
    """Streams outlive a database that is away."""
    settings = make_settings(tmp_path)
    upgrade_to_head(settings.database)
    database = Database(settings.database)
    ring = KeyRing(Keys(database), None, is_local=True)
    caller = Caller("key_1", "ci", Scope.READ)
    assert not asyncio.run(ring.knows(caller))
    assert asyncio.run(ring.knows(THIS_MACHINE))
    assert asyncio.run(ring.knows(OPERATOR))

    async def ask_while_another_looks() -> bool:
        async with ring._look._turn:
            return await asyncio.wait_for(ring.knows(THIS_MACHINE), 1)

    # What is known passes: a line of those who wait to hear what they could have read would never end under load.
    assert asyncio.run(ask_while_another_looks())
    with database.write() as session:
        session.execute(text("ALTER TABLE api_keys RENAME TO away"))
    ring.forget()
    assert asyncio.run(ring.knows(caller))
    database.close()


def test_beyond_this_machine_nobody_calls_without_a_key(tmp_path: Path) -> None:
    """Even if the last one vanishes while the service runs."""
    settings = make_settings(tmp_path, host="0.0.0.0")
    other = make_settings(tmp_path)
    with running_api(other) as api:
        key, secret = api.context.keys.issue("ci", Scope.READ)
    with running_api(settings, migrate=False) as api:
        assert api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        # Not only revoked: no trace is left of it, as in a database that was put in the place of this one.
        with api.context.database.write() as session:
            session.delete(session.get_one(KeyRecord, key.id))
        api.context.ring.forget()
        problem(api.client.get("/v1/jobs"), 401, "unauthorized")
    with pytest.raises(UnsafeBinding):
        build_server(settings)


def test_only_an_admin_key_makes_and_revokes_keys(keyed: tuple[Api, dict[Scope, dict[str, str]]]) -> None:
    """The secret is in the first answer alone; a key made so works at once, and once revoked is refused at once."""
    api, headers = keyed
    admin = headers[Scope.ADMIN]
    made = api.client.post("/v1/keys", json={"name": "ci", "scope": "write"}, headers=admin)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    secret = key.pop("secret")
    assert secret.startswith("rt_")
    assert api.client.get(made.headers["location"], headers=admin).json() == key
    assert secret not in api.client.get("/v1/keys", headers=admin).text
    theirs = {"Authorization": f"Bearer {secret}"}
    assert api.client.get("/v1/jobs", headers=theirs).status_code == 200
    for _ in range(2):
        assert api.client.delete(f"/v1/keys/{key['id']}", headers=admin).status_code == 204
        assert api.client.get("/v1/jobs", headers=theirs).status_code == 401
    listed = api.client.get("/v1/keys", params={"limit": 1}, headers=admin).json()
    assert (listed["has_more"], listed["data"][0]["id"]) == (True, key["id"])
    assert listed["data"][0]["revoked_at"] is not None
    for body in ({"name": "x", "scope": "root"}, {"name": "", "scope": "read"}, {"name": "x"}):
        assert api.client.post("/v1/keys", json=body, headers=admin).status_code == 422


def test_a_caller_that_nobody_knows_makes_no_first_key(api: Api) -> None:
    """It would shut out everybody else; who has the machine uses the command line."""
    response = api.client.post("/v1/keys", json={"name": "mine", "scope": "admin"})
    assert "retort keys create" in problem(response, 403, "forbidden")["detail"]
    assert api.client.get("/v1/keys").json()["data"] == []


KEY = "0123456789abcdef"


def test_a_key_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(f"{KEY}\r\n".encode("utf-8-sig"))
    assert load_key_digest(tmp_path / "key") == digest_of_secret(KEY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "0 characters"),
        (b"short\n", "5 char"),
        (KEY.encode("utf-16"), "is UTF-16, as PowerShell's"),
        (KEY.encode("utf-16-le"), "UTF-16 without a byte order mark"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Missing, empty, too short to be a secret, or no UTF-8."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadKeyFile, match=words) as caught:
        build_server(make_settings(tmp_path, api_key_file=path))
    assert str(path) in str(caught.value)


# -------------------------------------------------------------------------------------------------------- binding


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_without_a_key_the_api_listens_on_this_machine_only(tmp_path: Path, host: str) -> None:
    """And says the ways out; nothing is made by asking."""
    settings = make_settings(tmp_path, host=host)
    with pytest.raises(UnsafeBinding, match="RETORT_API_KEY_FILE") as caught:
        build_server(settings)
    assert repr(host) in str(caught.value)
    assert "retort keys create" in str(caught.value)
    assert not settings.data_dir.exists()
    (tmp_path / "key").write_text(KEY)
    server = build_server(make_settings(tmp_path, host=host, api_key_file=tmp_path / "key"))
    assert server.config.host == host


def test_serve_says_that_without_keys_it_is_open_to_this_machine_alone(tmp_path: Path) -> None:
    """And does not say so with one."""
    settings = make_settings(tmp_path)
    assert "only this machine may call" in ready_text(settings, "http://127.0.0.1:1")
    (tmp_path / "key").write_text(KEY)
    assert "machine" not in ready_text(make_settings(tmp_path, api_key_file=tmp_path / "key"), "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8765"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Host": "rebound.example.org"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_without_a_key_pages_from_elsewhere_are_turned_away(
    shared_api: Api, headers: dict[str, str], status: int
) -> None:
    """A browser on this machine would carry out what any page asks of it."""
    for path in ("/v1/jobs", "/metrics"):
        response = shared_api.client.get(path, headers=headers)
        assert response.status_code == status
        if status == 403:
            problem(response, 403, "foreign-origin")
            twice = [(next(iter(headers)), "http://127.0.0.1"), *headers.items()]
            if "Origin" in headers:
                problem(shared_api.client.get(path, headers=twice), 403, "foreign-origin")


# -------------------------------------------------------------------------------------------------------- logs


def test_every_write_leaves_an_audit_line_and_no_secret(keyed: tuple[Api, dict[Scope, dict[str, str]]]) -> None:
    """Who, what, to which object, with what end; reading leaves none."""
    api, headers = keyed
    writer, admin = headers[Scope.WRITE], headers[Scope.ADMIN]
    posted = api.client.post("/v1/jobs", json=api.job_body(), headers=writer | {"X-Request-Id": "mine"}).json()
    cancel = f"/v1/jobs/{posted['id']}/cancel"
    api.client.post(cancel, headers=writer)
    api.client.post(cancel, headers=headers[Scope.READ])
    api.client.post(cancel, headers={"Authorization": "Bearer rt_wrong"})
    api.client.get("/v1/jobs", headers=writer)
    api.client.post("/v1/keys", json={"name": "x", "scope": "read"}, headers=admin)
    api.stop()
    lines = [entry for entry in api.logs if entry["event"] == "audit"]
    made = api.context.keys.list()[0][0]
    ids = {key.scope: key.id for key in api.context.keys.list()[0] if key.name.startswith("the ")}
    told = [
        tuple(entry[name] for name in ("key_id", "key_name", "method", "route", "object_id", "status"))
        for entry in lines
    ]
    assert told == [
        (ids["write"], "the write one", "POST", "/v1/jobs", posted["id"], 201),
        (ids["write"], "the write one", "POST", "/v1/jobs/{job_id}/cancel", posted["id"], 200),
        (ids["read"], "the read one", "POST", "/v1/jobs/{job_id}/cancel", posted["id"], 403),
        (None, None, "POST", "other", None, 401),
        (ids["admin"], "the admin one", "POST", "/v1/keys", made.id, 201),
    ]
    assert lines[0]["request_id"] == "mine"
    assert len({entry["request_id"] for entry in lines}) == len(lines)
    everything = json.dumps(api.logs, default=str)
    assert "rt_" not in everything
    assert made.digest not in everything


def test_the_log_lines_of_a_request_carry_its_key_and_the_ids_of_its_path(
    keyed: tuple[Api, dict[Scope, dict[str, str]]],
) -> None:
    """And those of the next one on the same connection do not."""
    api, headers = keyed
    job = api.client.post("/v1/jobs", json=api.job_body(), headers=headers[Scope.WRITE]).json()
    paths = [f"/v1/jobs/{job['id']}", f"/v1/runs/{job['run_ids'][0]}", "/v1/methods"]
    for path in paths:
        assert api.client.get(path, headers=headers[Scope.READ]).status_code == 200
    api.stop()
    told = {entry["path"]: entry for entry in api.logs if entry["event"] == "request"}
    reader = next(key.id for key in api.context.keys.list()[0] if key.scope == "read")
    assert [told[path]["key_id"] for path in paths] == [reader] * 3
    assert [told[path].get("job_id") for path in paths] == [job["id"], None, None]
    assert [told[path].get("run_id") for path in paths] == [None, job["run_ids"][0], None]


# -------------------------------------------------------------------------------------------------------- paths


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the database's."""
    files = [path for path in folder.rglob("*") if path.is_file() and "sqlite3" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_nothing_in_a_path_reaches_a_file(api: Api, tmp_path: Path) -> None:
    """Whatever stands in the place of an id, in every place of every route: a 4xx, and every file is as it was."""
    api.teacher()
    for place in (tmp_path, api.settings.data_dir, api.settings.data_dir.parent / "root"):
        (place / "secret").write_bytes(b"not to be read")
        (place / "secret.onnx").write_bytes(b"not to be read")
    before = tree(tmp_path)
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=10)
    asked = 0
    for method, template in operations(api.settings):
        names = [step for step in template.split("/") if step.startswith("{")]
        for name in names:
            for strange in STRANGE:
                # Not by httpx2, which would take the dots out of the path.
                connection.request(method, filled(template.replace(name, "\0")).replace("\0", strange))
                response = connection.getresponse()
                body = response.read()
                asked += 1
                assert 400 <= response.status < 500, (method, template, strange, response.status)
                assert response.headers["content-type"] == "application/problem+json"
                assert response.headers["x-evil"] is None
                assert b"not to be read" not in body
    connection.close()
    assert asked > 300
    assert tree(tmp_path) == before


def test_the_names_of_an_upload_reach_no_file(api: Api, tmp_path: Path) -> None:
    """The file lies under its digest, whatever the client calls it."""
    before = set(tree(tmp_path))
    for salt, name in enumerate(("../../evil.onnx", "/tmp/evil.onnx" + "x" * 3000)):
        files = {"file": (name, onnx_bytes(salt=float(salt)))}
        response = api.client.post("/v1/teachers", files=files, data={"name": "../evil", "preprocessing": PLAIN})
        assert response.status_code == 201, response.text
    added = set(tree(tmp_path)) - before
    assert sum(path.endswith(".onnx") for path in added) == 2
    # And what was found out about it, under the same name.
    assert all(re.fullmatch(r"data/\w+/[0-9a-f]{64}(\.\w+)?", path) for path in added)


@pytest.mark.parametrize("kind", ["folder", "npz", "mnist", "cifar10"])
@pytest.mark.parametrize("path", ["../..", "/etc", "a\0b", "\ud800", "b" * 300, "c/" * 500, "x/../../..", "~root"])
def test_the_path_of_a_data_set_stays_below_the_data_root(shared_api: Api, kind: str, path: str) -> None:
    """A problem, whatever the file system would say to such a name."""
    text = json.dumps({"name": "d", "spec": {"kind": kind, "path": path}})
    response = shared_api.client.post("/v1/datasets", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


PLAIN = '{"channels": "gray", "mean": [0.5], "std": [0.5]}'
