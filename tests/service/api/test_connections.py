"""Connections that a client holds and does not use: each has a deadline, and how many there are is bounded."""

import asyncio
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.types import Message

from service.api import connections
from service.api.app import create_app
from service.api.bodies.json_bodies import JsonRoute
from service.api.bodies.limits import BodyDeadline, Pace
from service.api.bodies.multipart import Upload
from service.api.connections import (
    FILES_RESERVED,
    SPARE,
    TOTAL_MAX,
    Connection,
    Connections,
    Waits,
    connections_max,
)
from service.api.dependencies import KEY_HEAVY_MAX, Context
from service.api.rate_limits import KeyedSemaphore, address_group
from service.api.routes import health, teachers
from service.cli.processes.supervisor import free_port
from service.db.keys.scopes import Scope
from service.errors import InvalidRequest, SlowBody
from service.operations import open_files
from service.operations.open_files import raise_open_files
from service.settings import Settings
from store import CacheNotFound, Catalog
from tests.service.api.test_metrics import scrape, value
from tests.service.api.test_multipart import BOUNDARY, FILE, wait_until
from tests.service.api.test_routes import problem
from tests.support.client_cases import ARTIFACT, artifact_path, run_with_artifact
from tests.support.service_helpers import Api, make_settings, running_api
from workers.logs import RUN_LOG

pytest_plugins = ["tests.support.service_fixtures"]
ROOT = Path(__file__).parents[3]
LENGTH = "Content-Length: 1000"
CHUNKED = "Transfer-Encoding: chunked"


@contextmanager
def connected(url: str, *, source: str = "127.0.0.1", window_bytes: int | None = None) -> Iterator[socket.socket]:
    """A connection to the service at ``url``, from a loopback address."""
    address = urlsplit(url)
    with socket.socket() as connection:
        if window_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
        connection.settimeout(20)
        connection.bind((source, 0))
        connection.connect((address.hostname, address.port))
        yield connection


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    """The head of a request with these header lines."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def bearer(secret: str) -> str:
    return f"Authorization: Bearer {secret}"


def received(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection."""
    pieces = b""
    while True:
        try:
            piece = connection.recv(1 << 16)
        except ConnectionError:
            return pieces
        if not piece:
            return pieces
        pieces += piece


