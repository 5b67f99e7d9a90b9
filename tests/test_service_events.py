"""Events over HTTP: pages, streams, resumption, and the end."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.jobs import State
from tests.service_helpers import Api, make_settings, running_api
from tests.test_service_uploads import wait_until

pytest_plugins = ["tests.service_fixtures"]
SSE = {"Accept": "text/event-stream"}


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
            self.api.records.start_attempt(run.id)
            assert self.api.records.move_run(run.id, 1, State.SUCCEEDED)
        assert self.api.records.move_job(self.job, State.SUCCEEDED)


def begin(api: Api) -> Running:
    """A job that runs."""
    job = api.post_job()
    api.records.claim_job("engine")
    api.records.start_attempt(job["run_ids"][0])
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
    for broken_off in range(len(whole) - 1):
        resumed = stream(api, path, **{"Last-Event-ID": str(whole[broken_off]["id"])})
        assert resumed == whole[broken_off + 1 :]
    assert stream(api, f"{path}?after={whole[2]['id']}") == whole[3:]
    assert stream(api, path, **{"Last-Event-ID": str(whole[-1]["id"])}) == whole[-1:]


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
            httpx.Client(base_url=api.url, timeout=60) as client,
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
