"""Follower of a service: live, at least once, through outages; a tracker that hangs ends its own process alone."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.cli.processes.supervisor import free_port
from service.cli.processes.trackers import cursor_name
from service.client.client import Client
from service.trackers.address import parse_address
from service.trackers.cursor import Cursor, CursorBusy
from service.trackers.follow import Follower
from service.trackers.guard import STALLED
from service.trackers.patience import DOUBLINGS_MAX
from tests.support.service_helpers import Api, open_to_others
from tests.support.tracker_cases import RecordingSink, Work
from workers.backoff import Schedule

pytest_plugins = ["tests.support.service_fixtures"]
ROOT = Path(__file__).resolve().parents[3]
TRIES = Schedule(base_s=1.0, factor=2.0, cap_s=4.0)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    yield
    RecordingSink.reset()


class Tracking:
    """A follower whose clock stands; a new one with the same cursor is what a restart makes."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api, self._path = api, folder / "cursor.sqlite3"
        self.now = 0.0
        self.client = Client(api.url)
        self.start()

    def start(self) -> None:
        self.cursor = Cursor(self._path)
        self.follower = Follower(
            self.client,
            self.cursor,
            lambda: RecordingSink("here", "retort", Path("nowhere")),
            tries=TRIES,
            clock=lambda: self.now,
        )

    def restart(self) -> None:
        self.cursor.close()
        self.start()

    def close(self) -> None:
        self.follower.close()
        self.client.close()


@pytest.fixture
def tracking(api: Api, tmp_path: Path) -> Iterator[Tracking]:
    made = Tracking(api, tmp_path)
    yield made
    made.close()


def test_follower_tells_each_event_once_it_is_stored(api: Api, tracking: Tracking) -> None:
    tracking.follower.round()
    work = Work(api)
    work.epoch(0, 1)
    tracking.follower.round()
    kept = RecordingSink.runs[work.run_ids[0]]
    assert kept.calls == [1]
    work.epoch(0, 2)
    tracking.follower.round()
    assert kept.calls == [1, 2]
    work.epoch(0, 3)
    work.end_run(0)
    work.end_run(1)
    work.end()
    tracking.follower.round()
    assert (kept.calls, kept.state) == ([1, 2, 3], "succeeded")
    assert tracking.cursor.open_jobs() == {}


def test_follower_leaves_jobs_out_that_had_ended_before_it_began(api: Api, tracking: Tracking) -> None:
    before, during = Work(api), Work(api)
    before.finish()
    tracking.follower.round()
    during.finish()
    tracking.follower.round()
    assert set(RecordingSink.runs) == set(during.run_ids)


def test_follower_of_one_job_tells_all_of_it_through_an_outage_and_ends_by_itself(api: Api, tmp_path: Path) -> None:
    """It has ended, and begins where it began, whatever the cursor says; other jobs are not told."""
    work, other = Work(api), Work(api)
    work.finish()
    cursor = Cursor(tmp_path / "cursor.sqlite3")
    cursor.begin([work.job_id, other.job_id])
    RecordingSink.fails += ["log_metrics", "flush"]
    with Client(api.url) as client:

        def follow(job_id: str) -> Follower:
            sink = RecordingSink("here", "retort", Path("nowhere"))
            quick = Schedule(base_s=0.001, factor=1.0, cap_s=0.001)
            made = Follower(client, cursor, lambda: sink, tries=quick, only=[job_id])
            made.run(threading.Event(), poll_s=0.001)
            return made

        assert follow(work.job_id).lacking == {}
        assert [RecordingSink.runs[id].state for id in work.run_ids] == ["succeeded", "succeeded"]
        assert set(RecordingSink.runs) == set(work.run_ids)
        assert RecordingSink.fails == []
        gone = "job_" + "0" * 26
        assert "is not there" in follow(gone).lacking[gone]
    cursor.close()


