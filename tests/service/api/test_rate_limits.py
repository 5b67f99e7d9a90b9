"""What a caller may ask for: rates, streams, jobs, sizes and depths, each refused with what to do about it."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis.strategies as st
import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import given, settings

from service.api.app import create_app
from service.api.bodies.limits import JSON_DEPTH_MAX, check_depth
from service.api.rate_limits import NAMES_MAX, ConcurrencyLimit, RateLimit
from service.db.database import Database
from service.db.engine_queries import EngineQueries
from service.db.keys.scopes import Scope
from service.db.queries.api_queries import ApiQueries
from service.db.queries.job_search import JobFilter
from service.db.states import State
from service.errors import InvalidRequest, MalformedBody, QueueFull, TooManyRequests
from tests.service.api.test_auth import filled
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, finish, make_plan, make_settings, running_api, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]
SSE = {"Accept": "text/event-stream"}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# ------------------------------------------------------------------------------------------------------------ rates


def test_a_bucket_gives_its_burst_and_then_the_rate() -> None:
    """And says when the next one is worth trying; other names have their own."""
    clock = Clock()
    limit = RateLimit(per_s=0.5, burst=3, clock=clock)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(TooManyRequests, match=r"0\.5 requests a second, and 3 at once") as caught:
        limit.take("a")
    assert caught.value.retry_after_s == 2
    limit.take("b")
    clock.now_s += 1.5
    with pytest.raises(TooManyRequests) as caught:
        limit.take("a")
    assert caught.value.retry_after_s == 1
    clock.now_s += 1
    limit.take("a")


@settings(max_examples=100)
@given(st.floats(0.1, 50), st.integers(1, 20), st.lists(st.floats(0, 3), min_size=1, max_size=60), st.integers(0, 59))
def test_no_window_of_time_has_more_requests_than_burst_and_rate_allow(
    per_s: float, burst: int, pauses: list[float], start: int
) -> None:
    """Nor is one refused after it has waited for as long as it was told."""
    clock = Clock()
    limit = RateLimit(per_s, burst, clock)
    passed_s = []
    for pause_s in pauses:
        clock.now_s += pause_s
        try:
            limit.take("a")
        except TooManyRequests as error:
            clock.now_s += error.retry_after_s + 1e-6
            limit.take("a")
        passed_s.append(clock.now_s)
    window = passed_s[start:]
    assert not window or len(window) <= burst + per_s * (window[-1] - window[0]) + 1e-6


def test_quiet_names_are_forgotten() -> None:
    """Memory does not grow with the number of callers there have ever been."""
    clock = Clock()
    limit = RateLimit(per_s=10, burst=20, clock=clock)
    for number in range(3 * NAMES_MAX):
        limit.take(f"198.51.100.{number}")
    assert len(limit) <= NAMES_MAX
    clock.now_s += 2
    limit.take("one more")
    assert len(limit) == 1


def test_zero_is_no_limit() -> None:
    limit = RateLimit(per_s=0, burst=1)
    for _ in range(100):
        limit.take("a")
    assert len(limit) == 0


def test_a_key_that_is_too_fast_is_told_when_to_come_back(tmp_path: Path) -> None:
    """Others are not hindered by it, nor by one who tries out keys; health is always answered."""
    with running_api(make_settings(tmp_path, requests_per_s=0.001, requests_burst=3)) as api:
        fast, calm = (
            {"Authorization": f"Bearer {api.context.keys.issue(name, Scope.WRITE)[1]}"} for name in ("fast", "calm")
        )
        wrong = {"Authorization": "Bearer rt_wrong"}
        for headers, status in ((fast, 200), (wrong, 401)):
            for _ in range(3):
                assert api.client.get("/v1/jobs", headers=headers).status_code == status
            refused = api.client.post("/v1/jobs", content=b"{", headers=headers)
            problem(refused, 429, "too-many-requests")
            assert 900 <= int(refused.headers["retry-after"]) <= 1000
        # One without any key comes from the same address as the one with wrong keys.
        problem(api.client.get("/v1/jobs"), 429, "too-many-requests")
        assert api.client.get("/v1/jobs", headers=calm).status_code == 200
        for _ in range(5):
            assert api.client.get("/healthz", headers=fast).status_code == 200
            assert api.client.get("/readyz", headers=fast).status_code == 503


@pytest.mark.parametrize(("proxies", "statuses"), [(None, [401, 429]), ("10.9.9.9", [401, 429]), ("*", [401, 401])])
def test_the_address_that_a_header_claims_is_believed_of_named_proxies_alone(
    tmp_path: Path, proxies: str | None, statuses: list[int]
) -> None:
    """Or whoever tries out keys would have a new address, and a new allowance, in every request."""
    settings = make_settings(tmp_path, requests_per_s=0.001, requests_burst=1, forwarded_allow_ips=proxies)
    with running_api(settings) as api:
        api.context.keys.issue("somebody's", Scope.READ)
        claimed = [{"X-Forwarded-For": f"192.0.2.{number}", "Authorization": "Bearer rt_wrong"} for number in (1, 2)]
        assert [api.client.get("/v1/jobs", headers=headers).status_code for headers in claimed] == statuses


def test_streams_of_one_key_are_counted_while_they_are_open(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, streams_max=2)) as api:
        path = f"/v1/jobs/{api.post_job()['id']}/events"
        with api.client.stream("GET", path, headers=SSE) as first:
            with api.client.stream("GET", path, headers=SSE) as second:
                assert (first.status_code, second.status_code) == (200, 200)
                refused = api.client.get(path, headers=SSE)
                problem(refused, 429, "too-many-requests")
                assert int(refused.headers["retry-after"]) > 0
                # A page of events is no stream.
                assert api.client.get(path).status_code == 200
            assert becomes_free(api, path)


def test_uploads_of_one_key_are_counted_until_they_are_answered(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, uploads_max=1)) as api:
        url = api.client.base_url
        with socket.create_connection((url.host, url.port or 0), timeout=10) as first:
            first.sendall(
                f"POST /v1/teachers HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: multipart/form-data; boundary=B\r\n"
                "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            # So it has been let in.
            assert first.recv(1000).startswith(b"HTTP/1.1 100 ")
            refused = api.upload(b"abc")
            assert "1 uploads" in problem(refused, 429, "too-many-requests")["detail"]
            assert int(refused.headers["retry-after"]) > 0
            assert api.client.get("/v1/teachers").status_code == 200
        assert any(api.upload(b"abc").status_code == 422 for _ in range(1000))


def becomes_free(api: Api, path: str) -> bool:
    """Whether another stream can be opened soon: the service hears a moment later that one was closed."""
    for _ in range(1000):
        with api.client.stream("GET", path, headers=SSE) as response:
            if response.status_code == 200:
                return True
    return False


def test_a_stream_that_breaks_is_counted_no_more() -> None:
    """However it ends; a name without streams takes no room."""
    streams = ConcurrencyLimit(1, "streams", "close one")

    def follow(name: str, depth: int) -> None:
        with streams.held(name):
            assert streams.open[name] == 1
            if depth:
                follow(name, depth - 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        follow("a", 0)
    with pytest.raises(TooManyRequests):
        follow("b", 1)
    assert not streams.open


# ------------------------------------------------------------------------------------------------------ connections

HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("begins", "answer"),
    [
        (b"", b""),
        (b"GET /healthz " + HEAD + b"X: ", b""),
        (b"GET /healthz " + HEAD + b"\r\n", b"HTTP/1.1 200"),
        (b"POST /v1/nothing " + HEAD + b"Content-Length: 100000\r\n\r\n", b"HTTP/1.1 404"),
    ],
    ids=["nothing", "a head", "another request", "the body of a request that was answered"],
)
def test_a_connection_on_which_hardly_anything_comes_is_closed(tmp_path: Path, begins: bytes, answer: bytes) -> None:
    """A byte now and then does not keep it open; nobody has asked who it is."""
    with running_api(make_settings(tmp_path, head_timeout_s=0.3)) as api:
        address = urlsplit(api.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(begins)
            connection.settimeout(0.05)
            received, is_open, deadline_s = b"", True, time.monotonic() + 20
            while is_open and time.monotonic() < deadline_s:
                try:
                    connection.sendall(b"x")
                    piece = connection.recv(1 << 16)
                    received, is_open = received + piece, bool(piece)
                except TimeoutError:
                    continue
                except ConnectionError:
                    is_open = False
        assert not is_open
        assert received.startswith(answer)


def test_a_request_at_work_may_take_longer_than_its_head(tmp_path: Path) -> None:
    """A stream lasts for as long as its job."""
    with running_api(make_settings(tmp_path, keep_alive_s=0.05, head_timeout_s=0.1)) as api:
        path = f"/v1/jobs/{api.post_job()['id']}/events"
        with api.client.stream("GET", path, headers=SSE) as response:
            assert all(piece for piece, _ in zip(response.iter_text(), range(10), strict=False))
        assert api.client.get("/healthz").status_code == 200


# ------------------------------------------------------------------------------------------------------------- jobs


def test_a_full_queue_refuses_jobs_until_one_has_ended(tmp_path: Path) -> None:
    """Each key has its own; what was taken is found again by its Idempotency-Key even so."""
    with running_api(make_settings(tmp_path, key_live_jobs_max=2)) as api:
        one, two = (
            {"Authorization": f"Bearer {api.context.keys.issue(name, Scope.WRITE)[1]}"} for name in ("one", "two")
        )
        body = api.job_body()
        first = api.client.post("/v1/jobs", json=body, headers=one | {"Idempotency-Key": "first"}).json()
        assert api.client.post("/v1/jobs", json=body, headers=one).status_code == 201
        refused = api.client.post("/v1/jobs", json=body, headers=one)
        assert "2 jobs of this API key" in problem(refused, 429, "queue-full")["detail"]
        assert int(refused.headers["retry-after"]) > 0
        assert api.client.post("/v1/jobs", json=body, headers=two).status_code == 201
        again = api.client.post("/v1/jobs", json=body, headers=one | {"Idempotency-Key": "first"})
        assert (again.status_code, again.json()["id"]) == (200, first["id"])
        assert api.client.post("/v1/jobs", json=body, params={"dry_run": True}, headers=one).status_code == 200
        cancel = f"/v1/jobs/{first['id']}/cancel"
        assert api.client.post(cancel, headers=one).json()["state"] == "cancelled"
        assert api.client.post("/v1/jobs", json=body, headers=one).status_code == 201
        # A retry is a job like any other.
        retry = f"/v1/jobs/{first['id']}/retry"
        problem(api.client.post(retry, headers=one), 429, "queue-full")
        made = api.client.post(retry, headers=two)
        assert made.status_code == 201
        assert api.records.job(made.json()["id"]).key_id == api.context.keys.list()[0][0].id


def test_however_many_post_at_once_the_queue_is_never_longer(database_url: str) -> None:
    """The count and the new row are one transaction, in both databases."""
    databases = [Database(database_url) for _ in range(4)]
    registries = [ApiQueries(database, key_live_jobs_max=5) for database in databases]
    teacher = registries[0].add_teacher(teacher_row(), lambda: None)[0]

    def post(number: int) -> bool:
        try:
            registries[number % 4].add_job(make_plan(), teacher, None, key_id="key_1")
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(post, range(12))) == 5
    # What has ended counts no more.
    records = EngineQueries(databases[0])
    finish(records, oldest(registries[0]))
    assert post(0)
    assert not post(1)
    for database in databases:
        database.close()


def oldest(queries: ApiQueries) -> str:
    """The job that an engine would take first."""
    return queries.jobs(JobFilter(State.QUEUED), None, 100)[0][-1].id


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"seeds": [0, 1, 2]}, "#", "6 runs, at most 5"),
        ({"training": {"epochs": 11}}, "#/training/epochs", "11 epochs, at most 10"),
    ],
)
def test_a_job_that_is_too_large_is_refused_with_what_is(
    tmp_path: Path, change: dict[str, Any], pointer: str, words: str
) -> None:
    """A dry run tells as much; what is just allowed is taken."""
    with running_api(make_settings(tmp_path, job_runs_max=5, job_epochs_max=10)) as api:
        for params in ({}, {"dry_run": True}):
            response = api.client.post("/v1/jobs", json=api.job_body(**change), params=params)
            body = problem(response, 422, "invalid-request")
            assert words in body["detail"]
            assert [error["pointer"] for error in body["errors"]] == [pointer]
        fits = api.job_body(seeds=[0, 1], training={"epochs": 10})
        assert api.client.post("/v1/jobs", json=fits).status_code == 201


# ------------------------------------------------------------------------------------------------------------ depth


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


DEEP = {
    "never closed": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "closed": nested(100_000),
    "just too deep": nested(JSON_DEPTH_MAX + 1),
    "after a string with a quote": b'["\\"", ' + nested(JSON_DEPTH_MAX) + b"]",
    "after a string that ends in a backslash": b'["\\\\", ' + nested(JSON_DEPTH_MAX) + b"]",
}


def test_a_body_that_is_nested_too_deep_is_a_problem_on_every_route(shared_api: Api) -> None:
    """A parser that recurses is not even asked."""
    posts = [
        str(route.path)
        for route in iter_route_contexts(create_app(shared_api.settings).routes)
        if "POST" in (route.methods or ())
    ]
    assert len(posts) > 10
    for path in posts:
        for content in DEEP.values():
            headers = {"Content-Type": "application/json"}
            response = shared_api.client.post(filled(path), content=content, headers=headers)
            assert 400 <= response.status_code < 500, path
            assert response.headers["content-type"] == "application/problem+json"
    for name, content in DEEP.items():
        response = shared_api.client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
        assert f"at most {JSON_DEPTH_MAX}" in problem(response, 422, "invalid-request")["detail"], name
    assert shared_api.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_json_in_another_encoding_is_refused(shared_api: Api, encoding: str) -> None:
    """A parser would take it, and brackets could hide from who counts bytes."""
    content = json.dumps({"name": "dé", "spec": {"kind": "digits"}}, ensure_ascii=False).encode(encoding)
    response = shared_api.client.post("/v1/datasets", content=content, headers={"Content-Type": "application/json"})
    assert "UTF-8" in problem(response, 400, "malformed-body")["detail"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab[]{}"\\/\u00e9\U0001f600,:'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='a[{"\\'), inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=200)
@given(JSON, st.integers(0, JSON_DEPTH_MAX + 3), st.booleans())
def test_the_depth_is_that_of_the_parsed_value(value: object, wraps: int, is_ascii: bool) -> None:
    """Brackets in strings are none, however they are quoted."""
    for number in range(wraps):
        value = [value] if number % 2 else {"k": value}
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    depth = depth_of(json.loads(text))
    if depth <= JSON_DEPTH_MAX:
        check_depth(text)
    else:
        with pytest.raises(InvalidRequest, match=f"lie {depth} deep"):
            check_depth(text)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize("piece", [b'"', b'\\"', b"\\", b'"\\', b"[]", b'""', b'["', b"a"])
def test_no_body_takes_long_to_check(piece: bytes) -> None:
    """Linear in its length: a megabyte of what a careless pattern would try again at every byte."""
    started_s = time.perf_counter()
    for prefix in (b"", b'"', b'["'):
        with suppress(InvalidRequest):
            check_depth(prefix + piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - started_s < 5


def test_a_nul_byte_is_no_json() -> None:
    with pytest.raises(MalformedBody, match="UTF-8"):
        check_depth(b'{"a": "\0"}')


def test_half_a_surrogate_pair_is_no_utf_8() -> None:
    """Python's parser of JSON would let it pass, and no database takes it."""
    with pytest.raises(MalformedBody, match="at byte 7"):
        check_depth(b'{"a": "\xed\xa0\x80"}')
