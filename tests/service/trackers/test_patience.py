"""Patience with a tracker that is slower than a call may take: more time after each stall, and an end of it."""

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.client.client import Client
from service.trackers.cursor import Cursor
from service.trackers.follow import Follower
from service.trackers.guard import STALLED, Watchdog
from service.trackers.patience import DOUBLINGS_MAX, Patience
from service.trackers.sinks.base import TrackedRun
from tests.support.service_helpers import Api
from tests.support.tracker_cases import RecordingSink, Work

pytest_plugins = ["tests.support.service_fixtures"]
STALL_S, SLOW_S = 0.1, 0.3


class Killed(Exception):
    """In the place of the end of a process."""


class Slow(RecordingSink):
    """Takes ``SLOW_S`` to take up a run, unless the process ends before."""

    killed = threading.Event()

    def start(self, run: TrackedRun) -> int:
        if self.killed.wait(SLOW_S):
            raise Killed
        return super().start(run)


def follow_once(api: Api, folder: Path) -> list[int]:
    """One process that follows for a slow tracker; returns the status that it has ended with, if it has."""
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        Slow.killed.set()

    Slow.killed.clear()
    cursor = Cursor(folder / "cursor.sqlite3")
    patience = Patience(cursor, STALL_S)
    watchdog = Watchdog(patience, end)
    watchdog.start()
    with Client(api.url) as client:
        sink = watchdog.guarded(lambda: Slow("here", "retort", folder))
        Follower(client, cursor, lambda: sink, patience=patience).round()
    cursor.close()
    return ended


def test_a_tracker_that_is_slow_gets_on_after_some_stalls(api: Api, tmp_path: Path) -> None:
    work = Work(api)
    work.epoch(0, 1)
    Cursor(tmp_path / "cursor.sqlite3").close()
    ended = [follow_once(api, tmp_path) for _ in range(3)]
    # 0.1 and 0.2 s are not enough, 0.4 s are.
    assert ended == [[STALLED], [STALLED], []]
    assert RecordingSink.runs[work.run_ids[0]].calls == [1]
    RecordingSink.reset()


def test_a_job_is_given_up_after_too_many_stalls_and_the_others_get_on(api: Api, tmp_path: Path) -> None:
    works = [Work(api), Work(api)]
    for work in works:
        work.epoch(0, 1)
    cursor = Cursor(tmp_path / "cursor.sqlite3")
    cursor.begin([])
    for work in works:
        cursor.save(work.job_id, 0)
    for _ in range(DOUBLINGS_MAX + 1):
        cursor.note_stall(works[0].job_id)
    with Client(api.url) as client, capture_logs() as logs:
        Follower(client, cursor, lambda: RecordingSink("here", "retort", tmp_path)).round()
    given_up = [line for line in logs if "given up" in line["event"]]
    assert [line["job_id"] for line in given_up] == [works[0].job_id]
    assert "retort export" in given_up[0]["remedy"]
    assert list(RecordingSink.runs) == [works[1].run_ids[0]]
    assert list(cursor.open_jobs()) == [works[1].job_id]
    cursor.close()
    RecordingSink.reset()


def test_patience_doubles_with_each_stall_of_a_job_and_begins_anew_once_it_has_advanced(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path / "cursor.sqlite3")
    patience = Patience(cursor, 300.0)
    for expected in (300.0, 600.0, 1200.0):
        patience.begin("job_a")
        assert patience.allowed_s == pytest.approx(expected)
        patience.note_stall()
    patience.begin("job_b")
    assert patience.allowed_s == pytest.approx(300.0)
    cursor.save("job_a", 7)
    patience.begin("job_a")
    assert patience.allowed_s == pytest.approx(300.0)
    cursor.close()
