"""Response cache: what is kept, under which version of the database, and that no answer is older than its request."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import JSON, Column, Executable, delete, event, insert, literal, select, update
from starlette.types import Message, Receive, Scope, Send

from service.api.app import create_app
from service.api.auth import READ
from service.api.middleware.response_cache import KEPT_BYTES_MAX, ResponseCache
from service.db.columns import UtcDateTime
from service.db.database import Database
from service.db.keys.api_keys import KeyRing, Keys
from service.db.keys.scopes import THIS_MACHINE, Caller
from service.db.keys.scopes import Scope as KeyScope
from service.db.models import EngineRecord, JobRecord, RunRecord, utc_now
from service.db.queries.version import DATABASE, DatabaseVersion, DocumentSource, Version
from service.db.scheduling.backoff import Backoff
from service.db.states import State
from service.paths import DATABASE_ROUTES
from tests.service.api.test_http import documents
from tests.support.filled import METRICS
from tests.support.service_helpers import Api, make_settings, running_api, start_run

pytest_plugins = ["tests.support.service_fixtures"]
# A route that is asked with it looks for itself, see ``response_cache``.
FRESH = {"Last-Event-ID": "0"}

# What the columns with a shape of their own may hold.
JSON_VALUES = {
    "eta": {"expected_at": "2026-01-01T00:00:00Z", "as_of": "2026-01-01T00:00:00Z", "based_on": "its own epochs"},
    "teacher_metrics": {"test": {"top1": 0.5}},
    "teacher": {"sha256": "f" * 64},
    "tags": ["another"],
    "caches": {"train": "c"},
    "inference": {"rows_done": 1, "rows_total": 2},
    "teacher_forwards": {"run": 3, "avoided": 4},
    "set_aside": {"code": "EROFS", "message": "another", "since": "2026-01-01T00:00:00Z"},
    "backoff": {"losses": 1, "faults": 0, "last": "so", "until": "2026-01-01T00:00:00Z"},
}


@pytest.fixture
def api_of_either(tmp_path: Path, database_url: str) -> Iterator[Api]:
    """An API on each kind of database."""
    with running_api(make_settings(tmp_path, database_url=database_url), migrate=False) as running:
        yield running


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is asked of the tables of jobs, runs and events through this object."""
    seen: list[str] = []

    def see(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if any(f"FROM {table}" in statement for table in ("jobs", "runs", "events", "artifacts")):
            seen.append(statement)

    event.listen(database._reading, "before_cursor_execute", see)
    try:
        yield seen
    finally:
        event.remove(database._reading, "before_cursor_execute", see)


# ------------------------------------------------------------------------------------------------ over the wire


def test_response_cache_answers_without_a_query_while_nothing_is_written(api_of_either: Api) -> None:
    """As the routes answer, in every header and in the log; one commit of anything, and the routes are asked."""
    api = api_of_either
    job = api.post_job()
    paths = documents(job)
    fresh = {path: api.client.get(path, headers=FRESH) for path in paths}
    with statements(api.context.database) as seen:
        first = {path: api.client.get(path) for path in paths}
        assert seen
        seen.clear()
        again = {path: api.client.get(path) for path in paths}
        assert not seen
        # What no document shows is a commit as well.
        with api.context.database.write() as session:
            session.execute(update(EngineRecord).values(heartbeat_at=utc_now()))
        assert api.client.get(paths[0]).content == first[paths[0]].content
        assert seen
    for path in paths:
        for answer in (first[path], again[path]):
            assert answer.content == fresh[path].content, path
            own = {"x-request-id", "date"}
            assert {k: v for k, v in answer.headers.items() if k not in own} == {
                k: v for k, v in fresh[path].headers.items() if k not in own
            }
    assert len({answer.headers["x-request-id"] for answer in (*first.values(), *again.values())}) == 2 * len(paths)
    lines = [line for line in api.logs if line["event"] == "request" and line["path"].endswith("/report")]
    assert [line["job_id"] for line in lines] == [job["id"]] * 3
    counted = api.client.get("/metrics").text
    assert (
        'retort_http_response_seconds_count{method="GET",route="/v1/jobs/{job_id}/report",status="2xx"} 3.0' in counted
    )


def test_response_cache_shows_every_write_at_once_and_its_etag_changes(api_of_either: Api) -> None:
    """Each column of a job and of a run, and each kind of write of the engine and of clients."""
    api = api_of_either
    job = api.post_job()
    paths, run_id = documents(job), job["run_ids"][0]
    known: dict[str, tuple[str, bytes]] = {}
    changes = 0

    def look(after: str) -> None:
        nonlocal changes
        for path in paths:
            etag, content = known.get(path, ("", b""))
            answer = api.client.get(path, headers={"If-None-Match": etag} if etag else {})
            expected = api.client.get(path, headers=FRESH)
            assert (answer.status_code == 304) == (expected.content == content), (after, path)
            assert answer.headers["etag"] == expected.headers["etag"], (after, path)
            if answer.status_code == 200:
                assert answer.content == expected.content, (after, path)
                changes += 1
            known[path] = (answer.headers["etag"], expected.content)

    look("nothing")
    with closing(Database(api.settings.database)) as elsewhere:
        for table, id in ((JobRecord, job["id"]), (RunRecord, run_id)):
            for column in table.__table__.columns:
                if column.primary_key or column.foreign_keys or column.name == "state":
                    continue
                value = _another(column)
                with elsewhere.write() as session:
                    session.execute(
                        update(table.__table__).where(table.__table__.c.id == id).values({column.name: value})
                    )
                before = changes
                look(f"{table.__tablename__}.{column.name}")
                hidden = {"holder", "key_id", "actor", "piece", "share", "whole_gpu", "losses", "backoff", "samples"}
                hidden |= {"search_text"}
                if column.name not in hidden and (table, column.name) != (JobRecord, "attempt"):
                    assert changes > before, f"no document shows {table.__tablename__}.{column.name}"
    records, job_control = api.records, api.context.job_control
    with api.context.database.write() as session:
        session.execute(update(JobRecord).values(attempt=0))
        session.execute(update(RunRecord).values(attempt=0))
    records.claim_job()
    look("claim_job")
    start_run(records, run_id)
    look("start_run")
    attempt = records.runs(job["id"])[0].attempt
    for n in range(3):
        told = {"type": "epoch", "epoch": n, "epochs": 3, "metrics": {**METRICS, "epoch": n}}
        records.record_events(job["id"], run_id, attempt, [(n, told)], progress={"epoch": n, "metrics": METRICS})
        look(f"record_events {n}")
    artifact = {"name": "a", "path": "a", "size_bytes": 1, "sha256": "0" * 64, "media_type": "text/plain"}
    records.record_result(run_id, attempt, [artifact], {"last": METRICS})
    look("record_result")
    job_control.cancel_job(job["id"])
    look("cancel_job")
    assert changes > 60


def test_response_cache_of_a_job_outlives_the_commits_of_others(api_of_either: Api) -> None:
    """Only what changes the job or one of its runs, added and deleted ones included, has its documents made again."""
    api = api_of_either
    job, other = api.post_job(), api.post_job(name="other")
    run_id, path = job["run_ids"][0], f"/v1/jobs/{job['id']}"
    paths = [path, f"{path}/runs", f"{path}/report", f"/v1/runs/{run_id}"]
    [api.client.get(path) for path in paths]

    def queries_after(*changes: Executable) -> int:
        with api.context.database.write() as session:
            for change in changes:
                session.execute(change)
        with statements(api.context.database) as seen:
            for path in paths:
                assert api.client.get(path).status_code == 200
            # Of one that must look again and finds the row gone, say, nothing is kept: the next test sees it once more.
            return len(seen)

    assert queries_after(update(EngineRecord).values(heartbeat_at=utc_now())) == 0
    assert queries_after(update(JobRecord).where(JobRecord.id == other["id"]).values(name="x")) == 0
    assert queries_after(update(RunRecord).where(RunRecord.job_id == other["id"]).values(epoch=3)) == 0
    assert queries_after(update(JobRecord).where(JobRecord.id == job["id"]).values(name="x")) > 0
    assert queries_after(update(JobRecord).values(name="y")) > 0
    assert queries_after(update(RunRecord).where(RunRecord.id == run_id).values(epoch=3)) > 0
    assert queries_after(update(EngineRecord).values(heartbeat_at=utc_now())) == 0
    assert queries_after(delete(RunRecord).where(RunRecord.id != run_id, RunRecord.job_id == job["id"])) > 0
    assert api.client.get(path).json()["run_ids"] == [run_id]
    copied = {column.name: column for column in RunRecord.__table__.columns}
    copied |= {"id": literal("run_" + "0" * 26), "index": literal(99)}
    source = select(*copied.values()).where(RunRecord.id == run_id)
    assert queries_after(insert(RunRecord.__table__).from_select(list(copied), source)) > 0
    assert len(api.client.get(path).json()["run_ids"]) == 2
    assert queries_after(update(EngineRecord).values(heartbeat_at=utc_now())) == 0


def test_response_cache_follows_the_clock_where_a_job_says_when_it_starts_again(
    api_of_either: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any commit: the time until which it waits passes."""
    api = api_of_either
    job = api.post_job()
    until = utc_now() + timedelta(seconds=20)
    backoff = Backoff(lost_attempts=2, faults=2, last="so", until=until).model_dump(mode="json")
    with api.context.database.write() as session:
        session.execute(update(JobRecord).values(state=State.RUNNING, backoff=backoff))
    paths = [f"/v1/jobs/{job['id']}", "/v1/jobs"]

    def waits() -> list[str | None]:
        one, all_ = (api.client.get(path).json() for path in paths)
        return [one["waits_for"], all_["data"][0]["waits_for"]]

    assert all(waits())
    monkeypatch.setattr("service.db.scheduling.backoff.utc_now", lambda: until)
    assert waits() == [None, None]


def _another(column: Column[Any]) -> object:
    """A value that no row of this test has there."""
    if isinstance(column.type, JSON):
        return JSON_VALUES.get(column.name, {"type": "Another", "message": column.name})
    if isinstance(column.type, UtcDateTime):
        return utc_now()
    kind = column.type.python_type
    return f"another {column.name}" if kind is str else kind(7)


def test_response_cache_is_behind_the_door(tmp_path: Path) -> None:
    """What is kept for one key is not given to whoever has none, or one that was revoked."""
    with running_api(make_settings(tmp_path)) as api:
        key, secret = api.context.keys.issue("ci", KeyScope.READ)
        api.context.ring.forget()
        headers = {"Authorization": f"Bearer {secret}"}
        assert [api.client.get("/v1/jobs", headers=headers).status_code for _ in range(2)] == [200, 200]
        assert api.client.get("/v1/jobs").status_code == 401
        api.context.keys.revoke(key.id)
        api.context.ring.forget()
        assert api.client.get("/v1/jobs", headers=headers).status_code == 401


def test_response_cache_keeps_routes_that_there_are(tmp_path: Path) -> None:
    found = iter_route_contexts(create_app(make_settings(tmp_path)).routes)
    assert {route.path for route in found if "GET" in (route.methods or ())} >= DATABASE_ROUTES.keys()


def test_response_cache_keeps_nothing_of_refusals_queries_apart_and_streams(api: Api) -> None:
    api.post_job()
    nothing = f"/v1/jobs/job_{'0' * 26}"
    assert [api.client.get(nothing).status_code for _ in range(2)] == [404, 404]
    assert len(api.client.get("/v1/jobs?limit=1").json()["data"]) == 1
    assert api.client.get("/v1/jobs?limit=0").status_code == 422
    api.post_job(name="second")
    assert len(api.client.get("/v1/jobs?limit=2").json()["data"]) == 2
    path = f"/v1/jobs/{api.client.get('/v1/jobs').json()['data'][0]['id']}/events"
    assert api.client.get(path).headers["content-type"] == "application/json"
    with api.client.stream("GET", path, headers={"Accept": "text/event-stream"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
    assert api.client.get(path, headers={"Last-Event-ID": "no number"}).status_code == 422


# ----------------------------------------------------------------------------------------------------- in one process


class Clock(DatabaseVersion):
    """A version that a test sets."""

    def __init__(self) -> None:
        self.value = 0

    async def read(self, source: DocumentSource = DATABASE) -> Version | None:
        return 0, self.value


class Route:
    """An application that answers when it is let, with the number of the call."""

    route = APIRoute("/jobs", lambda: None, dependencies=[READ])

    def __init__(self, status: int = 200, size_bytes: int = 0) -> None:
        self.calls = 0
        self.may_answer = asyncio.Event()
        self._status, self._size_bytes = status, size_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        body = f"{self.calls}".encode().ljust(self._size_bytes)
        await self.may_answer.wait()
        scope |= {"route": self.route, "endpoint": None, "path_params": {}}
        await send({"type": "http.response.start", "status": self._status, "headers": []})
        await send({"type": "http.response.body", "body": body})


def path_of(number: int) -> str:
    return f"/v1/jobs/job_{number:026}"


async def ask(cache: ResponseCache, path: str = "/v1/jobs", accept: str = "*/*") -> bytes:
    state = {"caller": THIS_MACHINE, "refusal": None}
    headers = [(b"accept", accept.encode())]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers, "state": state}
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    await cache(scope, nothing, keep)
    body: bytes = sent[1]["body"]
    return body


def test_response_cache_has_one_answer_made_for_all_who_wait_and_another_after_a_commit() -> None:
    async def run() -> None:
        route, clock = Route(), Clock()
        cache = ResponseCache(route, clock)
        before = [asyncio.create_task(ask(cache)) for _ in range(50)]
        await asyncio.sleep(0)
        # Committed while the first answer is made, which may show it or not: it is nobody's who asks from now on.
        clock.value = 1
        after = [asyncio.create_task(ask(cache)) for _ in range(50)]
        await asyncio.sleep(0)
        route.may_answer.set()
        assert {*await asyncio.gather(*before)} == {b"1"}
        assert {*await asyncio.gather(*after)} == {b"2"}
        assert await ask(cache) == b"2"
        assert route.calls == 2

    asyncio.run(run())


@pytest.mark.parametrize("end", ["refused", "cancelled"])
def test_response_cache_lets_each_request_ask_where_the_first_has_no_answer(end: str) -> None:
    async def run() -> None:
        route = Route(status=200 if end == "cancelled" else 404)
        cache = ResponseCache(route, Clock())
        first = asyncio.create_task(ask(cache))
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(cache)) for _ in range(3)]
        await asyncio.sleep(0)
        assert route.calls == 1
        if end == "cancelled":
            first.cancel()
        route.may_answer.set()
        assert sorted(await asyncio.gather(*others)) == [b"2", b"3", b"4"]
        await asyncio.gather(first, return_exceptions=True)
        # Those did not ask for all; whoever comes next does.
        assert [await ask(cache), await ask(cache)] == ([b"5", b"5"] if end == "cancelled" else [b"5", b"6"])

    asyncio.run(run())


def test_response_cache_lets_no_stream_wait_for_another() -> None:
    async def run() -> None:
        route = Route()
        cache = ResponseCache(route, Clock())
        asked = [asyncio.create_task(ask(cache, accept="text/event-stream")) for _ in range(3)]
        await asyncio.sleep(0)
        assert route.calls == 3
        route.may_answer.set()
        await asyncio.gather(*asked)

    asyncio.run(run())


def test_response_cache_keeps_so_much_and_no_more() -> None:
    async def run() -> None:
        route = Route(size_bytes=KEPT_BYTES_MAX // 4)
        route.may_answer.set()
        clock = Clock()
        cache = ResponseCache(route, clock)
        for number in range(5):
            await ask(cache, path_of(number))
        # The first three, and not the fourth, which goes for the fifth; then the first, asked for last, stays.
        for number, calls in ((4, 5), (3, 5), (2, 5), (0, 6), (2, 6), (1, 7), (0, 7)):
            await ask(cache, path_of(number))
            assert route.calls == calls, number
        # What was dropped while it was made, for another version, takes no room.
        route.may_answer.clear()
        dropped = [asyncio.create_task(ask(cache, path_of(number))) for number in range(10, 20)]
        await asyncio.sleep(0)
        clock.value = 1
        kept = [asyncio.create_task(ask(cache, path_of(number))) for number in range(10, 13)]
        await asyncio.sleep(0)
        route.may_answer.set()
        await asyncio.gather(*dropped, *kept)
        assert route.calls == 20
        await asyncio.gather(*(ask(cache, path_of(number)) for number in range(10, 13)))
        assert route.calls == 20

    asyncio.run(run())


def test_response_cache_keeps_nothing_that_is_larger_than_all_it_may_keep() -> None:
    async def run() -> None:
        route = Route(size_bytes=KEPT_BYTES_MAX)
        route.may_answer.set()
        cache = ResponseCache(route, Clock())
        await ask(cache)
        await ask(cache)
        assert route.calls == 2

    asyncio.run(run())


def test_key_ring_forgets_what_it_was_reading_when_a_key_was_revoked(database: Database) -> None:
    """A look at the table that began before is nobody's who comes after."""
    keys = Keys(database)
    key, secret = keys.issue("ci", KeyScope.READ)
    looked, may_end = threading.Event(), threading.Event()

    class Slow(Keys):
        def live(self) -> Any:  # noqa: ANN401  # as that of Keys
            found = super().live()
            looked.set()
            may_end.wait(30)
            return found

    async def run() -> list[Caller | None]:
        ring = KeyRing(Slow(database), None, is_local=True)
        early = asyncio.create_task(ring.find(secret))
        await asyncio.to_thread(looked.wait, 30)
        await asyncio.to_thread(keys.revoke, key.id)
        ring.forget()
        may_end.set()
        await early
        return [await ring.find(secret), await ring.find(secret)]

    assert asyncio.run(run()) == [None, None]