def is_closed(connection: socket.socket) -> bool:
    """Whether the service has closed it; what is there to be read is lost."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def document_of(answer: bytes) -> dict[str, Any]:
    """The JSON body of the last answer."""
    document: dict[str, Any] = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    return document


# ------------------------------------------------------------------------------------------------------------- bodies


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop that does not wait: where it would, its clock goes on by as much."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        wait: Callable[[float | None], object] = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self.now_s += timeout or 0.0
            wait(0)
            return []

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        """Seconds since it was made."""
        return self.now_s


def seconds_of(pace: Pace, pauses: list[tuple[float, int]], busy_s: float = 0.0) -> tuple[float, bool]:
    """When a body ends that comes in such pieces (seconds before, bytes), and whether it was whole.

    The service takes ``busy_s`` for each piece.
    """

    async def read() -> tuple[float, bool]:
        deadline = BodyDeadline(pace)

        async def receive() -> Message:
            pause_s, size = pieces.pop(0)
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": b"x" * size, "more_body": True}

        pieces = list(pauses)
        clock = asyncio.get_running_loop().time
        while pieces:
            try:
                await deadline.next(receive)
            except SlowBody:
                return clock(), False
            await asyncio.sleep(busy_s)
        return clock(), True

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(read())


PACE = Pace(silence_s=20, lag_s=30, bytes_per_s=100)


@pytest.mark.parametrize(
    ("pauses", "ends_s"),
    [
        ([(100.0, 1)], 20),
        ([(19.0, 1), (21.0, 1)], 30),
        ([(1.0, 1)] * 100, 30),
        # Each second brings back half of one.
        ([(1.0, 50)] * 100, 59),
        # What came fast is no credit for an hour.
        ([(0.0, 1_000_000), *[(10.0, 1)] * 100], 30),
        ([(0.0, 1_000_000), (30.0, 1)], 20),
    ],
    ids=["nothing", "a byte, then nothing", "trickles", "half as fast", "fast, then trickles", "fast, then nothing"],
)
def test_body_that_comes_too_slowly_is_given_up(pauses: list[tuple[float, int]], ends_s: float) -> None:
    at_s, whole = seconds_of(PACE, pauses)
    assert not whole
    assert at_s == pytest.approx(ends_s, abs=0.6)


@pytest.mark.parametrize(
    ("pauses", "busy_s"),
    [
        ([(1.0, 101)] * 1000, 0.0),
        ([(19.0, 1901)] * 100, 0.0),
        ([(0.01, 1)] * 1000, 100.0),
    ],
    ids=["as fast as asked", "in bursts", "as fast as it is read"],
)
def test_body_that_keeps_pace_is_read_for_as_long_as_it_takes(pauses: list[tuple[float, int]], busy_s: float) -> None:
    assert seconds_of(PACE, pauses, busy_s)[1]


@pytest.mark.parametrize(
    ("headers", "begins", "trickles"),
    [
        ([LENGTH], b"", b""),
        ([LENGTH], b'{"a":', b""),
        ([LENGTH], b'{"a":', b" "),
        ([CHUNKED], b"", b""),
        ([CHUNKED], b'5\r\n{"a":\r\n', b"1\r\n \r\n"),
        ([CHUNKED], b"5", b";"),
        ([LENGTH, "Expect: 100-continue"], b"", b""),
    ],
    ids=["nothing", "a beginning", "bytes", "no chunk", "chunks", "a chunk's head", "100-continue"],
)
def test_body_that_does_not_come_is_answered_408_and_the_connection_closed(
    tmp_path: Path, headers: list[str], begins: bytes, trickles: bytes
) -> None:
    with running_api(make_settings(tmp_path, body_stall_s=0.4, head_timeout_s=0.4)) as api:
        with connected(api.url) as connection:
            connection.sendall(head("/v1/jobs", "Content-Type: application/json", *headers) + begins)
            connection.settimeout(0.02)
            answer, deadline_s = b"", time.monotonic() + 20
            while time.monotonic() < deadline_s:
                try:
                    connection.sendall(trickles)
                    piece = connection.recv(1 << 16)
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
                answer += piece
                if not piece:
                    break
            assert time.monotonic() < deadline_s
        assert answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(b"HTTP/1.1 408 ")
        told = document_of(answer)
        assert told["type"] == "urn:retort:problem:too-slow"
        assert "within 0.4 s" in told["detail"]
        wait_until(lambda: api.requests() == 0)


def test_stream_with_a_body_that_does_not_come_ends(tmp_path: Path) -> None:
    """As if its client had left, without a traceback in the log."""
    with running_api(make_settings(tmp_path, body_stall_s=0.3)) as api:
        path = f"/v1/jobs/{api.post_job()['id']}/events"
        with connected(api.url) as connection:
            connection.sendall(head(path, "Accept: text/event-stream", LENGTH, method="GET"))
            assert b"text/event-stream" in received(connection)
        wait_until(lambda: api.requests() == 0)
        assert not api.context.streams.open
        assert "broken answer" not in {line["event"] for line in api.logs}


def test_upload_that_sends_nothing_gives_its_place_back(tmp_path: Path) -> None:
    """Long before the time that a slow one has for its next MiB."""
    settings = make_settings(tmp_path, uploads_max=1, body_stall_s=0.3, upload_stall_s=3600, head_timeout_s=0.3)
    with running_api(settings) as api, connected(api.url) as connection:
        content_type = f"Content-Type: {BOUNDARY['Content-Type']}"
        connection.sendall(head("/v1/teachers", content_type, LENGTH) + FILE)
        wait_until(lambda: api.context.uploads.open)
        problem(api.upload(b"abc"), 429, "too-many-requests")
        wait_until(lambda: not api.context.uploads.open)
        assert api.upload(b"abc").status_code == 422
        assert b" 408 " in received(connection)


# ------------------------------------------------------------------------------------------- scope and shares of a key


def test_body_is_not_read_of_a_key_whose_scope_is_too_small(tmp_path: Path) -> None:
    """On no route that takes one: a client that waits for 100 Continue is told at once."""
    with running_api(make_settings(tmp_path)) as api:
        reader, writer = (api.context.keys.issue(scope, scope)[1] for scope in (Scope.READ, Scope.WRITE))
        found = list(iter_route_contexts(create_app(api.settings).routes))
        bodies = [route for route in found if isinstance(route.route, APIRoute) and route.route.body_field is not None]
        assert len(bodies) == 9
        assert all(isinstance(route.route, JsonRoute) for route in bodies)
        # A comparison reads, though it has a body.
        refused = [(method, str(route.path), reader) for route in bodies for method in route.methods or ()]
        refused = [each for each in refused if each[1] != "/v1/reports"]
        refused += [("POST", f"/v1/{files}", reader) for files in ("teachers", "student-files", "caches")]
        refused += [("POST", "/v1/keys", writer)]
        for method, path, secret in refused:
            with connected(api.url) as connection:
                kind = "Content-Type: application/json"
                connection.sendall(head(path, bearer(secret), kind, LENGTH, "Expect: 100-continue", method=method))
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 403 "), path


def test_requests_of_one_key_are_counted_while_they_are_open(tmp_path: Path) -> None:
    """Others are not hindered, nor is health; what has ended counts no more."""
    settings = make_settings(tmp_path, open_requests_max=2, body_stall_s=1)
    with running_api(settings) as api, ExitStack() as stack:
        secrets = [api.context.keys.issue(name, Scope.WRITE)[1] for name in ("busy", "calm")]
        busy, calm = ({"Authorization": f"Bearer {secret}"} for secret in secrets)
        for _ in range(2):
            connection = stack.enter_context(connected(api.url))
            connection.sendall(head("/v1/jobs", bearer(secrets[0]), "Content-Type: application/json", LENGTH))
        wait_until(lambda: sum(api.context.requests.open.values()) == 2)
        refused = api.client.get("/v1/jobs", headers=busy)
        assert "2 requests of one API key" in problem(refused, 429, "too-many-requests")["detail"]
        assert int(refused.headers["retry-after"]) > 0
        assert api.client.get("/healthz", headers=busy).status_code == 200
        assert api.client.get("/v1/jobs", headers=calm).status_code == 200
        wait_until(lambda: not api.context.requests.open)
        assert api.client.get("/v1/jobs", headers=busy).status_code == 200


def test_key_has_a_share_of_the_inspections_and_never_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three endless ones of one key leave room for the one of another; the share is free again after each."""
    begun, finish = threading.Semaphore(0), threading.Event()

    def inspect(upload: Upload, _: Context) -> None:
        if upload.fields["name"] == "endless":
            begun.release()
            assert finish.wait(60)
        raise InvalidRequest("inspected")

    monkeypatch.setattr(teachers, "_register", inspect)
    with running_api(make_settings(tmp_path)) as api:
        greedy, calm = (
            {"Authorization": f"Bearer {api.context.keys.issue(name, Scope.WRITE)[1]}"} for name in ("greedy", "calm")
        )
        statuses: list[int] = []

        def upload(name: str, headers: dict[str, str]) -> int:
            files = {"file": ("t.onnx", b"abc")}
            with httpx2.Client(base_url=api.url, timeout=60, trust_env=False) as client:
                return client.post("/v1/teachers", files=files, data={"name": name}, headers=headers).status_code

        threads = [
            threading.Thread(target=lambda: statuses.append(upload("endless", greedy)), daemon=True) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=30)
        wait_until(lambda: list(api.context.uploads.open.values()) == [3])
        assert upload("short", calm) == 422
        assert not begun.acquire(blocking=False)
        finish.set()
        for thread in threads:
            thread.join(60)
        assert statuses == [422] * 3
        assert not len(api.context.inspections)


