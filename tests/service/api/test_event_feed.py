"""Events over HTTP: pages, streams, resumption, and the end."""

import gc
import json
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import sqlalchemy.event
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool

import service.api.event_feed
from service.db.models import EventRecord
from service.db.states import State
from tests.service.api.test_multipart import wait_until
from tests.support.cutting_proxy import CuttingProxy
from tests.support.service_helpers import Api, make_settings, running_api, start_run

pytest_plugins = ["tests.support.service_fixtures"]
SSE = {"Accept": "text/event-stream"}
NAME = b"zz\xfc.png".decode("utf-8", "surrogateescape")


@dataclass
class Running:
    """A job whose first run tells things."""

    api: Api
    job: str
    run: str
    n: int = 0

    def tell(self, count: int) -> None:
        """So many events more."""
        told = [(self.n + i, {"type": "log", "message": str(self.n + i)}) for i in range(count)]
        assert self.api.records.record_events(self.job, self.run, 1, told) == count
        self.n += count

    def end(self) -> None:
        """The run and its job succeed."""
        for run in self.api.records.runs(self.job):
            start_run(self.api.records, run.id)
            assert self.api.records.move_run(run.id, 1, State.SUCCEEDED)
        assert self.api.records.move_job(self.job, State.SUCCEEDED)


def begin(api: Api) -> Running:
    """A job that runs."""
    job = api.post_job()
    api.records.claim_job()
    start_run(api.records, job["run_ids"][0])
    return Running(api, job["id"], job["run_ids"][0])


