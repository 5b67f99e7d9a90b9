"""The log of an attempt: what stands in it whatever happens to its process, and how it is read."""

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.db.states import State
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api, start_run
from workers import logs
from workers.cluster.actors import EVENTS_MAX, Actor
from workers.cluster.outcomes import TaskOutcome
from workers.errors import NotFinite, Paused, Stopped
from workers.events import Epoch, Log, PreflightChecked, Step
from workers.logs import BYTES_MAX, RunLog, ids_of

pytest_plugins = ["tests.support.service_fixtures"]


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """What a worker's process sets up for good."""
    level = logging.root.level
    logging.root.setLevel(logging.INFO)
    yield
    logging.captureWarnings(False)
    logging.root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def attempt_of(folder: Path, run: str = "run_1") -> Path:
    return folder / "jobs" / "job_1" / run / "a3"


def open_log(attempt: Path, writes: bool = True) -> RunLog:
    return RunLog(attempt, attempt / "artifacts", writes)


def lines_of(attempt: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (attempt / "log.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------------------- what is written


class QuietActor(Actor):
    """An actor outside Ray: it holds nothing."""

    def _held(self) -> None:
        return None


def test_actor_answers_with_events_until_they_are_acknowledged_and_logs_each_once(tmp_path: Path) -> None:
    attempt, actor = attempt_of(tmp_path), QuietActor(first_event=7)
    [slot] = actor._slots
    slot.log = open_log(attempt)
    for number in range(3):
        actor._emit(slot, Log(message=f"event {number}"))
    slot.outcome = TaskOutcome(kind="done", value={})
    for _ in range(2):
        events, outcome, *_ = actor.answer(0, 8)
        assert [(n, event["message"]) for n, event in events] == [(8, "event 1"), (9, "event 2")]
        assert outcome == slot.outcome
    assert actor.answer(0, 10)[0] == []
    assert [line["event"] for line in lines_of(attempt)] == ["attempt begins", "event 0", "event 1", "event 2"]
    slot.log.close()


def test_actor_gives_its_outcome_with_the_last_of_its_events() -> None:
    actor = QuietActor()
    [slot] = actor._slots
    slot.outcome = TaskOutcome(kind="done", value={})
    for _ in range(EVENTS_MAX + 1):
        actor._emit(slot, Log(message="x"))
    events, outcome, *_ = actor.answer(0, 0)
    assert (len(events), outcome) == (EVENTS_MAX, None)
    events, outcome, *_ = actor.answer(0, EVENTS_MAX)
    assert (len(events), outcome) == (1, slot.outcome)


def test_run_log_has_events_but_steps_and_logger_messages_as_lines_with_the_ids_at_once(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path)
    log = open_log(attempt)
    logging.captureWarnings(True)
    log.record(Log(level="warning", message='a "quoted"\nline'))
    log.record(Step(epoch=1, epochs=2, step=3, steps=4, loss=0.5, images_per_s=1.0))
    log.record(Epoch(epoch=1, epochs=2, metrics={"top1": 0.5, "kl": float("nan")}))
    broken = {"name": "some.library", "levelname": "ERROR", "levelno": logging.ERROR, "msg": "broken: \udcff"}
    # Not by way of the logger: pytest would take it down as well, and cannot pass it on to another process.
    log.handle(logging.makeLogRecord(broken))
    logging.getLogger("some.library").debug("not this")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("deprecated", UserWarning, stacklevel=1)
    # Nothing was closed or flushed by hand yet.
    told = lines_of(attempt)
    assert [(line["level"], line["event"]) for line in told[:4]] == [
        ("info", "attempt begins"),
        ("warning", 'a "quoted"\nline'),
        ("info", "epoch"),
        ("error", "broken: \\xff"),
    ]
    assert told[0]["pid"] == os.getpid()
    assert told[2]["metrics"] == {"top1": 0.5, "kl": None}
    assert told[3]["logger"] == "some.library"
    assert (told[4]["level"], told[4]["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: deprecated" in told[4]["event"]
    assert len(told) == 5
    for line in told:
        assert (line["job_id"], line["run_id"], line["attempt"]) == ("job_1", "run_1", 3)
        assert line["at"].endswith("+00:00") or line["at"].endswith("Z")
    log.close()


@pytest.mark.parametrize(
    ("how", "level", "event"),
    [
        ({"last": {}}, "info", "attempt succeeded"),
        (Stopped("was stopped in epoch 2"), "info", "attempt stopped"),
        (Paused("was paused in epoch 2"), "info", "attempt paused"),
        (NotFinite("loss is nan"), "error", "attempt failed"),
    ],
)
def test_run_log_ends_with_the_outcome_and_is_an_artifact_of_a_success_alone(
    tmp_path: Path, how: dict[str, object] | Exception, level: str, event: str
) -> None:
    attempt = attempt_of(tmp_path)
    log = open_log(attempt)
    (attempt / "artifacts").mkdir()
    with log.ending(how):
        logging.getLogger("workers").error("work failed", exc_info=ValueError("inner"))
    logging.getLogger("workers").error("somebody else")
    *_, inner, last = lines_of(attempt)
    assert inner["event"] == "work failed"
    assert "ValueError: inner" in inner["exception"]
    assert (last["level"], last["event"]) == (level, event)
    if isinstance(how, Exception):
        assert str(how) in last["message"]
        assert not list((attempt / "artifacts").iterdir())
    else:
        # The very file, which nobody writes any more.
        assert (attempt / "artifacts" / "log.jsonl").samefile(attempt / "log.jsonl")
    assert log not in logging.root.handlers


def test_run_log_of_runs_in_one_process_has_own_lines_and_shared_ones(tmp_path: Path) -> None:
    first, second = attempt_of(tmp_path), attempt_of(tmp_path, "run_2")
    both = [open_log(first), open_log(second)]
    both[0].record(Log(message="mine"))
    logging.getLogger("x").warning("nobody's")
    with both[1].ending(RuntimeError("boom")):
        logging.getLogger("x").warning("of the second")
    logging.getLogger("x").warning("afterwards")
    assert [line["event"] for line in lines_of(first)] == ["attempt begins", "mine", "nobody's", "afterwards"]
    assert [line["event"] for line in lines_of(second)] == [
        "attempt begins",
        "nobody's",
        "of the second",
        "attempt failed",
    ]
    both[0].close()


def test_run_log_of_a_killed_process_has_its_lines(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path)
    code = f"""if True:
        import logging, os, signal
        from pathlib import Path
        from workers import logs
        from workers.events import Log
        logs.configure("info")
        log = logs.RunLog(Path({str(attempt)!r}), Path("none"))
        logs.speak_for([log])
        log.record(Log(message="the last words"))
        logging.getLogger("x").warning("of a library")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    assert [line["event"] for line in lines_of(attempt)] == ["attempt begins", "the last words", "of a library"]
    # Its standard output has the ids, too.
    [said] = map(json.loads, done.stdout.splitlines())
    assert (said["event"], said["job_id"], said["run_id"], said["attempt"]) == ("of a library", "job_1", "run_1", 3)


def test_run_log_is_bounded_and_keeps_room_for_warnings_and_the_end(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path)
    log = open_log(attempt)
    told = PreflightChecked(
        rows=1, forwards=1, accuracy=1, chance=0.1, output_kind="logits", provider="p" * 900, provider_reason=""
    )
    for _ in range(1200):
        log.record(told)
    log.record(Log(level="warning", message="there is room for this"))
    for _ in range(1200):
        logging.getLogger("x").error("e" * 900)
    with log.ending(NotFinite("n" * 100_000)):
        pass
    path = attempt / "log.jsonl"
    assert BYTES_MAX - (100 << 10) < path.stat().st_size <= BYTES_MAX
    events = [line["event"] for line in lines_of(attempt)]
    assert sum("the log is full" in event for event in events) == 1
    assert "there is room for this" in events
    assert events[-1] == "attempt failed"
    assert len(lines_of(attempt)[-1]["message"]) < 5000


def test_run_log_has_text_that_every_reader_takes_and_no_terminal_obeys(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path)
    log = open_log(attempt)
    # Not by way of the logger, as above.
    broken = {"name": "workers", "levelname": "WARNING", "levelno": logging.WARNING, "msg": "zz\udcfc.png \x7f\x9b\x1b"}
    log.handle(logging.makeLogRecord(broken))
    with log.ending(OSError("zz\udcfc.png")):
        pass
    text = (attempt / "log.jsonl").read_text()
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    _, warned, ended = lines_of(attempt)
    assert (warned["event"], ended["message"]) == ("zz\\xfc.png \x7f\x9b\x1b", "zz\\xfc.png")


def test_run_log_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file where a folder has to be")
    log = open_log(attempt_of(tmp_path))
    log.record(Log(message="x"))
    with log.ending({}):
        pass
    log = open_log(attempt_of(tmp_path / "some"))
    log.handle(logging.LogRecord("x", logging.ERROR, "x.py", 1, "%d", ("no number",), None))
    with log.ending({}):
        pass
    assert [line["event"] for line in lines_of(attempt_of(tmp_path / "some"))] == [
        "attempt begins",
        "attempt succeeded",
    ]
    silent = open_log(attempt_of(tmp_path / "other"), writes=False)
    with silent.ending({}):
        pass
    assert not (tmp_path / "other").exists()


def test_run_log_in_a_folder_of_another_shape_has_no_ids(tmp_path: Path) -> None:
    assert ids_of(Path("/d/jobs/job_1/run_2/a14")) == {"job_id": "job_1", "run_id": "run_2", "attempt": 14}
    assert ids_of(tmp_path / "run-0") == ids_of(Path("a0")) == {}
    logs.speak_for([RunLog(tmp_path / "run-0", tmp_path, writes=False)])
    assert structlog.contextvars.get_contextvars() == {}


# ------------------------------------------------------------------------------------------------------ how it is read


def lose_run(api: Api) -> tuple[str, Path]:
    """A run whose first attempt was lost and whose second one is under way; and the folder of its attempts."""
    job = api.post_job(methods=["kd"])
    run: str = job["run_ids"][0]
    api.records.claim_job()
    for attempt in (1, 2):
        folder = api.settings.jobs_dir / job["id"] / run / f"a{attempt}"
        assert start_run(api.records, run) == attempt
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(f'{{"event": "attempt {attempt}"}}\n')
        if attempt == 1:
            assert api.records.move_run(run, 1, State.LOST)
    return run, folder.parent


@pytest.fixture(scope="module")
def run_id(shared_api: Api) -> str:
    """Such a run for the tests that only read."""
    return lose_run(shared_api)[0]


def test_run_log_is_read_while_it_grows(api: Api) -> None:
    run, folder = lose_run(api)
    url = f"/v1/runs/{run}/log"
    now = api.client.get(url)
    assert (now.status_code, now.text) == (200, '{"event": "attempt 2"}\n')
    assert now.headers["content-type"] == "application/jsonl"
    assert now.headers["x-content-type-options"] == "nosniff"
    assert api.client.get(url, headers={"If-None-Match": now.headers["etag"]}).status_code == 304
    assert api.client.get(url, params={"attempt": 1}).text == '{"event": "attempt 1"}\n'
    seen = len(now.content)
    ask = {"Range": f"bytes={seen}-"}
    response = api.client.get(url, headers=ask)
    problem(response, 416, "range-not-satisfiable")
    assert response.headers["content-range"] == f"bytes */{seen}"
    with (folder / "a2" / "log.jsonl").open("a") as file:
        file.write("more\n")
    response = api.client.get(url, headers=ask)
    assert (response.status_code, response.text) == (206, "more\n")
    assert response.headers["content-range"] == f"bytes {seen}-{seen + 4}/{seen + 5}"
    # It is no artifact of a run that has not succeeded.
    assert api.client.get(f"/v1/runs/{run}/artifacts").json()["data"] == []


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-4", slice(0, 5)),
        ("bytes=-3", slice(-3, None)),
        ("bytes= 2 - 900", slice(2, None)),
        ("bytes=-900", slice(None)),
    ],
)
def test_run_log_is_served_in_part(shared_api: Api, run_id: str, header: str, part: slice) -> None:
    content = b'{"event": "attempt 2"}\n'
    response = shared_api.client.get(f"/v1/runs/{run_id}/log", headers={"Range": header})
    assert (response.status_code, response.content) == (206, content[part])
    start, stop, _ = part.indices(len(content))
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(content)}"


@pytest.mark.parametrize("header", ["lines=1-", "bytes=0-1,3-4", "bytes=", f"bytes={'9' * 5000}-"])
def test_run_log_is_served_whole_for_a_range_that_is_not_supported(shared_api: Api, run_id: str, header: str) -> None:
    assert shared_api.client.get(f"/v1/runs/{run_id}/log", headers={"Range": header}).status_code == 200
    conditional = {"Range": "bytes=0-1", "If-Range": '"x"'}
    assert shared_api.client.get(f"/v1/runs/{run_id}/log", headers=conditional).status_code == 200


@pytest.mark.parametrize("header", ["bytes=23-", "bytes=5-4", "bytes=-0"])
def test_run_log_part_beyond_the_end_is_refused(shared_api: Api, run_id: str, header: str) -> None:
    problem(shared_api.client.get(f"/v1/runs/{run_id}/log", headers={"Range": header}), 416, "range-not-satisfiable")


def test_run_log_that_is_not_there_is_not_found(shared_api: Api, run_id: str) -> None:
    problem(shared_api.client.get(f"/v1/runs/{run_id}/log?attempt=3"), 404, "not-found")
    problem(shared_api.client.get("/v1/runs/run_nowhere/log"), 404, "not-found")
    for attempt in ("0", "-1", "x", "9" * 30):
        problem(shared_api.client.get(f"/v1/runs/{run_id}/log?attempt={attempt}"), 422, "invalid-request")
    waiting = shared_api.post_job(methods=["ce"])["run_ids"][0]
    problem(shared_api.client.get(f"/v1/runs/{waiting}/log"), 404, "not-found")