def test_key_has_a_share_of_the_threads_for_what_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many caches it has verified, the threads that answer most requests are never all busy with it."""
    begun, finish = threading.Semaphore(0), threading.Event()

    def verify(_: Catalog, key: str) -> None:
        begun.release()
        assert finish.wait(60)
        raise CacheNotFound(key)

    monkeypatch.setattr(Catalog, "verify", verify)
    with running_api(make_settings(tmp_path)) as api, ExitStack() as stack:
        greedy, calm = (api.context.keys.issue(name, Scope.WRITE)[1] for name in ("greedy", "calm"))

        def ask(secret: str) -> socket.socket:
            connection = stack.enter_context(connected(api.url))
            connection.sendall(head(f"/v1/caches/{'a' * 64}/verify", bearer(secret), "Content-Length: 0"))
            return connection

        asked = [ask(greedy) for _ in range(50)]
        wait_until(lambda: list(api.context.requests.open.values()) == [50])
        for _ in range(KEY_HEAVY_MAX):
            assert begun.acquire(timeout=30)
        assert api.client.get("/readyz").status_code == 503
        assert api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {greedy}"}).status_code == 200
        assert not begun.acquire(blocking=False)
        asked.append(ask(calm))
        assert begun.acquire(timeout=30)
        finish.set()
        assert all(connection.recv(12) == b"HTTP/1.1 404" for connection in asked)
        wait_until(lambda: not len(api.context.heavy))


def test_semaphore_of_each_name_lets_so_many_in_and_forgets_who_has_left() -> None:
    """Also whoever gave up waiting."""

    async def check() -> None:
        semaphore, inside = KeyedSemaphore(2), []
        leave = asyncio.Event()

        async def hold(name: str) -> None:
            async with semaphore.held(name):
                inside.append(name)
                await leave.wait()

        tasks = [asyncio.create_task(hold(name)) for name in "aaaab"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(inside) == ["a", "a", "b"]
        tasks[2].cancel()
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(inside) == ["a", "a", "a", "b"]
        assert not len(semaphore)

    asyncio.run(check())


# -------------------------------------------------------------------------------------------- clients that do not read


def with_log(api: Api, size: int) -> str:
    """The path of a run's log of so many bytes, which is answered at once."""
    run_id = run_with_artifact(api, 1)
    (artifact_path(api, run_id).parent / RUN_LOG).write_bytes(b"x" * size)
    return f"/v1/runs/{run_id}/log"