def parse(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Events of a stream; a comment is an event without a type."""
    event: dict[str, Any] = {}
    for line in lines:
        if line.startswith(":"):
            yield {"comment": line}
        elif line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield {"id": int(event["id"]), "event": event["event"], **json.loads(event["data"])}
            event = {}


def stream(api: Api, path: str, **headers: str) -> list[dict[str, Any]]:
    """A whole stream, to its end."""
    with api.client.stream("GET", path, headers={**SSE, **headers}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(parse(response.iter_lines()))


def test_pages_go_on_after_the_last_number(api: Api) -> None:
    """Oldest first; a job's events are those of its runs, too."""
    running = begin(api)
    running.tell(5)
    path = f"/v1/jobs/{running.job}/events"
    first = api.client.get(path, params={"limit": 4}).json()
    assert first["has_more"]
    rest = api.client.get(path, params={"after": first["last_id"]}).json()
    assert not rest["has_more"]
    events = first["data"] + rest["data"]
    assert [event["type"] for event in events] == ["state", "state", *["log"] * 5]
    assert [event["run_id"] for event in events] == [None, *[running.run] * 6]
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    assert events[-1]["data"] == {"message": "4"}
    of_run = api.client.get(f"/v1/runs/{running.run}/events").json()["data"]
    assert of_run == events[1:]


def test_pages_before_a_number_are_newest_first_without_progress(api: Api) -> None:
    running = begin(api)
    running.tell(3)
    steps = [(running.n + n, {"type": "step", "epoch": 1}) for n in range(3)]
    assert api.records.record_events(running.job, running.run, 1, steps) == 3
    running.n += 3
    running.tell(2)
    path = f"/v1/jobs/{running.job}/events"
    whole = api.client.get(path).json()["data"]
    wanted = [event for event in reversed(whole) if event["type"] != "step"]
    first = api.client.get(path, params={"before": 2**63 - 1, "limit": 3}).json()
    rest = api.client.get(path, params={"before": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"] + rest["data"] == wanted
    newer = api.client.get(path, params={"before": 2**63 - 1, "after": wanted[2]["seq"]}).json()["data"]
    assert newer == wanted[:2]
    of_run = api.client.get(f"/v1/runs/{running.run}/events", params={"before": wanted[0]["seq"]}).json()["data"]
    assert of_run == [event for event in wanted[1:] if event["run_id"]]
    refused = api.client.get(path, params={"before": 9}, headers=SSE)
    assert (refused.status_code, "before" in refused.json()["detail"]) == (422, True)


def test_a_stream_has_every_event_as_it_comes_and_ends_with_done(api: Api) -> None:
    """The first ones were there before, the others come while it is open."""
    running = begin(api)
    running.tell(3)
    with api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE) as response:
        events = parse(response.iter_lines())
        seen = [next(events) for _ in range(5)]
        running.tell(2)
        seen += [next(events) for _ in range(2)]
        running.end()
        seen += list(events)
    assert seen[-1] == {"id": seen[-2]["id"], "event": "done", "state": "succeeded"}
    numbers = [event["id"] for event in seen[:-1]]
    assert numbers == sorted(set(numbers))
    assert [event["data"]["message"] for event in seen if event["event"] == "log"] == list("01234")
    assert {event["seq"] == event["id"] for event in seen[:-1]} == {True}
    assert numbers == [event["seq"] for event in api.client.get(f"/v1/jobs/{running.job}/events").json()["data"]]


def test_a_stream_resumes_after_the_last_event_id(api: Api) -> None:
    """From wherever it broke off, nothing is lost and nothing comes twice."""
    running = begin(api)
    running.tell(6)
    running.end()
    path = f"/v1/jobs/{running.job}/events"
    whole = stream(api, path)
    for broken_off in range(len(whole) - 2):
        resumed = stream(api, path, **{"Last-Event-ID": str(whole[broken_off]["id"])})
        assert resumed == whole[broken_off + 1 :]
    assert stream(api, f"{path}?after={whole[2]['id']}") == whole[3:]
    assert stream(api, f"{path}?after={whole[-1]['id']}") == whole[-1:]


def test_a_browser_that_comes_back_after_the_end_with_the_last_number_is_told_to_stop(api: Api) -> None:
    """An EventSource ends at 204 alone. Pages, and streams that have not brought all, are as they were."""
    running = begin(api)
    running.tell(2)
    of_job, of_run = f"/v1/jobs/{running.job}/events", f"/v1/runs/{running.run}/events"
    last = api.client.get(of_job).json()["last_id"]
    with api.client.stream("GET", of_job, headers={**SSE, "Last-Event-ID": last}) as response:
        assert response.status_code == 200, "it goes on"
    running.end()
    for path in (of_job, of_run):
        *_, before, done = stream(api, path)
        assert done["event"] == "done"
        response = api.client.get(path, headers={**SSE, "Last-Event-ID": str(done["id"])})
        assert (response.status_code, response.content) == (204, b"")
        assert len(stream(api, path, **{"Last-Event-ID": str(before["id"] - 1)})) == 2
        page = api.client.get(path, params={"after": done["id"]}, headers={"Last-Event-ID": str(done["id"])})
        assert (page.status_code, page.json()["data"]) == (200, [])


def test_a_runs_stream_ends_with_the_run(api: Api) -> None:
    """Though its job goes on."""
    running = begin(api)
    api.records.move_run(running.run, 1, State.FAILED, error={"type": "E", "message": "no"})
    events = stream(api, f"/v1/runs/{running.run}/events")
    assert [event["event"] for event in events] == ["state", "state", "done"]
    assert events[1]["data"] == {"state": "failed", "error": {"type": "E", "message": "no"}}
    assert events[2]["state"] == "failed"


def test_many_streams_see_the_same_while_a_writer_writes(api: Api) -> None:
    """Every reader has every event once, in order."""
    running = begin(api)
    path = f"/v1/jobs/{running.job}/events"
    begun = threading.Semaphore(0)

    def read(_: int) -> list[int]:
        with (
            httpx2.Client(base_url=api.url, timeout=60) as client,
            client.stream("GET", path, headers=SSE) as response,
        ):
            events = parse(response.iter_lines())
            numbers = [next(events)["id"]]
            begun.release()
            return numbers + [event["id"] for event in events if event["event"] != "done"]

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read, number) for number in range(5)]
        for _ in readers:
            assert begun.acquire(timeout=30)
        for _ in range(20):
            running.tell(3)
        running.end()
        seen = [reader.result(timeout=30) for reader in readers]
    assert len(set(map(tuple, seen))) == 1
    assert len(set(seen[0])) == len(seen[0]) == 60 + 6  # and two starts, two ends of runs, two states of the job