def test_follower_of_one_job_goes_on_after_a_kill_with_its_stalls_and_with_what_the_tracker_lacks(
    api: Api, tmp_path: Path
) -> None:
    """It begins anew with a job that is done alone."""
    work = Work(api)
    work.epoch(0, 1)
    work.epoch(1, 1)
    RecordingSink.refuses.add(work.run_ids[0])
    path = tmp_path / "cursor.sqlite3"
    with Client(api.url) as client:

        def follower(cursor: Cursor) -> Follower:
            return Follower(client, cursor, lambda: RecordingSink("here", "retort", tmp_path), only=[work.job_id])

        killed = Cursor(path)
        follower(killed).round()
        seq = killed.open_jobs()[work.job_id]
        killed.note_stall(work.job_id)
        killed.close()
        again = Cursor(path)
        second = follower(again)
        assert (seq > 0, again.open_jobs(), again.stalls(work.job_id)) == (True, {work.job_id: seq}, 1)
        for _ in range(DOUBLINGS_MAX):
            again.note_stall(work.job_id)
        second.run(threading.Event())
        assert set(second.lacking) == {work.run_ids[0], work.job_id}
        assert "retort export" in second.lacking[work.job_id]
        third = follower(again)
        assert (again.open_jobs(), third.lacking) == ({work.job_id: 0}, {})
        again.close()


def test_cursor_is_of_one_process_and_each_set_of_jobs_and_project_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.trackers.cursor._LOCK_WAIT_S", 0.0)
    path = tmp_path / "cursor.sqlite3"
    Cursor(path).close()
    with closing(Cursor(path)), pytest.raises(CursorBusy, match=r"cursor\.sqlite3: wait for its end"):
        Cursor(path)
    Cursor(path).close()
    address = parse_address("mlflow:http://127.0.0.1:5000")
    cases = (("retort", ()), ("retort", ("a",)), ("retort", ("b",)), ("retort", ("b", "a")), ("other", ("a",)))
    assert len({cursor_name(address, project, jobs) for project, jobs in cases}) == len(cases)
    assert cursor_name(address, "retort", ("a", "b")) == cursor_name(address, "retort", ("b", "a", "b"))


def test_follower_that_is_killed_before_its_cursor_moved_tells_again_and_doubles_nothing(
    api: Api, tracking: Tracking
) -> None:
    work = Work(api)
    work.epoch(0, 1)
    RecordingSink.fails += ["flush"]
    tracking.follower.round()
    assert list(tracking.cursor.open_jobs().values()) == [0]
    tracking.restart()
    work.epoch(0, 2)
    tracking.follower.round()
    assert RecordingSink.runs[work.run_ids[0]].calls == [1, 2]
    assert list(tracking.cursor.open_jobs().values()) > [0]


def test_follower_outlives_an_outage_and_says_how_far_it_is_behind(api: Api, tracking: Tracking) -> None:
    work = Work(api)
    work.finish()
    # It was there while it ran.
    tracking.cursor.begin([])
    RecordingSink.fails += ["log_metrics", "start", "flush"]
    with capture_logs() as logs:
        for wait_s in (0.0, 1.0, 2.0, 4.0):
            # Not before its time.
            tracking.now += wait_s / 2
            tracking.follower.round()
            tracking.now += wait_s / 2
            tracking.follower.round()
    behind = [line for line in logs if line["event"] == "the tracker is behind with a job"]
    assert [line["next_try_s"] for line in behind] == [1.0, 2.0, 4.0]
    assert behind[0]["error"] == "ConnectionError: log_metrics finds nobody"
    assert behind[0]["behind_s"] >= 0
    assert [line["event"] for line in logs][-2:] == ["the tracker has caught up", "the tracker has a whole job"]
    assert [kept.calls for kept in RecordingSink.runs.values()] == [[1, 2, 3], [1, 2, 3]]


def test_follower_of_one_job_in_trouble_goes_on_with_the_others(api: Api, tracking: Tracking) -> None:
    tracking.cursor.begin([])
    first, second = Work(api), Work(api)
    first.finish()
    second.finish()
    RecordingSink.fails += ["start"]
    tracking.follower.round()
    assert set(RecordingSink.runs) == set(second.run_ids)
    assert list(tracking.cursor.open_jobs()) == [first.job_id]