def on_server(api: Api, client: socket.socket) -> Connection:
    """The server's end of a connection."""

    def found() -> list[Connection]:
        return [each for each in list(api.context.connections._open) if each.client == client.getsockname()]

    wait_until(found)
    return found()[0]


def test_client_that_does_not_read_its_answer_is_left(tmp_path: Path) -> None:
    """While it is sent, and also when all was handed to the connection, which was closed since."""
    with running_api(make_settings(tmp_path, send_stall_s=0.5, head_timeout_s=0.5)) as api, ExitStack() as stack:
        artifact = f"/v1/runs/{run_with_artifact(api, 16 << 20)}/artifacts/{ARTIFACT}"
        for path, close, is_paused in (
            (artifact, "Connection: keep-alive", True),
            (with_log(api, 12 << 20), "Connection: keep-alive", True),
            (with_log(api, 12 << 20), "Connection: close", False),
        ):
            client = stack.enter_context(connected(api.url, window_bytes=4096))
            if not is_paused:
                on_server(api, client).transport.set_write_buffer_limits(1 << 30)
            client.sendall(head(path, close, method="GET"))
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        wait_until(lambda: len(api.context.connections) == 0)
        wait_until(lambda: api.requests() == 0)


def test_client_that_reads_slowly_gets_its_whole_answer(tmp_path: Path) -> None:
    """In longer than ``send_stall_s``, of which each brings enough."""
    size = 12 << 20
    with running_api(make_settings(tmp_path, send_stall_s=1)) as api, connected(api.url, window_bytes=1 << 20) as slow:
        path = with_log(api, size)
        slow.sendall(head(path, "Connection: close", method="GET"))
        started_s, count = time.monotonic(), 0
        while piece := slow.recv(1 << 20, socket.MSG_WAITALL):
            count += len(piece)
            time.sleep(0.1)
        assert count > size
        assert time.monotonic() - started_s > 1


