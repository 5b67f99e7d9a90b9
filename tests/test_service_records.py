"""Claims, attempts, fencing, events and the lease, on SQLite and on a real PostgreSQL."""

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.db import Database, upgrade_to_head
from service.errors import NotFound
from service.jobs import TERMINAL, State
from service.records import Records
from service.registry import Registry
from service.tables import JobRecord, RunRecord, UtcDateTime, utc_now
from tests.service_helpers import add_job, finish

pytest_plugins = ["tests.service_fixtures"]
Result = TypeVar("Result")


def at_once(calls: list[Callable[[], Result]]) -> list[Result]:
    """Runs the calls in threads that start together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def start(records: Records, job: JobRecord) -> tuple[RunRecord, int]:
    """Claims the job and starts its first run."""
    assert records.claim_job("engine") is not None
    run = records.runs(job.id)[0]
    attempt = records.start_attempt(run.id)
    assert attempt == 1
    return run, attempt


def test_the_oldest_job_is_claimed_first_and_only_once(records: Records, registry: Registry) -> None:
    """In the order of posting, then none."""
    posted = [add_job(registry).id for _ in range(3)]
    claimed = [records.claim_job("engine") for _ in range(4)]
    assert [job and job.id for job in claimed] == [*posted, None]
    first = claimed[0]
    assert first is not None
    assert (first.state, first.attempt, first.holder) == (State.RUNNING, 1, "engine")
    assert first.started_at is not None


def test_claimers_at_once_never_get_the_same_job(database_url: str, registry: Registry) -> None:
    """Each has a connection of its own; all jobs are claimed, each once."""
    posted = {add_job(registry).id for _ in range(6)}

    def claim_all() -> list[str]:
        database = Database(database_url)
        try:
            claimed = []
            while (job := Records(database).claim_job("engine")) is not None:
                claimed.append(job.id)
            return claimed
        finally:
            database.close()

    claimed = [id for ids in at_once([claim_all] * 4) for id in ids]
    assert sorted(claimed) == sorted(posted)


CLAIM = """
import sys
from service.db import Database
from service.records import Records
records = Records(Database(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
job = records.claim_job("engine")
print(job and job.id)
"""


def test_one_job_and_three_processes(tmp_path: Path) -> None:
    """One of them gets it."""
    url = f"sqlite:///{tmp_path / 'db'}"
    upgrade_to_head(url)
    database = Database(url)
    job = add_job(Registry(database))
    database.close()
    command = [sys.executable, "-c", CLAIM, url]
    root = Path(__file__).parents[1]
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


def test_an_attempt_counts_up_and_needs_a_running_job(records: Records, registry: Registry) -> None:
    """A queued job's run does not start; a running run does not start twice; a lost one does again."""
    job = add_job(registry)
    run = records.runs(job.id)[0]
    assert records.start_attempt(run.id) is None
    assert records.claim_job("engine") is not None
    assert records.start_attempt(run.id) == 1
    assert records.start_attempt(run.id) is None
    assert records.move_run(run.id, 1, State.LOST)
    assert records.start_attempt(run.id) == 2
    assert records.start_attempt("run_nothing") is None


def test_starters_at_once_get_one_attempt(database_url: str, records: Records, registry: Registry) -> None:
    """A run has one attempt at a time."""
    job = add_job(registry)
    records.claim_job("engine")
    run = records.runs(job.id)[0]

    def start_it() -> int | None:
        database = Database(database_url)
        try:
            return Records(database).start_attempt(run.id)
        finally:
            database.close()

    assert sorted(at_once([start_it] * 4), key=str) == [1, None, None, None]


def test_what_a_stale_attempt_writes_does_not_land(records: Records, registry: Registry) -> None:
    """Neither events, progress, artifacts, nor a state."""
    job = add_job(registry)
    run, stale = start(records, job)
    records.move_run(run.id, stale, State.LOST)
    assert records.start_attempt(run.id) == 2
    file = {"name": "f", "path": "p", "size_bytes": 1, "sha256": "0" * 64, "media_type": "text/plain"}
    told = [(1, {"type": "log", "message": "late"})]
    assert records.record_events(job.id, run.id, stale, told, progress={"epoch": 9}) == 0
    assert not records.record_artifacts(run.id, stale, [file])
    assert not records.move_run(run.id, stale, State.SUCCEEDED, result={"late": True})
    now = records.run(run.id)
    assert (now.state, now.epoch, now.result, now.attempt) == (State.RUNNING, 0, None, 2)
    assert registry.artifacts(run.id) == []
    assert {event.type for event in registry.events(now, 0, 100)[0]} == {"state"}


def test_what_an_adopted_jobs_former_engine_writes_does_not_land(records: Records, registry: Registry) -> None:
    """The new engine's attempt fences the old one off."""
    job = add_job(registry)
    first = records.claim_job("old")
    second = records.adopt_job(job.id, "new")
    assert first is not None
    assert second is not None
    assert (second.attempt, second.holder) == (first.attempt + 1, "new")
    told = [(1, {"type": "log", "message": "late"})]
    assert records.record_events(job.id, None, first.attempt, told, progress={"stage": "training"}) == 0
    assert not records.update_job(job.id, attempt=first.attempt, stage="training")
    assert not records.move_job(job.id, State.FAILED, attempt=first.attempt)
    assert records.record_events(job.id, None, second.attempt, told, progress={"stage": "inference"}) == 1
    assert records.job(job.id).stage == "inference"


def test_a_lost_job_is_unfinished_and_runs_again_when_adopted(records: Records, registry: Registry) -> None:
    """Vanished is not ended."""
    job = add_job(registry)
    records.claim_job("engine")
    assert records.move_job(job.id, State.LOST)
    assert [found.id for found in records.unfinished_jobs()] == [job.id]
    adopted = records.adopt_job(job.id, "engine")
    assert adopted is not None
    assert adopted.state is State.RUNNING
    assert records.adopt_job(add_job(registry).id, "engine") is None


def test_events_sent_twice_are_stored_once(records: Records, registry: Registry) -> None:
    """By their number within the attempt."""
    job = add_job(registry)
    run, attempt = start(records, job)
    told = [(n, {"type": "log", "message": str(n)}) for n in range(4)]
    assert records.record_events(job.id, run.id, attempt, told[:3]) == 3
    assert records.record_events(job.id, run.id, attempt, told[1:]) == 1
    assert records.record_events(job.id, run.id, attempt, told) == 0
    stored = [event.n for event in registry.events(run, 0, 100)[0] if event.n is not None]
    assert stored == [0, 1, 2, 3]


def test_nothing_is_told_of_a_run_that_has_ended(records: Records, registry: Registry) -> None:
    """So a reader who has seen the end has seen all."""
    job = add_job(registry)
    run, attempt = start(records, job)
    assert records.move_run(run.id, attempt, State.FAILED, error={"type": "E", "message": "no"})
    assert records.record_events(job.id, run.id, attempt, [(1, {"type": "log"})]) == 0
    ended = records.run(run.id)
    assert ended.error == {"type": "E", "message": "no"}
    assert ended.finished_at is not None


def test_not_a_number_is_stored_as_null(records: Records, registry: Registry) -> None:
    """JSON has no word for it, and PostgreSQL refuses the one that Python uses."""
    job = add_job(registry)
    run, attempt = start(records, job)
    metrics = {"loss": float("nan"), "lr": float("inf"), "top1": 0.5}
    told = [(1, {"type": "epoch", "epoch": 1, "metrics": metrics})]
    assert records.record_events(job.id, run.id, attempt, told, progress={"metrics": metrics}) == 1
    assert records.run(run.id).metrics == {"loss": None, "lr": None, "top1": 0.5}
    assert registry.metrics(run.id) == [{"loss": None, "lr": None, "top1": 0.5}]


def test_a_field_that_is_not_progress_is_refused(records: Records, registry: Registry) -> None:
    """A state is moved, never assigned."""
    job = add_job(registry)
    records.claim_job("engine")
    with pytest.raises(TypeError, match="state cannot be set here"):
        records.update_job(job.id, state=State.SUCCEEDED)


def test_cancelling_ends_what_waits_and_tells_what_runs(records: Records, registry: Registry) -> None:
    """And cancelling again changes nothing."""
    job = add_job(registry)
    run, attempt = start(records, job)
    assert not records.is_cancelling(job.id)
    for _ in range(2):
        assert records.request_cancel(job.id).state is State.CANCELLING
        assert records.is_cancelling(job.id)
        assert [other.state for other in records.runs(job.id)] == [State.CANCELLING, State.CANCELLED]
    assert records.start_attempt(records.runs(job.id)[1].id) is None
    assert records.move_run(run.id, attempt, State.CANCELLED)
    assert records.move_job(job.id, State.CANCELLED)
    assert records.request_cancel(job.id).state is State.CANCELLED


def test_cancelling_a_queued_job_ends_it_at_once(records: Records, registry: Registry) -> None:
    """No engine needs to be there."""
    job = add_job(registry)
    assert records.request_cancel(job.id).state is State.CANCELLED
    assert {run.state for run in records.runs(job.id)} == {State.CANCELLED}
    assert records.claim_job("engine") is None


def test_cancelling_a_lost_job_leaves_no_run_that_waits_for_an_engine(records: Records, registry: Registry) -> None:
    """Nobody would ever end it."""
    job = add_job(registry)
    start(records, job)
    records.move_job(job.id, State.LOST)
    assert records.request_cancel(job.id).state is State.CANCELLED
    assert {run.state for run in records.runs(job.id)} == {State.CANCELLED}


def test_cancelling_a_finished_job_changes_nothing(records: Records, registry: Registry) -> None:
    """What has ended has ended."""
    job = add_job(registry)
    finish(records, job.id)
    assert records.request_cancel(job.id).state is State.SUCCEEDED
    with pytest.raises(NotFound, match="there is no job 'job_x'"):
        records.request_cancel("job_x")


def test_the_lease_has_one_holder_until_it_runs_out(records: Records) -> None:
    """A heartbeat renews it; silence loses it; giving it back frees it at once."""
    assert records.heartbeat_age_s() is None
    assert records.acquire_lease("a", ttl_s=60)
    assert not records.acquire_lease("b", ttl_s=60)
    assert records.acquire_lease("a", ttl_s=60)
    age_s = records.heartbeat_age_s()
    assert age_s is not None
    assert 0 <= age_s < 30
    assert records.acquire_lease("b", ttl_s=0)
    assert not records.release_lease("a")
    assert records.release_lease("b")
    assert records.heartbeat_age_s() is None
    assert records.acquire_lease("a", ttl_s=60)


def test_engines_at_once_get_one_lease(database_url: str) -> None:
    """One leads."""

    def acquire(holder: str) -> bool:
        database = Database(database_url)
        try:
            return Records(database).acquire_lease(holder)
        finally:
            database.close()

    calls = [lambda holder=holder: acquire(holder) for holder in "abcd"]
    assert sorted(at_once(calls)) == [False, False, False, True]


def test_a_writer_waits_for_the_one_before_so_numbers_rise_in_the_order_of_commits(
    database_url: str, records: Records, registry: Registry
) -> None:
    """Otherwise a reader that has seen an event could miss one before it."""
    job = add_job(registry)
    run, attempt = start(records, job)
    done = threading.Event()

    def write() -> None:
        other = Database(database_url)
        Records(other).record_events(job.id, run.id, attempt, [(1, {"type": "log"})])
        other.close()
        done.set()

    with records.database.write() as session:
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.3)
        session.get_one(JobRecord, job.id).stage = "training"
    assert done.wait(10)
    thread.join()


def test_a_time_without_a_zone_is_refused() -> None:
    """It would be read back as another time."""
    with pytest.raises(ValueError, match="has no time zone"):
        UtcDateTime().process_bind_param(utc_now().replace(tzinfo=None), None)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ any order of calls


class Life(RuleBasedStateMachine):
    """Two engines, a client, and whatever they do in whatever order, on one job of two runs."""

    template: Path

    @initialize()
    def post(self) -> None:
        """A fresh database with one job."""
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "db")
        self.database = Database(f"sqlite:///{self.folder / 'db'}")
        self.records = Records(self.database)
        self.job_id = add_job(Registry(self.database)).id
        self.run_ids = [run.id for run in self.records.runs(self.job_id)]
        self.ended: dict[str, State] = {}
        self.n = 0

    @rule(holder=st.sampled_from("ab"))
    def claim(self, holder: str) -> None:
        """An engine looks for work."""
        self.records.claim_job(holder)

    @rule(holder=st.sampled_from("ab"))
    def adopt(self, holder: str) -> None:
        """An engine has restarted."""
        before = self.records.job(self.job_id).attempt
        adopted = self.records.adopt_job(self.job_id, holder)
        assert adopted is None or adopted.attempt == before + 1

    @rule()
    def cancel(self) -> None:
        """A client has had enough."""
        assert self.records.request_cancel(self.job_id).state is not State.RUNNING

    @rule(which=st.integers(0, 1))
    def start(self, which: int) -> None:
        """An engine starts a run."""
        before = self.records.run(self.run_ids[which])
        attempt = self.records.start_attempt(before.id)
        assert attempt is None or attempt == before.attempt + 1

    @rule(which=st.integers(0, 1), behind=st.integers(0, 2), wanted=st.sampled_from(State))
    def move_run(self, which: int, behind: int, wanted: State) -> None:
        """An engine, perhaps a stale one, moves a run."""
        before = self.records.run(self.run_ids[which])
        landed = self.records.move_run(before.id, before.attempt - behind, wanted)
        assert not (landed and behind), "a stale attempt moved a run"

    @rule(which=st.integers(0, 1), behind=st.integers(0, 2))
    def tell(self, which: int, behind: int) -> None:
        """A worker, perhaps a stale one, tells something."""
        run = self.records.run(self.run_ids[which])
        self.n += 1
        stored = self.records.record_events(self.job_id, run.id, run.attempt - behind, [(self.n, {"type": "log"})])
        assert not (stored and behind), "a stale attempt told something"
        assert not (stored and run.state in TERMINAL), "an ended run told something"

    @rule(wanted=st.sampled_from([State.LOST, *sorted(TERMINAL)]))
    def move_job(self, wanted: State) -> None:
        """An engine moves the job."""
        self.records.move_job(self.job_id, wanted)

    @precondition(lambda self: hasattr(self, "records"))
    @invariant()
    def what_has_ended_stays_ended(self) -> None:
        """No terminal state is ever left."""
        for row in (self.records.job(self.job_id), *self.records.runs(self.job_id)):
            assert self.ended.get(row.id, row.state) is row.state
            if row.state in TERMINAL:
                self.ended[row.id] = row.state
                assert row.finished_at is not None

    def teardown(self) -> None:
        """The folder goes."""
        if hasattr(self, "folder"):
            self.database.close()
            shutil.rmtree(self.folder)


def test_in_whatever_order_they_are_called_no_end_is_undone_and_no_stale_write_lands(tmp_path: Path) -> None:
    """Hypothesis looks for the order that breaks it."""
    upgrade_to_head(f"sqlite:///{tmp_path / 'db'}")
    Life.template = tmp_path / "db"
    quick = settings(max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
    Life.TestCase.settings = quick
    case = Life.TestCase()
    case.runTest()
