"""Claims, attempts, fencing, requests of clients, events and the lease, on SQLite and on a real PostgreSQL."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import TypeVar

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from service.db.columns import UtcDateTime
from service.db.database import Database, upgrade_to_head
from service.db.deletions.deletion import Deleter
from service.db.engine_queries import EngineQueries
from service.db.models import ArtifactRecord, EngineRecord, JobRecord, Json, RunRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.scheduling.job_control import JobControl
from service.db.states import LIVE, State
from service.db.transitions import actor_name
from service.errors import Conflict, LeaseLost, NotFound
from tests.support.service_helpers import add_job, finish, make_plan, make_settings, start_run, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]
Result = TypeVar("Result")
FILE: Json = {"name": "f", "path": "p", "size_bytes": 1, "sha256": "0" * 64, "media_type": "text/plain"}


@pytest.fixture
def job_control(database: Database) -> JobControl:
    """What clients ask for."""
    return JobControl(database)


def at_once(calls: list[Callable[[], Result]]) -> list[Result]:
    """Runs the calls in threads that start together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def start(queries: EngineQueries, job: JobRecord) -> tuple[RunRecord, int]:
    """Claims the job and starts its first run."""
    assert queries.claim_job() is not None
    run = queries.runs(job.id)[0]
    attempt = start_run(queries, run.id)
    assert attempt == 1
    return run, attempt


def test_the_oldest_job_is_claimed_first_and_only_once(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """In the order of posting, then none."""
    posted = [add_job(api_queries).id for _ in range(3)]
    claimed = [queries.claim_job() for _ in range(4)]
    assert [job and job.id for job in claimed] == [*posted, None]
    first = claimed[0]
    assert first is not None
    assert (first.state, first.attempt) == (State.RUNNING, 1)
    assert first.started_at is not None


def test_claimers_at_once_never_get_the_same_job(database_url: str, api_queries: ApiQueries) -> None:
    """Each has a connection of its own; all jobs are claimed, each once."""
    posted = {add_job(api_queries).id for _ in range(6)}

    def claim_all() -> list[str]:
        database = Database(database_url)
        try:
            claimed = []
            while (job := EngineQueries(database).claim_job()) is not None:
                claimed.append(job.id)
            return claimed
        finally:
            database.close()

    claimed = [id for ids in at_once([claim_all] * 4) for id in ids]
    assert sorted(claimed) == sorted(posted)


CLAIM = """
import sys
from service.db.database import Database
from service.db.engine_queries import EngineQueries
queries = EngineQueries(Database(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
job = queries.claim_job()
print(job and job.id)
"""


def test_one_job_and_three_processes(tmp_path: Path) -> None:
    """One of them gets it."""
    url = f"sqlite:///{tmp_path / 'db'}"
    upgrade_to_head(url)
    database = Database(url)
    job = add_job(ApiQueries(database))
    database.close()
    command = [sys.executable, "-c", CLAIM, url]
    root = Path(__file__).parents[3]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=root))
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        claimed = [process.communicate()[0].strip() for process in processes]
    assert sorted(claimed) == ["None", "None", job.id]