def test_a_quiet_stream_sends_comments(tmp_path: Path) -> None:
    """So that nothing between takes it for dead."""
    with running_api(make_settings(tmp_path, keep_alive_s=0.05)) as api:
        running = begin(api)
        with api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE) as response:
            events = parse(response.iter_lines())
            seen = [next(events) for _ in range(4)]
        assert [event.get("comment") for event in seen[2:]] == [": ping", ": ping"]


def test_a_stream_ends_when_the_server_shuts_down(api: Api) -> None:
    """Without `done`: the client comes back for the rest."""
    running = begin(api)
    with api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE) as response:
        events = parse(response.iter_lines())
        assert [next(events)["event"] for _ in range(2)] == ["state", "state"]
        stopper = threading.Thread(target=api.stop)
        stopper.start()
        assert list(events) == []
        stopper.join()


def test_a_stream_whose_client_has_left_ends(api: Api) -> None:
    """Nothing goes on looking into the database for it."""
    running = begin(api)
    with api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE) as response:
        events = parse(response.iter_lines())
        assert next(events)["event"] == "state"
        assert api.requests() == 1
    wait_until(lambda: api.requests() == 0)


def test_a_stream_that_breaks_anywhere_is_resumed_with_nothing_lost_or_doubled(api: Api) -> None:
    """Cut after any number of bytes, in the middle of a line or a character, while events go on being told."""
    running = begin(api)
    path = f"/v1/jobs/{running.job}/events"
    chance = random.Random(7)
    seen: list[dict[str, Any]] = []
    with CuttingProxy(urlsplit(api.url).port or 0, [chance.randrange(150, 2500) for _ in range(20)]) as proxy:

        def tell() -> None:
            while len(proxy.passed) <= 20:
                running.tell(1)
            running.end()

        teller = threading.Thread(target=tell)
        teller.start()
        while not seen or seen[-1]["event"] != "done":
            headers = {**SSE, **({"Last-Event-ID": str(seen[-1]["id"])} if seen else {})}
            with (
                suppress(httpx2.TransportError),
                httpx2.Client(base_url=proxy.url, timeout=30, trust_env=False) as client,
                client.stream("GET", path, headers=headers) as response,
            ):
                if response.status_code == 204:
                    # Nothing but ``done`` was cut off.
                    seen.append({"event": "done"})
                for event in parse(response.iter_lines()):
                    seen.append(event)
        teller.join()
    stored = api.client.get(path, params={"limit": 1000}).json()["data"]
    assert [event["seq"] for event in seen[:-1]] == [event["seq"] for event in stored]
    assert [event["data"]["message"] for event in seen if event["event"] == "log"] == [str(n) for n in range(running.n)]