def test_follower_asks_less_and_less_often_for_a_job_without_events(
    api: Api, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    ask = tracking.client.stored_events

    def stored_events(job_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
        asked.append(tracking.now)
        return ask(job_id, after=after)

    monkeypatch.setattr(tracking.client, "stored_events", stored_events)
    tracking.cursor.begin([])
    work = Work(api)
    for second in range(100):
        tracking.now = float(second)
        tracking.follower.round()
    # The first look brings the state; the last wait is 30 s.
    assert asked == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0]
    work.epoch(0, 1)
    tracking.now = 121.0
    tracking.follower.round()
    assert RecordingSink.runs[work.run_ids[0]].calls == [1]
    work.epoch(0, 2)
    tracking.follower.round()
    assert RecordingSink.runs[work.run_ids[0]].calls == [1, 2]


def test_follower_forgets_a_job_that_is_deleted(api: Api, tracking: Tracking) -> None:
    tracking.cursor.begin([])
    work = Work(api)
    work.finish()
    RecordingSink.fails += ["flush"]
    tracking.follower.round()
    tracking.client.delete(work.job_id)
    tracking.now += 1.0
    tracking.follower.round()
    assert tracking.cursor.open_jobs() == {}


def test_follower_leaves_a_run_out_that_is_deleted_and_tells_the_others(api: Api, tracking: Tracking) -> None:
    tracking.cursor.begin([])
    work = Work(api)
    work.finish()
    tracking.client.delete(work.run_ids[0])
    tracking.follower.round()
    assert list(RecordingSink.runs) == [work.run_ids[1]]
    assert tracking.cursor.open_jobs() == {}


def test_follower_that_is_there_before_the_service_waits_and_says_so_once(tmp_path: Path) -> None:
    stop, waits = threading.Event(), list[float | None]()

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return len(waits) == 3 and not stop.set()

    stop.wait = wait  # type: ignore[method-assign]  # a clock that does not stand still
    with Client(f"http://127.0.0.1:{free_port()}") as client, capture_logs() as logs:
        cursor = Cursor(tmp_path / "cursor.sqlite3")
        Follower(client, cursor, lambda: RecordingSink("here", "retort", tmp_path)).run(stop)
        cursor.close()
    assert waits == [2.0, 2.0, 2.0]
    assert [line["event"] for line in logs] == ["waits for the service"]


# Of a tracker that answers never: `retort track` as it is, but for one more sink.
HANGING = """
import sys, time
from service.trackers.sinks.registry import SINKS
from tests.support.tracker_cases import RecordingSink

class Hanging(RecordingSink):
    def start(self, run):
        time.sleep(600)

SINKS["hanging"] = Hanging
from service.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_track_process_of_a_tracker_that_hangs_ends_and_says_so(api: Api, tmp_path: Path) -> None:
    work = Work(api)
    work.epoch(0, 1)
    line = [sys.executable, "-c", HANGING, "--url", api.url, "track", "hanging:here"]
    done = subprocess.run(
        [*line, "--cursor-dir", str(tmp_path / "cursor/deep"), "--stall-s", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == STALLED, done.stderr
    assert '"call": "start"' in done.stdout
    assert not open_to_others(tmp_path / "cursor")
    assert "the tracker hangs" in done.stdout
    # Nobody else has noticed.
    work.epoch(0, 2)


TELLING = HANGING.replace(
    "start(self, run):\n        time.sleep(600)", "end(self, run, state, at):\n        print(run.id, state)"
)


def test_track_process_of_one_job_that_has_ended_ends_by_itself(api: Api, tmp_path: Path) -> None:
    work = Work(api)
    work.finish()
    line = [sys.executable, "-c", TELLING, "--url", api.url, "track", "hanging:here"]
    for job_id, status, said in ((work.job_id, 0, f"{work.run_ids[1]} succeeded"), ("job_" + "0" * 26, 1, "not there")):
        done = subprocess.run(
            [*line, "--cursor-dir", str(tmp_path / "cursor"), "--job", job_id],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr
        assert not list((tmp_path / "cursor").glob("*.sqlite3"))
