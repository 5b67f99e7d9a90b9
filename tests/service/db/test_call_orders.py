"""Any order of calls: engines that take over from each other, workers that come late, clients that want everything.

Hypothesis looks for the order that breaks what must always hold. Two engines share the lease, every attempt that was
ever started may still speak, and its words may come through either engine.
"""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import select

from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.models import ArtifactRecord, EventRecord, JobRecord, Json, RunRecord
from service.db.queries.api_queries import ApiQueries
from service.db.scheduling.job_control import JobControl
from service.db.scheduling.set_aside import reason_of
from service.db.states import JOB_TABLE, TABLE, TERMINAL, WORKING, State
from service.errors import Conflict, LeaseLost
from tests.support.service_helpers import add_job
from workers.config.draft import with_added
from workers.config.job import Plan
from workers.config.run_block import RunBlock

Item = TypeVar("Item")
JOBS_MAX = 3
RUNS_MAX = 5
FILE: Json = {"name": "f", "path": "p", "size_bytes": 1, "sha256": "0" * 64, "media_type": "text/plain"}
OVER = TERMINAL | {State.CANCELLING}
STATES_AFTER = {
    "cancel": OVER,
    "pause": {State.PAUSING, State.PAUSED},
    "resume": {State.QUEUED, State.RUNNING, State.LOST},
}
ANY = st.integers(0, 11)
# What is late, or ends it all, comes seldom: else little of a life would be seen.
SELDOM = st.sampled_from([False, False, False, True])
ACTIONS = st.sampled_from(["pause", "resume"] * 3 + ["cancel"])
JOB_MOVES = st.sampled_from([State.LOST, State.QUEUED, State.PAUSED] * 3 + [State.PAUSING, *sorted(TERMINAL)])
RUN_MOVES = st.sampled_from([State.LOST, State.QUEUED, State.PAUSED] * 2 + [State.RUNNING, State.FAILED])


@dataclass(frozen=True)
class Worker:
    """A process that was given an attempt of a run; it may live on for longer than anybody knows."""

    job_id: str
    run_id: str
    attempt: int


def pick(items: Sequence[Item], number: int) -> Item:
    """One of them; no rule of Hypothesis can be drawn from what the database says."""
    return items[number % len(items)]