def test_what_a_client_has_taken_is_known_to_the_byte(tmp_path: Path) -> None:
    """Also of what the kernel holds, which says that there is room again only once a third of megabytes was taken."""
    with running_api(make_settings(tmp_path)) as api, connected(api.url, window_bytes=1 << 16) as slow:
        server = on_server(api, slow)
        slow.sendall(head(with_log(api, 16 << 20), method="GET"))
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        wait_until(server.transport.get_write_buffer_size)
        wait_until(lambda: settled(lambda: server._measured()[1]))
        here, left = server.transport.get_write_buffer_size(), server._measured()[1]
        taken = len(slow.recv(1 << 17, socket.MSG_WAITALL))
        wait_until(lambda: server._measured()[1] <= left - taken // 2)
        assert server.transport.get_write_buffer_size() == here


def settled(measure: Callable[[], int]) -> bool:
    """Whether it stays the same for a moment."""
    before = measure()
    time.sleep(0.2)
    return measure() == before


# ------------------------------------------------------------------------------------------------ how many there may be


class Loop:
    """The clock of an event loop."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def time(self) -> float:
        return self.now_s


class Fake:
    """What ``Connections`` knows of a connection."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.since_s, self.is_aborted, self.client = loop, loop.now_s, False, ("192.0.2.1", 1)
        self.unsent_bytes = 0
        self.transport = SimpleNamespace(abort=self.abort, get_write_buffer_size=lambda: self.unsent_bytes)

    def abort(self) -> None:
        self.is_aborted = True

    def idle_s(self) -> float:
        return self.loop.now_s - self.since_s


def filled(total: int, of_address: int) -> tuple[Any, Callable[..., Any]]:
    """A table, and how to open one more connection: (address, is at work, seconds after the one before)."""
    loop, table = Loop(), Connections(total, of_address, Waits(20, 60))

    def enter(address: str, at_work: bool = False, after_s: float = 1.0) -> tuple[Fake, bool]:
        loop.now_s += after_s
        connection: Any = Fake(loop)
        is_spare = table.enter(connection, address)
        table.rest(connection)
        if at_work:
            table.work(connection)
        return connection, is_spare

    return table, enter


def test_connection_too_many_closes_the_one_that_is_idle_for_longest() -> None:
    """Not one at work, though that is older; one that is answered is idle again, and the youngest."""
    table, enter = filled(4, 4)
    first, second, third, fourth = (enter(f"192.0.2.{n}", at_work=n == 0)[0] for n in range(4))
    table.work(second)
    second.since_s = fourth.since_s
    table.rest(second)
    fifth, is_spare = enter("192.0.2.5")
    assert [each.is_aborted for each in (first, second, third, fourth, fifth)] == [False, False, True, False, False]
    assert not is_spare
    enter("192.0.2.6")
    assert fourth.is_aborted
    assert (len(table), table.evicted, table.refused) == (4, 2, 0)


def test_connection_whose_answer_is_on_its_way_is_closed_after_the_others() -> None:
    """It would lack its end."""
    _, enter = filled(3, 3)
    first, second, third = (enter(f"192.0.2.{n}")[0] for n in range(3))
    first.unsent_bytes = third.unsent_bytes = 1000
    enter("192.0.2.4", at_work=True)
    assert [each.is_aborted for each in (first, second, third)] == [False, True, False]
    enter("192.0.2.5", at_work=True)
    assert [each.is_aborted for each in (first, second, third)] == [True, True, False]


def test_address_with_too_many_connections_loses_its_own() -> None:
    """Others keep theirs; a trusted proxy, whose address is empty here, may have all there are."""
    table, enter = filled(10, 2)
    other = enter("192.0.2.9")[0]
    mine = [enter("192.0.2.1")[0] for _ in range(5)]
    assert not other.is_aborted
    assert [each.is_aborted for each in mine] == [True, True, True, False, False]
    proxied = [enter("")[0] for _ in range(7)]
    assert not any(each.is_aborted for each in [other, *proxied, *mine[3:]])
    assert len(table) == 10
    for each in (*proxied, other, *mine):
        table.leave(each)
        table.leave(each)
    assert len(table) == 0
    assert not table._counts


@pytest.mark.parametrize(("total", "of_address"), [(4, 4), (1000, 4)])
def test_spare_connections_are_left_when_all_are_at_work(total: int, of_address: int) -> None:
    """As many as ``SPARE``, then the oldest idle one of them is closed for a new one, however fresh; never one more."""
    table, enter = filled(total, of_address)
    (first_one, _), *others = [enter("192.0.2.1", at_work=True) for _ in range(4)]
    assert not any(is_spare for _, is_spare in others)
    spare = [enter("192.0.2.1", after_s=0.001) for _ in range(SPARE)]
    assert all(is_spare for _, is_spare in spare)
    assert not any(each.is_aborted for each, _ in spare)
    newest, is_spare = enter("192.0.2.1", after_s=0.001)
    assert is_spare
    assert spare[0][0].is_aborted
    assert not newest.is_aborted
    for each, _ in spare[1:]:
        table.work(each)
    table.work(newest)
    refused, _ = enter("192.0.2.1")
    assert refused.is_aborted
    assert (len(table), table.refused) == (4 + SPARE, 1)
    for each, _ in spare[1:]:
        table.rest(each)
    table.leave(newest)
    table.leave(first_one)
    assert not enter("192.0.2.1")[1]
    assert all(each.is_aborted for each, _ in spare)
    assert len(table) == 4


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no:address", "no:address"),
        ("unknown", "unknown"),
    ],
)
def test_address_counts_as_its_network(address: str, group: str) -> None:
    assert address_group(address) == group


