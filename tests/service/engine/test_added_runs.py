"""Runs that are added to a job while an engine works on it, or has ended it: on the stand-in cluster, and in rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from service.db.database import Database
from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord
from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from service.engine.scheduler import Scheduler
from tests.service.engine.test_scheduler import _Bench, _Cluster, _Task, complete_caches, failed
from tests.support.service_helpers import add_job, finish, start_run
from workers.cluster.outcomes import TaskOutcome
from workers.config.draft import with_added
from workers.config.job import Plan
from workers.config.run_block import RunBlock
from workers.config.task import CachesTask, TrainingTask
from workers.run_files import ARTIFACTS

pytest_plugins = ["tests.support.service_fixtures"]


class _Recording(_Cluster):
    """Keeps the names of the runs that each cache stage was asked about."""

    def __init__(self, *tasks: _Task, endings: Sequence[TaskOutcome] = ()) -> None:
        super().__init__(*tasks, endings=endings)
        self.cpus = 4
        self.asked: list[list[str]] = []
        self.all_tasks: list[_Task] = []

    def train(self, name: str, orders: Sequence[TrainingTask], cpus: float, gpu_share: float) -> list[_Task]:
        self.all_tasks += super().train(name, orders, cpus, gpu_share)
        return self.tasks

    def build_caches(self, asked: CachesTask) -> _Task:
        self.asked.append([run.name for run in asked.job.runs()])
        return super().build_caches(asked)

    @property
    def started_runs(self) -> list[str]:
        return [order.run.name for orders, _ in self.trained for order in orders]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    bench = _Bench(tmp_path, group_size=1)
    yield bench
    bench.gpus.close()
    bench.database.close()


def add(database: Database, job_id: str, *methods: object, seeds: Sequence[int] = (0,)) -> None:
    """Adds runs of ``cnn_s`` to a job."""
    queries = ApiQueries(database)
    job = queries.get(JobRecord, job_id)
    block = RunBlock.model_validate({"students": ["cnn_s"], "methods": list(methods), "seeds": list(seeds)})
    made = queries.add_runs(job, with_added(Plan.model_validate(job.plan), block), None, lambda: None)
    assert made is not None


def states(bench: _Bench) -> list[State]:
    return [run.state for run in bench.queries.runs(bench.job_id)]


def ticks(engine: Scheduler, count: int) -> None:
    for _ in range(count):
        engine.tick()


def test_runs_added_to_a_job_in_training_are_checked_alone_and_start_beside_the_others(bench: _Bench) -> None:
    cluster = _Recording(complete_caches(), complete_caches())
    engine = bench.engine_on(cluster)
    ticks(engine, 3)
    assert states(bench) == [State.RUNNING] * 2
    add(bench.database, bench.job_id, "dkd", seeds=[0, 1])
    ticks(engine, 3)
    assert cluster.asked == [["cnn_s ce seed 0", "cnn_s kd seed 0"], ["cnn_s dkd seed 0", "cnn_s dkd seed 1"]]
    assert states(bench) == [State.RUNNING] * 4
    assert cluster.started_runs[2:] == ["cnn_s dkd seed 0", "cnn_s dkd seed 1"]
    assert all(run.attempt == 1 for run in bench.queries.runs(bench.job_id))
    # Of three runs that distil, for three epochs and once on the test split; two were checked last.
    cache = cluster.trained[0][0][0].train_cache
    assert cache is not None
    forwards = bench.queries.job(bench.job_id).teacher_forwards
    assert forwards == {"run": 0, "avoided": 3 * 4 * cache.samples}


def test_added_runs_that_fail_their_check_leave_the_others_at_work(bench: _Bench) -> None:
    cluster = _Recording(complete_caches(), _Task(outcome=failed("ContractViolation")), complete_caches())
    engine = bench.engine_on(cluster)
    ticks(engine, 3)
    add(bench.database, bench.job_id, "dtkd")
    ticks(engine, 3)
    assert states(bench) == [State.RUNNING, State.RUNNING, State.FAILED]
    error = bench.queries.runs(bench.job_id)[2].error
    assert error is not None
    assert error["type"] == "ContractViolation"
    # What was refused is not asked about again.
    add(bench.database, bench.job_id, "dkd")
    ticks(engine, 3)
    assert cluster.asked[2:] == [["cnn_s dkd seed 0"]]
    assert states(bench) == [State.RUNNING, State.RUNNING, State.FAILED, State.RUNNING]
    assert bench.state is State.RUNNING


def test_a_successor_trains_what_was_added_to_its_predecessors_job(bench: _Bench) -> None:
    """Killed anywhere, the runs are there with the plan, or neither is."""
    ticks(bench.engine_on(_Recording(complete_caches())), 3)
    add(bench.database, bench.job_id, "dkd")
    cluster = _Recording(complete_caches())
    engine = bench.engine_on(cluster)
    ticks(engine, 3)
    # The processes of the first two are gone as well.
    assert sorted(cluster.started_runs) == ["cnn_s ce seed 0", "cnn_s dkd seed 0", "cnn_s kd seed 0"]


def contract(*complete: bool) -> list[_Task]:
    """Checks that end so, in their order."""
    return [
        complete_caches() if is_complete else _Task(outcome=failed("ContractViolation")) for is_complete in complete
    ]


OWN, REFUSED, SOUND = ["cnn_s ce seed 0", "cnn_s kd seed 0"], ["cnn_s dtkd seed 0"], ["cnn_s dkd seed 0"]


def test_refused_runs_leave_those_that_a_successor_finds_half_trained(bench: _Bench) -> None:
    """To the successor all of them wait: the processes of the first two are gone."""
    ticks(bench.engine_on(_Recording(complete_caches())), 3)
    assert states(bench) == [State.RUNNING] * 2
    add(bench.database, bench.job_id, "dtkd")
    add(bench.database, bench.job_id, "dkd")
    cluster = _Recording(*contract(False, True, False, True))
    engine = bench.engine_on(cluster)
    ticks(engine, 6)
    assert [sorted(names) for names in cluster.asked] == [sorted([*OWN, *REFUSED, *SOUND]), OWN, REFUSED, SOUND]
    assert states(bench) == [State.RUNNING, State.RUNNING, State.FAILED, State.RUNNING]
    assert [run.attempt for run in bench.queries.runs(bench.job_id)] == [2, 2, 0, 1]


def test_refused_runs_leave_those_of_a_job_that_had_not_begun_when_they_were_added(bench: _Bench) -> None:
    add(bench.database, bench.job_id, "dtkd")
    cluster = _Recording(*contract(False, True, False))
    ticks(bench.engine_on(cluster), 6)
    assert cluster.asked[1:] == [OWN, REFUSED]
    assert states(bench) == [State.RUNNING, State.RUNNING, State.FAILED]
    assert bench.state is State.RUNNING


def test_refused_runs_leave_those_of_a_job_that_was_paused_and_resumed(bench: _Bench) -> None:
    cluster = _Recording(*contract(True, False, True, False))
    engine = bench.engine_on(cluster)
    ticks(engine, 3)
    bench.job_control.pause_job(bench.job_id)
    engine.tick()
    for task in cluster.all_tasks:
        task.outcome = TaskOutcome(kind="paused")
    ticks(engine, 3)
    assert bench.state is State.PAUSED
    add(bench.database, bench.job_id, "dtkd")
    bench.job_control.resume_job(bench.job_id)
    ticks(engine, 8)
    assert cluster.asked[2:] == [OWN, REFUSED]
    assert states(bench) == [State.RUNNING, State.RUNNING, State.FAILED]


def test_runs_of_a_job_that_fail_their_own_check_leave_those_that_were_added(bench: _Bench) -> None:
    add(bench.database, bench.job_id, "dkd")
    cluster = _Recording(*contract(False, False, True))
    ticks(bench.engine_on(cluster), 6)
    assert states(bench) == [State.FAILED, State.FAILED, State.RUNNING]


def test_refused_runs_leave_one_that_is_lost_while_they_are_checked(bench: _Bench) -> None:
    ticks(bench.engine_on(_Recording(complete_caches())), 3)
    add(bench.database, bench.job_id, "dtkd")
    checks = contract(False, True)
    refusal, checks[0].outcome = checks[0].outcome, None
    cluster = _Recording(*checks)
    first, second = bench.queries.runs(bench.job_id)[:2]
    cluster.found = {str(first.actor): _Task(), str(second.actor): _Task()}
    engine = bench.engine_on(cluster)
    engine.tick()
    assert cluster.asked == [REFUSED]
    cluster.found[str(first.actor)].outcome = TaskOutcome(kind="vanished", message="it died", is_node_fault=True)
    engine.tick()
    assert states(bench)[0] is State.LOST
    checks[0].outcome = refusal
    ticks(engine, 3)
    assert cluster.asked[1:] == [OWN[:1]]
    assert states(bench) == [State.RUNNING, State.RUNNING, State.FAILED]


def test_runs_added_at_the_moment_of_the_end_are_trained(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has seen the last run end, and not yet that there are more."""
    cluster = _Recording(complete_caches(), complete_caches(), endings=[failed("NotFinite"), failed("NotFinite")])
    engine = bench.engine_on(cluster)
    ends, end_job = list[State | None](), EngineQueries.end_job

    def added_before(queries: EngineQueries, job_id: str, attempt: int) -> State | None:
        if not ends:
            add(bench.database, job_id, "dkd")
        ends.append(end_job(queries, job_id, attempt))
        return ends[-1]

    monkeypatch.setattr(EngineQueries, "end_job", added_before)
    ticks(engine, 7)
    assert ends == [None]
    assert bench.state is State.RUNNING
    assert states(bench) == [State.FAILED, State.FAILED, State.RUNNING]