def test_a_client_that_does_not_read_holds_no_connection_and_no_memory(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are served meanwhile; what it has missed it gets, in order, once it reads again."""
    monkeypatch.setattr(service.api.event_feed, "KEPT", 20)
    running = begin(api)
    message = "x" * 10_000
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        head = f"GET /v1/runs/{running.run}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        lazy.sendall(f"{head}Connection: close\r\n\r\n".encode())
        wait_until(lambda: api.requests() == 1)
        for first in range(0, 1000, 100):
            told = [(n, {"type": "log", "message": message}) for n in range(first, first + 100)]
            assert api.records.record_events(running.job, running.run, 1, told) == 100
        running.n = 1000
        running.end()
        # Ten megabytes are more than the sockets hold.
        assert len(stream(api, f"/v1/runs/{running.run}/events")) == 1003
        wait_until(lambda: api.requests() == 1)
        pool = api.context.database._reading.pool
        assert isinstance(pool, QueuePool)
        wait_until(lambda: pool.checkedout() == 0)
        answer = b"".join(iter(lambda: lazy.recv(65536), b""))
    lines = [line for line in answer.split(b"\r\n") for line in line.split(b"\n") if line.startswith(b"id: ")]
    numbers = [int(line[4:]) for line in lines]
    assert numbers == [*sorted(set(numbers)), numbers[-1]]  # the last one is that of `done`
    assert len(numbers) == 1003


def test_streams_that_have_caught_up_keep_no_rows(tmp_path: Path) -> None:
    """Neither of the page that they began with, nor of the news; there would be hundreds for each stream."""
    # A quiet stream looks again, and forgets the page before then; here none is quiet for long enough.
    with running_api(make_settings(tmp_path, keep_alive_s=600)) as api, ExitStack() as open_streams:
        running = begin(api)
        running.tell(100)
        opened = [
            open_streams.enter_context(api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE))
            for _ in range(3)
        ]
        streams = [parse(response.iter_lines()) for response in opened]
        for events in streams:
            assert [next(events)["event"] for _ in range(102)][2:] == ["log"] * 100
        wait_until(lambda: api.context.event_feed.head > 0)
        running.tell(50)
        for events in streams:
            assert [next(events)["event"] for _ in range(50)] == ["log"] * 50
        wait_until(lambda: not any(type(each) is EventRecord for each in gc.get_objects()))
        assert api.requests() == 3


def test_streams_that_wait_share_one_look_into_the_database(api: Api) -> None:
    """However many there are; and nobody looks when there are none."""
    running = begin(api)
    asked: list[str] = []
    with ExitStack() as open_streams:
        for _ in range(8):
            response = open_streams.enter_context(
                api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE)
            )
            events = parse(response.iter_lines())
            assert [next(events)["event"] for _ in range(2)] == ["state", "state"]
        wait_until(lambda: api.context.event_feed.head > 0)

        @sqlalchemy.event.listens_for(api.context.database._reading, "before_cursor_execute")
        def note(*arguments: object) -> None:
            asked.append(str(arguments[2]))

        def is_shared(statement: str) -> bool:
            is_look = "FROM events" in statement and "events.seq >" in statement and "events.job_id =" not in statement
            return is_look or statement.startswith("BEGIN")

        # The streams that came last may still have to catch up by themselves.
        wait_until(lambda: len(asked) > 40 and all(map(is_shared, asked[-40:])))
    wait_until(lambda: api.context.event_feed._reader is None)
    assert api.requests() == 0


@pytest.mark.parametrize("broken", ["later_events", "events"])
def test_a_stream_outlives_a_database_that_cannot_be_read_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """It goes on where it was: though it has been quiet for so long that it looks for itself, too."""
    with running_api(make_settings(tmp_path, keep_alive_s=0.05)) as api:
        running = begin(api)
        failures: list[str] = []

        def fail(*_: object) -> list[EventRecord]:
            failures.append(broken)
            raise OperationalError("select", {}, Exception("gone"))

        with api.client.stream("GET", f"/v1/jobs/{running.job}/events", headers=SSE) as response:
            events = (event for event in parse(response.iter_lines()) if "comment" not in event)
            assert [next(events)["event"] for _ in range(2)] == ["state", "state"]
            with monkeypatch.context() as patched:
                patched.setattr(api.queries, broken, fail)
                wait_until(lambda: len(failures) > 3)
                running.tell(2)
            assert [next(events)["data"]["message"] for _ in range(2)] == ["0", "1"]
    told = {entry["log_level"] for entry in api.logs if entry["event"] == "events cannot be read"}
    assert told == ({"warning"} if broken == "later_events" else set())
    assert not [entry for entry in api.logs if entry["log_level"] == "error"]


# Values of ``data`` as SQL: no object, no JSON, half of it, nested too deep, and bytes that are no text.
DAMAGED = ("'[1]'", "'null'", "''", "'{\"a\": '", f"'{'[' * 100_000}'", "CAST(X'7b22fc227d' AS TEXT)")


def store(api: Api, running: Running, data: Sequence[str], kind: str = "log") -> None:
    """Events of a run as SQL spells them."""
    columns = "INSERT INTO events (job_id, run_id, attempt, n, type, data, at) "
    with api.context.database.write() as session:
        for value in data:
            values = f"VALUES (:job, :run, 1, NULL, :kind, {value}, '2026-01-01 00:00:00.000000')"
            session.execute(text(columns + values), {"job": running.job, "run": running.run, "kind": kind})


def test_readers_are_told_of_each_event_that_is_damaged_and_get_all_others(api: Api) -> None:
    """The streams, which one reader serves, by pages, and the metrics of a run."""
    running = begin(api)
    path = f"/v1/jobs/{running.job}/events"
    with api.client.stream("GET", path, headers=SSE) as response:
        events = parse(response.iter_lines())
        seen = [next(events) for _ in range(2)]
        store(api, running, DAMAGED)
        store(api, running, ["CAST(X'fc' AS TEXT)"], kind="state")
        running.tell(1)
        seen += [next(events) for _ in range(len(DAMAGED) + 2)]
        store(api, running, [*DAMAGED, """'{"epoch": 1, "metrics": {"epoch": 1, "top1": 0.5}}'"""], kind="epoch")
        running.end()
        seen += list(events)
    first = seen[1]["id"] + 1
    for event in seen[2 : 2 + len(DAMAGED) + 1]:
        damage = f"event {event['id']} cannot be read: what the database holds of it is damaged"
        assert (event["event"], event["data"]) == ("log", {"level": "warning", "message": damage})
        assert (event["job_id"], event["run_id"]) == (running.job, running.run)
    assert [event["id"] for event in seen[2:-1]] == list(range(first, first + len(seen) - 3)), "none is left out"
    assert seen[-1]["event"] == "done"
    again = stream(api, path)
    assert [event["id"] for event in again] == [event["id"] for event in seen], "as read from the database"
    pages = api.client.get(path).json()["data"]
    assert [event["data"] for event in pages] == [event["data"] for event in seen[:-1]]
    assert api.client.get(f"/v1/runs/{running.run}/metrics").json()["data"] == [{"epoch": 1, "top1": 0.5}]


def test_stream_and_pages_read_what_an_earlier_version_stored_and_a_row_that_cannot_be_told_stops_no_other(
    api: Api,
) -> None:
    """Half a surrogate pair, which no encoder takes, in an error and an event; an event too deep to be written."""
    running = begin(api)
    path = f"/v1/jobs/{running.job}"
    with api.client.stream("GET", f"{path}/events", headers=SSE) as response:
        events = parse(response.iter_lines())
        seen = [next(events) for _ in range(2)]
        with api.context.database.write() as session:
            session.execute(
                text("UPDATE jobs SET error = :error"), {"error": json.dumps({"type": "E", "message": NAME})}
            )
        store(api, running, [f"""'{{"deep": {"[" * 400}{"]" * 400}}}'""", f"'{json.dumps({'message': NAME})}'"])
        running.n = 2
        seen.append(next(events))
        running.tell(1)
        seen.append(next(events))
        running.end()
        seen += list(events)
    assert [event["data"]["message"] for event in seen if event["event"] == "log"] == ["zz\\xfc.png", "2"]
    assert any(line["event"] == "an event cannot be told" for line in api.logs)
    again = stream(api, f"{path}/events")
    assert [event["id"] for event in again] == [event["id"] for event in seen], "as read from the database"
    last = api.client.get(f"{path}/events", params={"after": seen[1]["id"] + 1}).json()["data"]
    assert last[0]["data"] == {"message": "zz\\xfc.png"}
    assert api.client.get("/v1/jobs").json()["data"][0]["error"] == {"type": "E", "message": "zz\\xfc.png"}