@pytest.mark.parametrize(
    ("wanted", "files", "there_are"),
    [
        (None, 256, (256 - FILES_RESERVED) // 2),
        (None, 65_536, TOTAL_MAX),
        (None, resource.RLIM_INFINITY, TOTAL_MAX),
        (None, 10, 8),
        (100, 65_536, 100),
        (20_000, 65_536, 20_000),
        (20_000, 4096, (4096 - FILES_RESERVED) // 2),
    ],
)
def test_connections_are_no_more_than_there_are_files_for(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, files: int, there_are: int
) -> None:
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: (files, files))
    assert connections_max(wanted) == there_are


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [(1024, 4096, 4096), (1024, 1 << 20, 65_536), (1024, resource.RLIM_INFINITY, 65_536), (100_000, 1 << 20, None)],
)
def test_limit_of_open_files_is_raised_as_far_as_is_allowed(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda _, limits: given.append(limits))
    raise_open_files()
    assert given == ([] if raised is None else [(raised, hard)])


def busy(api: Api, stack: ExitStack, count: int, secret: str) -> None:
    """As many connections with a request at work."""
    for _ in range(count):
        connection = stack.enter_context(connected(api.url))
        connection.sendall(head("/v1/jobs", bearer(secret), "Content-Type: application/json", LENGTH))
    wait_until(lambda: sum(api.context.requests.open.values()) == count)


def test_health_is_answered_when_no_connection_is_left(tmp_path: Path) -> None:
    """Whatever else is asked for is told so with 503, and when to come back; idle connections do not keep it out."""
    settings = make_settings(tmp_path, connections_max=4, address_connections_max=4, open_requests_max=4)
    with running_api(settings) as api, ExitStack() as stack:
        secret = api.context.keys.issue("one", Scope.WRITE)[1]
        busy(api, stack, 4, secret)
        for _ in range(2 * SPARE):
            stack.enter_context(connected(api.url))
        assert api.client.get("/healthz").status_code == 200
        refused = api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
        assert "health checks" in problem(refused, 503, "no-room")["detail"]
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        # It kept no connection open, as it does where there is room.
        assert len(api.context.connections) <= 4 + SPARE
        assert [line["of_address"] for line in api.logs if str(line["event"]).startswith("no room")] == [4]


def test_connection_that_is_idle_is_closed_for_one_too_many(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, connections_max=4, address_connections_max=4)
    with running_api(settings) as api, ExitStack() as stack:
        idle = [stack.enter_context(connected(api.url)) for _ in range(4)]
        wait_until(lambda: len(api.context.connections) == 4)
        time.sleep(2 * connections.FRESH_S)
        assert api.client.get("/v1/jobs").status_code == 200
        assert [is_closed(each) for each in idle] == [True, False, False, False]
        samples = scrape(api.client)
        assert value(samples, "http_connections") == value(samples, "http_connections_max") == 4
        assert value(samples, "http_connections_closed_total", why="evicted") == 1
        assert value(samples, "http_connections_closed_total", why="refused") == 0


@pytest.mark.parametrize(("proxies", "spare"), [(None, True), ("127.0.0.1", False), ("10.0.0.0/8", True)])
def test_connections_of_one_address_are_counted_but_not_of_a_trusted_proxy(
    tmp_path: Path, proxies: str | None, spare: bool
) -> None:
    settings = make_settings(tmp_path, address_connections_max=2, forwarded_allow_ips=proxies)
    with running_api(settings) as api, ExitStack() as stack:
        secret = api.context.keys.issue("one", Scope.WRITE)[1]
        busy(api, stack, 2, secret)
        status = api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code
        assert status == (503 if spare else 200)
        with connected(api.url, source="127.0.0.2") as other:
            other.sendall(head("/v1/jobs", bearer(secret), "Connection: close", method="GET"))
            assert received(other).startswith(b"HTTP/1.1 200 ")