def test_a_job_that_has_ended_goes_on_with_what_was_added(bench: _Bench) -> None:
    cluster = _Recording(complete_caches(), complete_caches(), endings=[failed("NotFinite")] * 2)
    engine = bench.engine_on(cluster)
    ticks(engine, 5)
    assert bench.state is State.FAILED
    add(bench.database, bench.job_id, "dkd")
    assert bench.queries.job(bench.job_id).error is None
    ticks(engine, 4)
    assert cluster.asked[1:] == [["cnn_s dkd seed 0"]]
    assert states(bench) == [State.FAILED, State.FAILED, State.RUNNING]
    folder = bench.settings.data_dir / "jobs" / bench.job_id / bench.queries.runs(bench.job_id)[2].id / "a1"
    (folder / ARTIFACTS).mkdir(parents=True)
    cluster.tasks[0].outcome = TaskOutcome(kind="done", value={"last": {"top1": 0.5}})
    ticks(engine, 3)
    assert states(bench) == [State.FAILED, State.FAILED, State.SUCCEEDED]
    error = bench.queries.job(bench.job_id).error
    assert error is not None
    assert error["message"].startswith("2 of 3 runs failed")


def test_a_job_whose_run_was_added_does_not_end_and_a_run_never_begins_again(
    queries: EngineQueries, api_queries: ApiQueries
) -> None:
    job = add_job(api_queries)
    finish(queries, job.id)
    add(queries.database, job.id, "dkd")
    claimed = queries.claim_job()
    assert claimed is not None
    assert queries.end_job(job.id, claimed.attempt) is None
    ended, _, added = queries.runs(job.id)
    assert not queries.move_run(ended.id, ended.attempt, State.QUEUED)
    assert start_run(queries, ended.id) is None
    assert start_run(queries, added.id) == 1
    assert queries.move_run(added.id, 1, State.SUCCEEDED, result={})
    # Of an earlier attempt it is not ended.
    assert queries.end_job(job.id, claimed.attempt - 1) is None
    assert queries.end_job(job.id, claimed.attempt) is State.SUCCEEDED