class Life(RuleBasedStateMachine):
    """Two engines, their clients, and every worker they ever started, on jobs of two runs.

    Attributes:
        jobs, runs: the rows as they were after the last rule, in the order of posting.
    """

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "db")
        self.database = Database(f"sqlite:///{self.folder / 'db'}")
        self.engines = {holder: EngineQueries(self.database, holder) for holder in "ab"}
        self.queries, self.api_queries = EngineQueries(self.database), ApiQueries(self.database)
        self.job_control = JobControl(self.database)
        self.workers: list[Worker] = []
        self.ended: dict[str, State] = {}
        self.attempts: dict[str, int] = defaultdict(int)
        self.results: dict[str, int] = {}
        self.told: set[tuple[str, str, int, int]] = set()
        self.leader = "a"
        assert self.engines["a"].acquire_lease()
        add_job(self.api_queries)
        self.look()
        self.claim(late=False)
        self.look()
        self.start(late=False, old=False, number=0, both=True)
        self.look()

    def look(self) -> None:
        with self.database.read() as session:
            self.jobs = {job.id: job for job in session.scalars(select(JobRecord).order_by(JobRecord.id))}
            self.runs = {run.id: run for run in session.scalars(select(RunRecord).order_by(RunRecord.id))}

    def runs_of(self, job: JobRecord) -> list[RunRecord]:
        return [run for run in self.runs.values() if run.job_id == job.id]

    def job(self, number: int) -> JobRecord:
        return pick(list(self.jobs.values()), number)

    def run(self, number: int) -> RunRecord:
        return pick(list(self.runs.values()), number)

    def worker(self, number: int, old: bool) -> Worker:
        """One that works on something, unless an ``old`` one is asked for or none does: then any that ever did."""
        working = [Worker(run.job_id, run.id, run.attempt) for run in self.runs.values() if run.state in WORKING]
        return pick(self.workers if old or not working else working, number)

    def may_write(self, worker: Worker) -> bool:
        run = self.runs[worker.run_id]
        return run.attempt == worker.attempt and run.state in WORKING

    def as_engine(self, late: bool, write: Callable[[EngineQueries], object]) -> object:
        """What the leading engine's write gives; the string ``lost`` for the other one, which must be told so."""
        if not late:
            return write(self.engines[self.leader])
        with pytest.raises(LeaseLost):
            write(self.engines["b" if self.leader == "a" else "a"])
        return "lost"

    # -------------------------------------------------------------------------------------------------- engines

    @rule(holder=st.sampled_from("ab"), cleanly=st.booleans())
    def take_over(self, holder: str, cleanly: bool) -> None:
        """The leading one has fallen silent, or gives the lease back; its unfinished jobs are adopted."""
        if cleanly:
            assert self.engines[self.leader].release_lease()
        engine, self.leader = self.engines[holder], holder
        assert engine.acquire_lease(ttl_s=0)
        unfinished = engine.unfinished_jobs()
        assert {job.id for job in unfinished} == {id for id, job in self.jobs.items() if job.state in WORKING}
        for job in unfinished:
            adopted = engine.adopt_job(job.id)
            assert adopted is not None
            assert (adopted.attempt, adopted.holder) == (job.attempt + 1, holder)
            assert adopted.state is job.state

    @rule(late=SELDOM)
    def claim(self, late: bool) -> None:
        """An engine looks for work."""
        waiting = [job for job in self.jobs.values() if job.state is State.QUEUED]
        if late and not waiting:
            return
        job = self.as_engine(late, lambda engine: engine.claim_job())
        if isinstance(job, JobRecord):
            assert job.priority == max(other.priority for other in waiting)
        else:
            assert job == "lost" or not waiting

    @rule(late=SELDOM, old=SELDOM, number=ANY, both=st.booleans())
    def start(self, late: bool, old: bool, number: int, both: bool) -> None:
        """An engine starts a run, or both of a job in one process; also where it must not."""
        at_work = [job for job in self.jobs.values() if job.state is State.RUNNING]
        job = pick(list(self.jobs.values()) if old or not at_work else at_work, number)
        runs = self.runs_of(job) if both else [pick(self.runs_of(job), number)]
        started = self.as_engine(late, lambda engine: engine.start_attempts([run.id for run in runs]))
        if isinstance(started, list):
            ready = [run for run in runs if run.state in {State.QUEUED, State.LOST} and job.state is State.RUNNING]
            assert [(run.id, run.attempt) for run in started] == [(run.id, run.attempt + 1) for run in ready]
            assert len({run.actor for run in started}) == min(1, len(started))
            self.workers += [Worker(job.id, run.id, run.attempt) for run in started]

    @rule(late=SELDOM, number=ANY, behind=SELDOM, wanted=JOB_MOVES)
    def move_job(self, late: bool, number: int, behind: bool, wanted: State) -> None:
        """An engine ends a job, perhaps on behalf of an attempt that is not the newest; nothing else becomes of it."""
        job = self.job(number)
        landed = self.as_engine(late, lambda engine: engine.move_job(job.id, wanted, attempt=job.attempt - behind))
        assert not (landed is True and (behind or wanted not in TABLE[job.state] & TERMINAL))

    @rule(late=SELDOM, number=ANY)
    def settle(self, late: bool, number: int) -> None:
        """An engine sees whether a job is paused."""
        job = self.job(number)
        landed = self.as_engine(late, lambda engine: engine.settle_job(job.id, job.attempt))
        # Of a pausing job what waits is set aside first.
        waiting = {State.QUEUED, State.LOST} if job.state is State.PAUSING else set()
        states = {State.PAUSED if run.state in waiting else run.state for run in self.runs_of(job)}
        put_down = State.PAUSED in states and states <= TERMINAL | {State.PAUSED}
        assert landed in ("lost", put_down and job.state in {State.RUNNING, State.PAUSING})

    # -------------------------------------------------------------------------------------------------- workers

    @rule(late=SELDOM, old=SELDOM, number=ANY, n=st.integers(0, 3))
    def tell(self, late: bool, old: bool, number: int, n: int) -> None:
        """A worker tells something, perhaps again."""
        worker = self.worker(number, old)
        whose = (worker.job_id, worker.run_id, worker.attempt)
        told: list[tuple[int, Json]] = [(n, {"type": "log"})]
        stored = self.as_engine(late, lambda engine: engine.record_events(*whose, told, progress={"epoch": n}))
        if not self.may_write(worker):
            assert stored in ("lost", None)
        elif stored != "lost":
            assert stored == ((*whose, n) not in self.told)
            self.told.add((*whose, n))
            assert self.queries.next_event(*whose) == 1 + max(m for *owner, m in self.told if tuple(owner) == whose)

    @rule(late=SELDOM, old=SELDOM, number=ANY)
    def succeed(self, late: bool, old: bool, number: int) -> None:
        """A worker has finished, perhaps long after it was given up."""
        worker = self.worker(number, old)
        result = {"attempt": worker.attempt}
        landed = self.as_engine(
            late, lambda engine: engine.record_result(worker.run_id, worker.attempt, [FILE], result)
        )
        assert landed in ("lost", self.may_write(worker))
        if landed is True:
            assert worker.run_id not in self.results, "a second result landed"
            self.results[worker.run_id] = worker.attempt

    @rule(late=SELDOM, old=SELDOM, number=ANY, wanted=RUN_MOVES)
    def put_down(self, late: bool, old: bool, number: int, wanted: State) -> None:
        """A worker has stopped, failed or vanished."""
        worker = self.worker(number, old)
        run = self.runs[worker.run_id]
        if run.state is State.PAUSED and wanted is State.QUEUED:
            # Its worker is gone: that is a resumption, by ``resume_set_aside`` or a client.
            return
        landed = self.as_engine(late, lambda engine: engine.move_run(worker.run_id, worker.attempt, wanted))
        may = run.attempt == worker.attempt and wanted in TABLE[run.state] - {State.RUNNING}
        assert landed in ("lost", may)

    @rule(late=SELDOM, old=SELDOM, number=ANY)
    def set_run_aside(self, late: bool, old: bool, number: int) -> None:
        """A worker's disk is full; a client may have wanted something else of it meanwhile."""
        worker = self.worker(number, old)
        state = self.runs[worker.run_id].state
        landed = self.as_engine(
            late, lambda engine: engine.set_run_aside(worker.run_id, worker.attempt, reason_of("ENOSPC", "full"))
        )
        becomes = State.CANCELLED if state is State.CANCELLING else State.PAUSED
        assert landed in ("lost", becomes if self.may_write(worker) else None)

    @rule(late=SELDOM, number=ANY, behind=SELDOM)
    def set_job_aside(self, late: bool, number: int, behind: bool) -> None:
        """The disk is full while the caches of a job are built."""
        job = self.job(number)
        landed = self.as_engine(
            late, lambda engine: engine.set_job_aside(job.id, job.attempt - behind, reason_of("EROFS", "read-only"))
        )
        assert not (landed is True and (behind or job.state is not State.RUNNING))

    @rule(late=SELDOM)
    def resume_set_aside(self, late: bool) -> None:
        """There is room again."""
        aside = [run_id for run_id, _ in self.queries.runs_aside()]
        assert set(aside) == {run.id for run in self.runs.values() if run.set_aside is not None}
        resumed = self.as_engine(late, lambda engine: engine.resume_set_aside(aside))
        if resumed != "lost":
            assert all(self.queries.run(id).state is State.QUEUED for id in aside)

    # -------------------------------------------------------------------------------------------------- clients

    @precondition(lambda self: len(self.jobs) < JOBS_MAX)
    @rule(priority=st.integers(-1, 1))
    def post(self, priority: int) -> None:
        """A client posts a job."""
        job_id = add_job(self.api_queries).id
        with self.database.write() as session:
            session.get_one(JobRecord, job_id).priority = priority

    @rule(number=ANY, action=ACTIONS)
    def act_on_job(self, number: int, action: str) -> None:
        """A client has had enough, needs the room for something else, or has it again."""
        job = self.job(number)
        ask: Callable[[str], JobRecord] = getattr(self.job_control, f"{action}_job")
        if action != "cancel" and job.state in OVER:
            with pytest.raises(Conflict):
                ask(job.id)
            return
        assert ask(job.id).state in STATES_AFTER[action]
        assert set(self.queries.states(job.id)[1].values()) <= STATES_AFTER[action] | OVER

    @rule(number=ANY, action=ACTIONS)
    def act_on_run(self, number: int, action: str) -> None:
        """A client wants something of one run."""
        run = self.run(number)
        ask: Callable[[str], RunRecord] = getattr(self.job_control, f"{action}_run")
        if action != "cancel" and run.state in OVER:
            with pytest.raises(Conflict):
                ask(run.id)
            return
        assert ask(run.id).state in STATES_AFTER[action]

    @rule(number=ANY, whole=st.booleans())
    def retry(self, number: int, whole: bool) -> None:
        """A client does not give up."""
        job, run = self.job(number), self.run(number)
        runs = self.runs_of(job) if whole else [run]
        wanted = {run.id for run in runs if run.state in {State.FAILED, State.CANCELLED}}
        left = wanted - {run.retry_of for run in self.runs.values()}
        ask = self.api_queries.retry_job if whole else self.api_queries.retry_run
        id = job.id if whole else run.id
        if not wanted:
            with pytest.raises(Conflict):
                ask(id, lambda: None)
            return
        again, is_new = ask(id, lambda: None)
        assert is_new == bool(left)
        tried = {run.retry_of for run in self.queries.runs(again.id)}
        assert tried == left if is_new else tried & wanted

    @rule(number=ANY)
    def add_runs(self, number: int) -> None:
        """A client adds a run, also to what has ended; somebody else may have looked at the job just before."""
        job = self.job(number)
        known = Plan.model_validate(job.plan)
        if len(self.runs_of(job)) + len(known.added) > RUNS_MAX:
            return
        # Of a seed that no run has, also none that has been deleted since.
        seed = 1 + max(seed for block in (known, *known.added) for seed in block.seeds)
        block = RunBlock.model_validate({"students": ["cnn_s"], "methods": ["dkd"], "seeds": [seed]})
        plan = with_added(known, block)
        if job.state is State.CANCELLING:
            with pytest.raises(Conflict):
                self.api_queries.add_runs(job, plan, None, lambda: None)
            return
        made = self.api_queries.add_runs(job, plan, None, lambda: None)
        assert made is not None
        # Whoever has read the plan before is told to read it again.
        assert self.api_queries.add_runs(job, plan, None, lambda: None) is None
        is_paused = job.state in {State.PAUSING, State.PAUSED}
        assert made[0].state is (State.QUEUED if job.state in TERMINAL else job.state)
        assert self.queries.runs(job.id)[-1].state is (State.PAUSED if is_paused else State.QUEUED)
        self.ended.pop(job.id, None)

    @rule(late=SELDOM, number=ANY, behind=SELDOM)
    def end_job(self, late: bool, number: int, behind: bool) -> None:
        """An engine ends a job whose runs have ended, or so it thinks."""
        job = self.job(number)
        state = self.as_engine(late, lambda engine: engine.end_job(job.id, job.attempt - behind))
        may = job.state in WORKING and not behind and all(run.state in TERMINAL for run in self.runs_of(job))
        assert state == "lost" or (state is not None) == may

    # -------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def what_must_always_hold(self) -> None:
        """One look at every row."""
        self.look()
        with self.database.read() as session:
            events = session.scalars(select(EventRecord).order_by(EventRecord.seq)).all()
            files = session.scalars(select(ArtifactRecord)).all()
        self.check_ends()
        self.check_results([(file.run_id, file.attempt) for file in files])
        told = [(event.job_id, event.run_id, event.attempt, event.n) for event in events if event.n is not None]
        assert len(told) == len(set(told))
        assert set(told) == self.told
        self.check_paths([event for event in events if event.type == "state"])

    def check_ends(self) -> None:
        """No final state is left, but of a job that gets runs; no attempt comes back; an ended job has only ended runs.

        And nobody works on a run on whose job nobody works: a client's request would wait for ever.
        """
        for row in (*self.jobs.values(), *self.runs.values()):
            assert self.ended.get(row.id, row.state) is row.state
            assert (row.state in TERMINAL) == (row.finished_at is not None)
            assert row.attempt >= self.attempts[row.id]
            self.attempts[row.id] = row.attempt
            if row.state in TERMINAL:
                self.ended[row.id] = row.state
        for job in self.jobs.values():
            # Or it would say that it goes on by itself, and nobody would have it do so.
            goes_on = job.state is State.PAUSED and any(run.set_aside for run in self.runs_of(job))
            assert (job.set_aside is not None) == goes_on
        for run in self.runs.values():
            assert run.set_aside is None or run.state is State.PAUSED
            assert run.state in TERMINAL or self.jobs[run.job_id].state not in TERMINAL
            assert run.state not in WORKING or self.jobs[run.job_id].state in WORKING

    def check_results(self, files: list[tuple[str, int]]) -> None:
        """A run that has succeeded shows what one attempt has left, and no other run shows anything."""
        assert sorted(files) == sorted(self.results.items())
        for run in self.runs.values():
            attempt = self.results.get(run.id)
            assert (run.state is State.SUCCEEDED) == (attempt is not None)
            assert run.result == (None if attempt is None else {"attempt": attempt})
            assert attempt in (None, run.attempt)

    def check_paths(self, events: list[EventRecord]) -> None:
        """What was told of a job's or run's states is a way through the table, and ends where it is now."""
        last: dict[str, State] = defaultdict(lambda: State.QUEUED)
        for event in events:
            id, state = event.run_id or event.job_id, State(event.data["state"])
            # A client's pause of what is set aside is told, too.
            table = TABLE if event.run_id else JOB_TABLE
            assert state in table[last[id]] or state is last[id] is State.PAUSED
            last[id] = state
        for id, row in {**self.jobs, **self.runs}.items():
            assert last[id] is row.state

    def teardown(self) -> None:
        """The folder goes."""
        self.database.close()
        shutil.rmtree(self.folder)


def test_in_whatever_order_they_are_called_no_end_is_undone_and_no_stale_write_lands(tmp_path: Path) -> None:
    """Without shrinking, which takes longer than a test may."""
    upgrade_to_head(f"sqlite:///{tmp_path / 'db'}")
    Life.template = tmp_path / "db"
    Life.TestCase.settings = settings(
        max_examples=25,
        stateful_step_count=35,
        phases=[Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    case = Life.TestCase()
    case.runTest()