def test_connections_wait_to_be_accepted_while_the_service_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though few are accepted at once: without room in the kernel each would wait a second for its next try."""
    blocked, go_on = threading.Event(), threading.Event()
    answer = health.Health

    def block() -> object:
        blocked.set()
        assert go_on.wait(30)
        return answer()

    monkeypatch.setattr(health, "Health", block)
    with running_api(make_settings(tmp_path)) as api, connected(api.url) as first, ExitStack() as stack:
        first.sendall(head("/healthz", method="GET"))
        assert blocked.wait(30)
        try:
            address = urlsplit(api.url)
            for _ in range(100):
                stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=0.9))
        finally:
            go_on.set()
        wait_until(lambda: len(api.context.connections) >= 101)


def test_request_to_speak_websocket_is_answered_as_any_other(tmp_path: Path) -> None:
    """With the deadlines of any other, whatever packages are there."""
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="]
    with running_api(make_settings(tmp_path, head_timeout_s=0.3)) as api, connected(api.url) as connection:
        connection.sendall(head("/healthz", *upgrade, method="GET"))
        assert received(connection).startswith(b"HTTP/1.1 200 ")


# ------------------------------------------------------------------------------------------------- 256 files


@contextmanager
def with_few_files(settings: Settings, open_files: int) -> Iterator[tuple[str, int, list[str]]]:
    """Address and pid of ``retort api`` in a process that may open so many files, and its log once it has ended."""
    port, log = free_port(), settings.data_dir / "api.log"
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({open_files}, {open_files}))"
    code = f"{limit}; from service.cli import main; sys.argv = ['retort', 'api', '--port', '{port}']; main()"
    environment = {
        **os.environ,
        "RETORT_DATA_DIR": str(settings.data_dir),
        "RETORT_DATA_ROOT": str(settings.data_root),
        "RETORT_DISK_FLOOR_BYTES": "0",
    }
    lines: list[str] = []
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(url), 60)
        assert process.poll() is None, log.read_text()
        yield url, process.pid, lines
    finally:
        process.terminate()
        process.wait(60)
        lines += log.read_text().splitlines()


def asked(url: str, path: str, *headers: str) -> bytes:
    """The answer to a request on a connection of its own."""
    with connected(url) as connection:
        connection.sendall(head(path, "Connection: close", *headers, method="GET"))
        return received(connection)


def answers(url: str) -> bool:
    try:
        return asked(url, "/healthz").startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_service_with_256_files_answers_though_one_client_takes_all_connections_that_it_can(tmp_path: Path) -> None:
    """Bodies that do not come, of a key that may only read and of one that may write, silence, answers unread."""
    settings = make_settings(tmp_path)
    with running_api(settings) as api:
        reader, writer, other = (
            api.context.keys.issue(name, scope)[1]
            for name, scope in (("r", Scope.READ), ("w", Scope.WRITE), ("o", Scope.WRITE))
        )
        path = f"/v1/runs/{run_with_artifact(api, 16 << 20)}/artifacts/{ARTIFACT}"
    kind = "Content-Type: application/json"
    begins = [
        head("/v1/jobs", bearer(writer), kind, LENGTH) + b'{"a":',
        head(path, bearer(writer), method="GET"),
        head("/v1/jobs", bearer(reader), kind, LENGTH) + b'{"a":',
        head("/v1/jobs", kind, LENGTH) + b'{"a":',
        b"GET /healthz HTTP/1.1\r\n",
        b"",
    ]
    with with_few_files(settings, 256) as (url, pid, lines), ExitStack() as stack:
        with ExitStack() as burst:
            # They all wait when it comes to itself, and health comes after them.
            os.kill(pid, signal.SIGSTOP)
            for _ in range(300):
                burst.enter_context(connected(url))
            threading.Timer(0.2, os.kill, (pid, signal.SIGCONT)).start()
            assert asked(url, "/healthz").startswith(b"HTTP/1.1 200 ")
        for begin in begins:
            for number in range(60):
                if number % 30 == 0:
                    assert asked(url, "/healthz").startswith(b"HTTP/1.1 200 ")
                connection = stack.enter_context(connected(url, window_bytes=4096))
                connection.sendall(begin)
        time.sleep(2 * connections.FRESH_S)
        assert asked(url, "/healthz").startswith(b"HTTP/1.1 200 ")
        # And whoever has a key is served, though from the same address.
        assert asked(url, "/v1/jobs", bearer(other)).startswith(b"HTTP/1.1 200 ")
    told = "\n".join(lines)
    assert "no room for more connections" in told
    for words in ("out of system resource", "unable to open", "Too many open files", "Traceback"):
        assert words not in told