def test_the_higher_priority_is_claimed_first_then_the_key_with_less_at_work_then_the_oldest(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """All jobs without a key are one key's."""
    asked: list[tuple[str, int, str | None]] = [
        ("a1", 0, "a"), ("a2", 0, "a"), ("a3", 0, "a"), ("b1", 0, "b"), ("n1", 0, None), ("n2", 0, None),
        ("late", -5, "c"), ("urgent", 7, "a"),
    ]  # fmt: skip
    teacher = api_queries.add_teacher(teacher_row(), lambda: None)[0]
    for name, priority, key_id in asked:
        api_queries.add_job(make_plan(name=name), teacher, None, priority=priority, key_id=key_id)
    claimed = []
    while (job := queries.claim_job()) is not None:
        claimed.append(job.name)
    # "urgent" is a's first at work, so b and those without a key come before a's second.
    assert claimed == ["urgent", "b1", "n1", "a1", "n2", "a2", "a3", "late"]


def test_claimed_is_another_keys_job_where_the_first_ones_key_has_enough(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Whatever the priority of what that key has posted."""
    teacher = api_queries.add_teacher(teacher_row(), lambda: None)[0]
    for name, priority, key_id in [("a1", 9, "a"), ("n1", 5, None), ("a2", 3, "a"), ("b1", 0, "b"), ("n2", 9, None)]:
        api_queries.add_job(make_plan(name=name), teacher, None, priority=priority, key_id=key_id)
    asked = []

    def accepts(job: JobRecord) -> bool:
        asked.append(job.name)
        return job.key_id == "b"

    claimed = queries.claim_job(accepts)
    assert claimed is not None
    assert (claimed.name, asked) == ("b1", ["a1", "n2", "b1"])
    assert queries.claim_job(accepts) is None


def test_an_attempt_counts_up_and_needs_a_running_job(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """A queued job's run does not start; a running run does not start twice; a lost one does again."""
    job = add_job(api_queries)
    run = queries.runs(job.id)[0]
    assert start_run(queries, run.id) is None
    assert queries.claim_job() is not None
    assert start_run(queries, run.id) == 1
    assert start_run(queries, run.id) is None
    assert queries.move_run(run.id, 1, State.LOST)
    assert not queries.move_run(run.id, 1, State.RUNNING), "that begins an attempt"
    assert start_run(queries, run.id) == 2
    assert start_run(queries, "run_nothing") is None


def test_runs_that_start_together_share_a_process_of_the_firsts_name(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Those that may not start are left out, and the next one takes their place."""
    job = add_job(api_queries, seeds=[0, 1])
    queries.claim_job()
    ids = [run.id for run in queries.runs(job.id)]
    assert start_run(queries, ids[1]) == 1
    started = queries.start_attempts([ids[3], "run_nothing", ids[1], ids[0]])
    assert [(run.id, run.attempt, run.slot) for run in started] == [(ids[3], 1, 0), (ids[0], 1, 1)]
    assert {run.actor for run in started} == {actor_name(ids[3], 1)} == {f"run-{ids[3]}-a1"}
    stored = {run.id: (run.actor, run.slot) for run in queries.runs(job.id)}
    assert stored[ids[0]] == (f"run-{ids[3]}-a1", 1)
    assert stored[ids[1]] == (f"run-{ids[1]}-a1", 0)
    assert stored[ids[2]] == (None, None)


def test_starters_at_once_get_one_attempt(database_url: str, queries: EngineQueries, api_queries: ApiQueries) -> None:
    """A run has one attempt at a time."""
    job = add_job(api_queries)
    queries.claim_job()
    run = queries.runs(job.id)[0]

    def start_it() -> int | None:
        database = Database(database_url)
        try:
            return start_run(EngineQueries(database), run.id)
        finally:
            database.close()

    assert sorted(at_once([start_it] * 4), key=str) == [1, None, None, None]


def test_what_a_stale_attempt_writes_does_not_land(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """Neither events, progress, a result with its artifacts, nor a state."""
    job = add_job(api_queries)
    run, stale = start(queries, job)
    queries.move_run(run.id, stale, State.LOST)
    assert start_run(queries, run.id) == 2
    told = [(1, {"type": "log", "message": "late"})]
    assert queries.record_events(job.id, run.id, stale, told, progress={"epoch": 9}) is None
    assert not queries.record_result(run.id, stale, [FILE], {"late": True})
    assert not queries.move_run(run.id, stale, State.FAILED)
    now = queries.run(run.id)
    assert (now.state, now.epoch, now.result, now.attempt) == (State.RUNNING, 0, None, 2)
    assert api_queries.artifacts(run.id) == []
    assert {event.type for event in api_queries.events(now, 0, 100)[0]} == {"state"}


def test_a_result_and_its_artifacts_land_together_or_not_at_all(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """A run that has succeeded has its files, one that has not has none."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    with pytest.raises(IntegrityError):
        queries.record_result(run.id, attempt, [FILE, FILE], {})
    assert queries.run(run.id).state is State.RUNNING
    with queries.database.read() as session:
        assert session.scalars(select(ArtifactRecord)).all() == []
    assert queries.record_result(run.id, attempt, [FILE], {"last": 1})
    assert not queries.record_result(run.id, attempt, [{**FILE, "name": "g"}], {"last": 2}), "it has ended"
    ended = queries.run(run.id)
    assert (ended.state, ended.result) == (State.SUCCEEDED, {"last": 1})
    assert [file.name for file in api_queries.artifacts(run.id)] == ["f"]


@pytest.mark.parametrize("action", [JobControl.pause_run, JobControl.cancel_run])
def test_a_run_that_ends_while_it_is_told_to_stop_has_succeeded(
    queries: EngineQueries,
    api_queries: ApiQueries,
    job_control: JobControl,
    action: Callable[[JobControl, str], RunRecord],
) -> None:
    """Its work is done; there is nothing left to stop."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    action(job_control, run.id)
    assert queries.record_result(run.id, attempt, [FILE], {})
    assert queries.run(run.id).state is State.SUCCEEDED


def test_what_an_adopted_jobs_former_attempt_writes_does_not_land(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """The new engine's attempt fences the old one off."""
    job = add_job(api_queries)
    first = queries.claim_job()
    second = queries.adopt_job(job.id)
    assert first is not None
    assert second is not None
    assert second.attempt == first.attempt + 1
    told = [(1, {"type": "log", "message": "late"})]
    assert queries.record_events(job.id, None, first.attempt, told, progress={"stage": "training"}) is None
    assert not queries.update_job(job.id, attempt=first.attempt, stage="training")
    assert not queries.move_job(job.id, State.FAILED, attempt=first.attempt)
    assert not queries.settle_job(job.id, first.attempt)
    assert queries.record_events(job.id, None, second.attempt, told, progress={"stage": "inference"}) == 1
    assert queries.job(job.id).stage == "inference"


def test_an_engine_that_has_lost_the_lease_writes_nothing(database: Database, api_queries: ApiQueries) -> None:
    """Whatever it writes, and even if its attempt is still the newest: its successor may not have come so far."""
    job = add_job(api_queries)
    old, new = EngineQueries(database, "old"), EngineQueries(database, "new")
    with pytest.raises(LeaseLost, match="old writes, but no engine has the lease"):
        old.claim_job()
    assert old.acquire_lease()
    run, attempt = start(old, job)
    assert old.job(job.id).holder == "old"
    assert new.acquire_lease(ttl_s=0)
    writes: list[Callable[[], object]] = [
        lambda: old.adopt_job(job.id),
        lambda: old.move_job(job.id, State.FAILED),
        lambda: old.settle_job(job.id, 1),
        lambda: old.update_job(job.id, stage="training"),
        lambda: old.start_attempts([old.runs(job.id)[1].id]),
        lambda: old.move_run(run.id, attempt, State.FAILED),
        lambda: old.record_result(run.id, attempt, [FILE], {}),
        lambda: old.record_events(job.id, run.id, attempt, [(0, {"type": "log"})]),
    ]
    before = old.states(job.id), len(api_queries.events(job, 0, 100)[0])
    for write in writes:
        with pytest.raises(LeaseLost, match="old writes, but new has the lease"):
            write()
    add_job(api_queries)
    with pytest.raises(LeaseLost):
        old.claim_job()
    assert (old.states(job.id), len(api_queries.events(job, 0, 100)[0])) == before
    adopted = new.adopt_job(job.id)
    assert adopted is not None
    assert (adopted.holder, adopted.attempt) == ("new", 2)


def test_a_job_whose_engine_died_is_unfinished_and_adopted_as_it_is(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Engines only end jobs: none is lost or put back into the queue."""
    job = add_job(api_queries)
    queries.claim_job()
    for wanted in LIVE:
        assert not queries.move_job(job.id, wanted)
    assert [found.id for found in queries.unfinished_jobs()] == [job.id]
    adopted = queries.adopt_job(job.id)
    assert adopted is not None
    assert (adopted.state, adopted.attempt) == (State.RUNNING, 2)
    assert queries.adopt_job(add_job(api_queries).id) is None


def test_the_caches_in_use_are_those_of_jobs_that_have_not_ended(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """Paused ones among them; a job that has told of none has none."""
    jobs = [add_job(api_queries) for _ in range(4)]
    for number, job in enumerate(jobs[:3]):
        queries.claim_job()
        queries.update_job(job.id, caches={"train": f"key {number}"})
    job_control.pause_job(jobs[0].id)
    assert queries.settle_job(jobs[0].id, 1)
    assert queries.move_job(jobs[2].id, State.FAILED)
    used = {jobs[0].id: ["key 0"], jobs[1].id: ["key 1"]}
    assert queries.caches_in_use() == used
    assert queries.caches_in_use([jobs[1].id, jobs[2].id, jobs[3].id]) == {jobs[1].id: ["key 1"]}


def test_a_pausing_job_is_adopted_as_it_is_and_a_paused_one_is_nobodys(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """Its engine died in the middle of pausing: the next one has to finish that."""
    job = add_job(api_queries)
    start(queries, job)
    job_control.pause_job(job.id)
    adopted = queries.adopt_job(job.id)
    assert adopted is not None
    assert (adopted.state, adopted.attempt) == (State.PAUSING, 2)
    assert queries.move_run(queries.runs(job.id)[0].id, 1, State.PAUSED)
    assert queries.settle_job(job.id, 2)
    assert queries.unfinished_jobs() == []
    assert queries.adopt_job(job.id) is None


def test_the_states_of_a_job_and_its_runs_are_read_together(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """In the order of the plan; of a job that is gone there are none."""
    job = add_job(api_queries)
    run, _ = start(queries, job)
    other = queries.runs(job.id)[1].id
    assert queries.states(job.id) == (State.RUNNING, {run.id: State.RUNNING, other: State.QUEUED})
    assert queries.states("job_nothing") == (None, {})


def test_a_job_that_ends_takes_its_runs_along(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """Of a job that has ended no run waits or works, and a job with such runs has not succeeded."""
    job = add_job(api_queries)
    start(queries, job)
    assert not queries.move_job(job.id, State.SUCCEEDED)
    assert queries.move_job(job.id, State.FAILED, error={"type": "E", "message": "no room"})
    for run in queries.runs(job.id):
        assert run.state is State.CANCELLED
        assert run.error is not None
        assert (run.error["type"], run.error["message"][-7:]) == ("JobFailed", "no room")
    last = api_queries.events(job, 0, 100)[0][-1]
    assert (last.run_id, last.data["state"]) == ("", "failed"), "its own end is told last"


def test_events_sent_twice_are_stored_once(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """By their number within the attempt."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    told = [(n, {"type": "log", "message": str(n)}) for n in range(4)]
    assert queries.record_events(job.id, run.id, attempt, told[:3]) == 3
    assert queries.record_events(job.id, run.id, attempt, told[1:]) == 1
    assert queries.record_events(job.id, run.id, attempt, told) == 0
    stored = [event.n for event in api_queries.events(run, 0, 100)[0] if event.n is not None]
    assert stored == [0, 1, 2, 3]


def test_a_worker_that_is_found_again_goes_on_after_the_last_event(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Of its own attempt; a job's own events are counted apart from its runs'."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    assert queries.next_event(job.id, run.id, attempt) == 0
    queries.record_events(job.id, run.id, attempt, [(n, {"type": "log"}) for n in range(5)])
    assert queries.next_event(job.id, run.id, attempt) == 5
    assert queries.next_event(job.id, run.id, attempt + 1) == 0
    assert queries.next_event(job.id, None, 1) == 0


def test_nothing_is_told_of_a_run_that_has_ended(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """So a reader who has seen the end has seen all."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    assert queries.move_run(run.id, attempt, State.FAILED, error={"type": "E", "message": "no"})
    assert queries.record_events(job.id, run.id, attempt, [(1, {"type": "log"})]) is None
    ended = queries.run(run.id)
    assert ended.error == {"type": "E", "message": "no"}
    assert ended.finished_at is not None


def test_not_a_number_is_stored_as_null(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """JSON has no word for it, and PostgreSQL refuses the one that Python uses."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    metrics = {"loss": float("nan"), "lr": float("inf"), "top1": 0.5}
    told = [(1, {"type": "epoch", "epoch": 1, "metrics": metrics})]
    assert queries.record_events(job.id, run.id, attempt, told, progress={"metrics": metrics}) == 1
    assert queries.run(run.id).metrics == {"loss": None, "lr": None, "top1": 0.5}
    assert api_queries.metrics(run.id) == [{"loss": None, "lr": None, "top1": 0.5}]


def test_events_errors_and_results_with_text_that_cannot_be_sent_are_stored_written_out(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """The name of a file that is not UTF-8; NUL, which PostgreSQL refuses."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    told = [(1, {"type": "log", "message": "zz\udcfc.png"}), (2, {"type": "log", "message": "a\x00b 🙂"})]
    assert queries.record_events(job.id, run.id, attempt, told, progress={"metrics": {"\udcfc": 1.0}}) == 2
    assert queries.move_run(run.id, attempt, State.FAILED, error={"type": "E", "message": "zz\udcfc.png\x00"})
    stored = [event.data.get("message") for event in api_queries.events(queries.run(run.id), 0, 10)[0]]
    assert stored[1:3] == ["zz\\xfc.png", "a\\x00b 🙂"]
    ended = queries.run(run.id)
    assert ended.error == {"type": "E", "message": "zz\\xfc.png\\x00"}
    assert ended.metrics == {"\\xfc": 1.0}


def test_rows_of_an_earlier_version_with_text_that_cannot_be_sent_are_read_written_out(
    database: Database, queries: EngineQueries, api_queries: ApiQueries
) -> None:
    job = add_job(api_queries)
    with database.write() as session:
        session.execute(
            text("UPDATE jobs SET error = :error"), {"error": json.dumps({"message": "zz\udcfc.png\x00 🙂"})}
        )
    assert queries.job(job.id).error == {"message": "zz\\xfc.png\\x00 🙂"}


def test_a_field_that_is_not_progress_is_refused(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """A state is moved, never assigned."""
    job = add_job(api_queries)
    queries.claim_job()
    with pytest.raises(TypeError, match="state cannot be set here"):
        queries.update_job(job.id, state=State.SUCCEEDED)


# ------------------------------------------------------------------------------------------- what clients ask for


def states(queries: EngineQueries, job_id: str) -> list[str]:
    """Of the job, then of its runs."""
    state, runs = queries.states(job_id)
    assert state is not None
    return [state, *runs.values()]


def test_cancelling_ends_what_waits_and_tells_what_runs(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """And cancelling again changes nothing."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    for _ in range(2):
        assert job_control.cancel_job(job.id).state is State.CANCELLING
        assert states(queries, job.id) == ["cancelling", "cancelling", "cancelled"]
    assert start_run(queries, queries.runs(job.id)[1].id) is None
    assert queries.move_run(run.id, attempt, State.CANCELLED)
    assert queries.move_job(job.id, State.CANCELLED)
    assert job_control.cancel_job(job.id).state is State.CANCELLED


def test_pausing_sets_aside_what_waits_and_tells_what_runs_and_resuming_queues_it_again(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """The engine settles it when its work is put down; asking twice changes nothing."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    for _ in range(2):
        assert job_control.pause_job(job.id).state is State.PAUSING
        assert states(queries, job.id) == ["pausing", "pausing", "paused"]
    assert not queries.settle_job(job.id, 1), "its run still works"
    assert queries.record_events(job.id, run.id, attempt, [(0, {"type": "log"})]) == 1, "it may still speak"
    assert queries.move_run(run.id, attempt, State.PAUSED)
    assert queries.settle_job(job.id, 1)
    assert job_control.pause_job(job.id).state is State.PAUSED
    assert queries.claim_job() is None
    for _ in range(2):
        assert job_control.resume_job(job.id).state is State.QUEUED
        assert states(queries, job.id) == ["queued", "queued", "queued"]
    claimed = queries.claim_job()
    assert claimed is not None
    assert (claimed.id, claimed.attempt) == (job.id, 2)
    assert start_run(queries, run.id) == 2


def test_what_vanishes_while_it_is_pausing_is_paused(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """It goes on from its last checkpoint when it is resumed; until then nobody starts it again."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    job_control.pause_job(job.id)
    assert queries.move_run(run.id, attempt, State.LOST)
    assert start_run(queries, run.id) is None
    assert queries.settle_job(job.id, 1)
    assert states(queries, job.id) == ["paused", "paused", "paused"]


def test_a_job_resumed_in_mid_pause_runs_on(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """A worker that has put its run down nonetheless makes it wait for its next attempt."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    job_control.pause_job(job.id)
    assert job_control.resume_job(job.id).state is State.RUNNING
    assert states(queries, job.id) == ["running", "running", "queued"]
    assert not queries.settle_job(job.id, 1)
    assert queries.move_run(run.id, attempt, State.QUEUED)
    assert start_run(queries, run.id) == 2


def test_what_nobody_works_on_is_paused_and_cancelled_at_once(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """No engine needs to be there."""
    job = add_job(api_queries)
    job_control.pause_job(job.id)
    assert states(queries, job.id) == ["paused", "paused", "paused"]
    job_control.resume_job(job.id)
    assert states(queries, job.id) == ["queued", "queued", "queued"]
    job_control.pause_job(job.id)
    job_control.cancel_job(job.id)
    assert states(queries, job.id) == ["cancelled", "cancelled", "cancelled"]
    assert queries.claim_job() is None


def test_a_lost_run_is_cancelled_at_once(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """Nobody works on it, though somebody does on its job."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    assert queries.move_run(run.id, attempt, State.LOST)
    assert job_control.cancel_run(run.id).state is State.CANCELLED
    assert states(queries, job.id) == ["running", "cancelled", "queued"]


def test_one_run_is_paused_resumed_and_cancelled_while_the_other_goes_on(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """Its job runs on."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    other = queries.runs(job.id)[1].id
    assert job_control.pause_run(run.id).state is State.PAUSING
    assert job_control.pause_run(other).state is State.PAUSED
    assert job_control.resume_run(other).state is State.QUEUED
    assert job_control.resume_run(run.id).state is State.RUNNING
    assert job_control.cancel_run(run.id).state is State.CANCELLING
    with pytest.raises(Conflict, match=f"{run.id} cannot be paused: it is being cancelled"):
        job_control.pause_run(run.id)
    assert queries.move_run(run.id, attempt, State.CANCELLED)
    assert job_control.cancel_run(run.id).state is State.CANCELLED
    assert states(queries, job.id) == ["running", "cancelled", "queued"]


def test_resuming_one_run_of_a_paused_job_queues_the_job_and_leaves_the_others(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """So that an engine takes it; the rest of it stays paused until somebody resumes the job."""
    job = add_job(api_queries)
    first, second = (run.id for run in queries.runs(job.id))
    job_control.pause_job(job.id)
    job_control.resume_run(second)
    assert states(queries, job.id) == ["queued", "paused", "queued"]
    queries.claim_job()
    assert start_run(queries, first) is None
    assert start_run(queries, second) == 1
    assert queries.record_result(second, 1, [], {})
    assert queries.settle_job(job.id, 1), "nothing is left but what is paused"
    assert states(queries, job.id) == ["paused", "paused", "succeeded"]
    assert job_control.resume_job(job.id).state is State.QUEUED


def test_a_job_that_nobody_works_on_follows_the_last_of_its_runs(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """An engine would build its caches, and then find nothing to train."""
    job = add_job(api_queries)
    first, second = (run.id for run in queries.runs(job.id))
    job_control.pause_run(first)
    assert states(queries, job.id) == ["queued", "paused", "queued"]
    job_control.pause_run(second)
    assert states(queries, job.id) == ["paused", "paused", "paused"]
    job_control.cancel_run(first)
    assert states(queries, job.id) == ["paused", "cancelled", "paused"]
    job_control.cancel_run(second)
    assert states(queries, job.id) == ["cancelled", "cancelled", "cancelled"]
    assert queries.job(job.id).finished_at is not None


@pytest.mark.parametrize("is_resumed", [False, True], ids=["paused", "queued"])
def test_cancel_run_of_a_job_that_nobody_works_on_leaves_it_succeeded_if_no_fewer_runs_have(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl, is_resumed: bool
) -> None:
    """The table has no way from paused to succeeded but through work; the events are those of the way."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    other = queries.runs(job.id)[1].id
    job_control.pause_run(other)
    assert queries.record_result(run.id, attempt, [], {})
    assert queries.settle_job(job.id, 1)
    if is_resumed:
        job_control.resume_run(other)
    job_control.cancel_run(other)
    assert states(queries, job.id) == ["succeeded", "succeeded", "cancelled"]
    assert queries.job(job.id).finished_at is not None
    events, _ = api_queries.events(api_queries.job(job.id)[0], 0, 100)
    told = [event.data["state"] for event in events if event.run_id == "" and event.type == "state"]
    assert told[-3:] == ["queued", "running", "succeeded"]


def test_a_job_of_which_a_run_failed_ends_failed_with_its_last_cancelled_run(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """As an engine would end it."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    job_control.pause_run(queries.runs(job.id)[1].id)
    assert queries.move_run(run.id, attempt, State.FAILED, error={"type": "E", "message": "nan"})
    assert queries.settle_job(job.id, 1)
    job_control.cancel_run(queries.runs(job.id)[1].id)
    ended = queries.job(job.id)
    assert ended.state is State.FAILED
    assert ended.error == {
        "type": "RunsFailed",
        "message": "1 of 2 runs failed; the first, 'cnn_s ce seed 0': nan",
    }


def test_what_has_ended_stays_as_it_is_and_says_what_can_be_done(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """Cancelling it is no mistake, pausing and resuming it are."""
    job = add_job(api_queries)
    finish(queries, job.id)
    run_id = queries.runs(job.id)[0].id
    assert job_control.cancel_job(job.id).state is State.SUCCEEDED
    assert job_control.cancel_run(run_id).state is State.SUCCEEDED
    with pytest.raises(Conflict, match="cannot be paused: it has succeeded"):
        job_control.pause_job(job.id)
    with pytest.raises(Conflict, match="cannot be resumed: it has succeeded"):
        job_control.resume_run(run_id)
    cancelled = job_control.cancel_job(add_job(api_queries).id)
    with pytest.raises(Conflict, match="cannot be resumed: it was cancelled, but it can be retried"):
        job_control.resume_job(cancelled.id)


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_a_request_about_nothing_is_not_found(job_control: JobControl, action: str) -> None:
    """Whatever the id looks like."""
    for id in ("job_x", "run_" + "0" * 26, "\0"):
        with pytest.raises(NotFound):
            getattr(job_control, f"{action}_job")(id)
        with pytest.raises(NotFound):
            getattr(job_control, f"{action}_run")(id)


# ------------------------------------------------------------------------------------------------------------ retry


def retry(api_queries: ApiQueries, job_id: str) -> tuple[JobRecord, bool]:
    """As a client without a key, with room on the disk."""
    return api_queries.retry_job(job_id, lambda: None)


def test_a_retry_is_a_new_job_of_the_runs_that_failed_or_were_cancelled(
    queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl
) -> None:
    """With the same plan, and the places in it that the runs had; asked again, it is the same job."""
    job = add_job(api_queries, seeds=[0, 1])
    ids = [run.id for run in queries.runs(job.id)]
    queries.claim_job()
    with pytest.raises(Conflict, match=f"can be retried, and there is {ids[0]} queued"):
        retry(api_queries, job.id)
    queries.start_attempts(ids)
    assert queries.record_result(ids[0], 1, [], {})
    assert queries.move_run(ids[1], 1, State.FAILED, error={"type": "E", "message": "nan"})
    job_control.cancel_job(job.id)
    assert queries.move_job(job.id, State.CANCELLED)

    again, is_new = retry(api_queries, job.id)
    assert is_new
    assert (again.state, again.retry_of, again.plan, again.teacher) == (State.QUEUED, job.id, job.plan, job.teacher)
    made = queries.runs(again.id)
    assert [(run.retry_of, run.index, run.state, run.attempt) for run in made] == [
        (ids[1], 1, State.QUEUED, 0),
        (ids[2], 2, State.QUEUED, 0),
        (ids[3], 3, State.QUEUED, 0),
    ]
    assert [run.name for run in made] == [run.name for run in queries.runs(job.id)[1:]]
    assert states(queries, job.id)[0] == "cancelled", "no final state is left"
    repeated, is_new = retry(api_queries, job.id)
    assert (repeated.id, is_new) == (again.id, False)
    assert api_queries.retry_run(ids[2], lambda: None)[0].id == again.id
    claimed = queries.claim_job()
    assert claimed is not None
    assert claimed.id == again.id


def test_each_run_is_retried_once(queries: EngineQueries, api_queries: ApiQueries, job_control: JobControl) -> None:
    """A job's retry takes what its runs' retries have left; a retry can itself be retried."""
    job = add_job(api_queries)
    first, second = (run.id for run in queries.runs(job.id))
    job_control.cancel_job(job.id)
    alone, is_new = api_queries.retry_run(second, lambda: None)
    assert is_new
    assert [run.retry_of for run in queries.runs(alone.id)] == [second]
    rest, is_new = retry(api_queries, job.id)
    assert is_new
    assert [run.retry_of for run in queries.runs(rest.id)] == [first]
    assert retry(api_queries, job.id)[0].id == rest.id
    same, is_new = api_queries.retry_run(second, lambda: None)
    assert (same.id, is_new) == (alone.id, False)
    job_control.cancel_job(alone.id)
    third, is_new = retry(api_queries, alone.id)
    assert is_new
    assert (third.retry_of, [run.index for run in queries.runs(third.id)]) == (alone.id, [1])


def test_retries_at_once_make_one_job(database_url: str, api_queries: ApiQueries, job_control: JobControl) -> None:
    """Each run of it is there once."""
    job_id = job_control.cancel_job(add_job(api_queries).id).id

    def ask() -> tuple[str, bool]:
        database = Database(database_url)
        try:
            job, is_new = retry(ApiQueries(database), job_id)
            return job.id, is_new
        finally:
            database.close()

    answers = at_once([ask] * 4)
    assert len({id for id, _ in answers}) == 1
    assert sorted(is_new for _, is_new in answers) == [False, False, False, True]


def test_a_retry_needs_its_teacher_and_what_the_caller_checks(
    api_queries: ApiQueries, job_control: JobControl, tmp_path: Path
) -> None:
    """Nothing is made otherwise; what was made before is still found."""
    job = job_control.cancel_job(add_job(api_queries).id)
    other = job_control.cancel_job(add_job(api_queries).id)
    made = retry(api_queries, other.id)[0]
    job_control.cancel_job(made.id)

    def refuse() -> None:
        raise Conflict("no room")

    with pytest.raises(Conflict, match="no room"):
        api_queries.retry_job(job.id, refuse)
    assert api_queries.retry_job(other.id, refuse)[0].id == made.id
    Deleter(api_queries.database, make_settings(tmp_path)).delete_teacher(job.teacher_id)
    with pytest.raises(Conflict, match=f"the teacher {job.teacher_id} of {job.id} was deleted"):
        retry(api_queries, job.id)
    assert len(api_queries.jobs(None, None, 100)[0]) == 3


def test_the_metrics_of_a_retry_go_on_where_the_run_ended(queries: EngineQueries, api_queries: ApiQueries) -> None:
    """It begins at a checkpoint; the epochs before that are those of the run that it tries again."""

    def tell(job_id: str, run_id: str, epochs: Sequence[int], top1: float) -> None:
        told = [(n, {"type": "epoch", "epoch": n, "metrics": {"epoch": n, "top1": top1}}) for n in epochs]
        assert queries.record_events(job_id, run_id, 1, told) == len(epochs)

    job = add_job(api_queries)
    run, attempt = start(queries, job)
    tell(job.id, run.id, [1, 2, 3], 0.1)
    assert queries.move_run(run.id, attempt, State.FAILED)
    again = api_queries.retry_run(run.id, lambda: None)[0]
    (retried,) = queries.runs(again.id)
    assert api_queries.metrics(retried.id) == []
    queries.claim_job()
    assert start_run(queries, retried.id) == 1
    tell(again.id, retried.id, [3, 4], 0.2)
    assert [line["top1"] for line in api_queries.metrics(retried.id)] == [0.1, 0.1, 0.2, 0.2]
    assert [line["top1"] for line in api_queries.metrics(run.id)] == [0.1, 0.1, 0.1]


# ------------------------------------------------------------------------------------------------------------ lease


def test_the_lease_has_one_holder_until_it_runs_out(database: Database) -> None:
    """A heartbeat renews it; silence loses it; giving it back frees it at once."""
    a, b = EngineQueries(database, "a"), EngineQueries(database, "b")
    assert a.lease().age_s is None
    assert a.acquire_lease(ttl_s=60)
    assert not b.acquire_lease(ttl_s=60)
    assert a.acquire_lease(ttl_s=60)
    age_s = b.lease().age_s
    assert age_s is not None
    assert 0 <= age_s < 30
    assert b.acquire_lease(ttl_s=0)
    assert not a.release_lease()
    assert b.release_lease()
    assert b.lease().age_s is None
    assert a.acquire_lease(ttl_s=60)
    assert b.acquire_lease(ttl_s=60, gone="a")
    assert a.lease().holder == "b"


def test_a_lease_that_was_lost_is_not_renewed_although_nobody_has_it_now(database: Database) -> None:
    """Another engine has led meanwhile, and what this one knows of the jobs is of before."""
    first, second = EngineQueries(database, "first"), EngineQueries(database, "second")
    assert first.acquire_lease()
    assert first.acquire_lease(renews=True)
    assert second.acquire_lease(ttl_s=0.0)
    second.release_lease()
    assert not first.acquire_lease(renews=True)
    assert first.lease().holder is None
    assert first.acquire_lease()


def test_a_lease_whose_heartbeat_is_from_the_future_is_taken_once_it_was_the_same_for_its_time_to_live(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder's clock was ahead, or this one was set back; a holder that is alive beats again meanwhile."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr("service.db.lease.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    a, b = EngineQueries(database, "a"), EngineQueries(database, "b")

    def beats(ahead_s: float) -> None:
        with database.write() as session:
            beat = database.now(session) + timedelta(seconds=ahead_s)
            session.execute(update(EngineRecord).values(holder="a", heartbeat_at=beat))

    def takes_over(at_s: float) -> bool:
        clock.now_s = at_s
        return b.acquire_lease(ttl_s=30)

    beats(7200)
    silence = b.lease().silence(30)
    assert silence is not None
    assert f"s ahead of {database.clock}" in silence
    assert [takes_over(100), takes_over(129)] == [False, False]
    # Alive after all: it goes on with the clock as it is now.
    beats(7190)
    assert not takes_over(131)
    assert a.acquire_lease(ttl_s=30)
    assert a.lease().silence(30) is None
    assert not takes_over(160)
    beats(7100)
    assert [takes_over(170), takes_over(199), takes_over(201)] == [False, False, True]
    assert b.lease().silence(30) is None
    with pytest.raises(LeaseLost, match="a writes, but b has the lease"):
        a.record_gpus({})


def test_engines_at_once_get_one_lease(database_url: str) -> None:
    """One leads."""

    def acquire(holder: str) -> bool:
        database = Database(database_url)
        try:
            return EngineQueries(database, holder).acquire_lease()
        finally:
            database.close()

    calls = [lambda holder=holder: acquire(holder) for holder in "abcd"]
    assert sorted(at_once(calls)) == [False, False, False, True]


def test_a_writer_waits_for_the_one_before_so_numbers_rise_in_the_order_of_commits(
    database_url: str, queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Otherwise a reader that has seen an event could miss one before it."""
    job = add_job(api_queries)
    run, attempt = start(queries, job)
    done = threading.Event()

    def write() -> None:
        with closing(Database(database_url)) as other:
            EngineQueries(other).record_events(job.id, run.id, attempt, [(1, {"type": "log"})])
        done.set()

    with queries.database.write() as session:
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.3)
        session.get_one(JobRecord, job.id).stage = "training"
    thread.join()
    assert done.is_set()


def test_a_time_without_a_zone_is_refused() -> None:
    """It would be read back as another time."""
    with pytest.raises(ValueError, match="has no time zone"):
        UtcDateTime().process_bind_param(utc_now().replace(tzinfo=None), None)  # type: ignore[arg-type]  # no dialect is asked
