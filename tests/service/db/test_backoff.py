"""Backoff after losses: how long, of what, what is not counted, and that it outlives an engine. Tasks end on cue."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from service.api.job_documents import summarise
from service.db.models import JobRecord, RunRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.scheduling.backoff import Backoff, after_loss
from service.db.states import State
from service.engine.active_jobs import LOST_ATTEMPTS_MAX
from service.engine.scheduler import Scheduler
from tests.service.engine.test_scheduler import _Bench, _Cluster, _Task, complete_caches, inferred, vanished
from workers.backoff import LOSSES, LOST_ATTEMPTS_EVER_MAX, delay_s
from workers.cluster.outcomes import TaskOutcome


class Clock:
    """In the place of the machine's, for what waits."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now

    def on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.db.scheduling.backoff.utc_now", clock)
    return clock


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    bench = _Bench(tmp_path, methods=["kd"])
    yield bench
    bench.gpus.close()
    bench.database.close()


def by_others() -> TaskOutcome:
    return vanished().model_copy(update={"is_node_fault": True, "message": "others have the memory"})


def ticks(engine: Scheduler, count: int = 3) -> None:
    for _ in range(count):
        engine.tick()


def run_of(bench: _Bench) -> RunRecord:
    [run] = bench.queries.runs(bench.job_id)
    return run


def logs_of(bench: _Bench, row: JobRecord | RunRecord) -> list[str]:
    events, _ = ApiQueries(bench.database).events(row, 0, 1000)
    return [event.data["message"] for event in events if event.type == "log"]


def test_backoff_delay_is_none_at_first_and_grows_to_its_cap_with_jitter() -> None:
    assert [delay_s(lost_attempts) for lost_attempts in (0, 1)] == [0.0, 0.0]
    delays = [[delay_s(lost_attempts, random.Random(seed)) for seed in range(50)] for lost_attempts in range(2, 8)]
    for middle, drawn in zip((2.0, 8.0, 32.0, 128.0, LOSSES.cap_s, LOSSES.cap_s), delays, strict=True):
        assert 0.75 * middle <= min(drawn) < 0.9 * middle
        assert 1.1 * middle < max(drawn) <= 1.25 * middle
    assert delay_s(10**6) <= 1.25 * LOSSES.cap_s


def test_a_run_that_is_lost_again_waits_says_so_and_starts_when_its_time_has_come(bench: _Bench, clock: Clock) -> None:
    cluster = _Cluster(complete_caches(), endings=[vanished(), vanished()])
    engine = bench.engine_on(cluster)
    ticks(engine, 8)
    run = run_of(bench)
    # The first time it starts again at once.
    assert (run.attempt, run.state, run.lost_attempts) == (2, State.LOST, 2)
    assert run.waits_for is not None
    assert run.waits_for.startswith("lost 2 times in a row, last: it died; starts again at ")
    assert logs_of(bench, run) == ["lost: it died; starts again at once", run.waits_for]
    backoff = Backoff.model_validate(run.backoff)
    assert (backoff.lost_attempts, backoff.faults) == (2, 2)
    assert 1.5 <= (backoff.until - clock.now).total_seconds() <= 2.5
    assert f"{backoff.until:%H:%M:%S} UTC" in run.waits_for

    clock.on(2.6)
    ticks(engine)
    run = run_of(bench)
    assert (run.attempt, run.state, run.waits_for) == (3, State.RUNNING, None)
    # An epoch is a new beginning.
    cluster.tasks[0].events = [(0, {"type": "epoch", "epoch": 1, "metrics": {}})]
    ticks(engine)
    assert run_of(bench).backoff is None
    cluster.tasks[0].outcome = vanished()
    ticks(engine)
    assert run_of(bench).attempt == 4


def test_backoff_of_a_run_outlives_its_engine(bench: _Bench, clock: Clock) -> None:
    cluster = _Cluster(complete_caches(), complete_caches(), endings=[vanished(), vanished()])
    ticks(bench.engine_on(cluster), 8)
    before = run_of(bench)
    engine = bench.engine_on(cluster)
    ticks(engine, 6)
    after = run_of(bench)
    assert (after.attempt, after.state, after.waits_for, after.backoff) == (
        2,
        State.LOST,
        before.waits_for,
        before.backoff,
    )
    clock.on(2.6)
    ticks(engine)
    assert run_of(bench).attempt == 3


def test_a_run_fails_by_its_own_losses_and_not_by_those_of_the_node(bench: _Bench, clock: Clock) -> None:
    count = 2 * LOST_ATTEMPTS_MAX
    cluster = _Cluster(complete_caches(), endings=[*[by_others()] * count, *[vanished()] * (LOST_ATTEMPTS_MAX + 1)])
    engine = bench.engine_on(cluster)
    for _ in range(60):
        engine.tick()
        clock.on(1.3 * LOSSES.cap_s)
    assert run_of(bench).attempt == count + LOST_ATTEMPTS_MAX + 1
    error = run_of(bench).error
    assert error is not None
    assert error["message"] == "the run's process vanished 10 times, last: it died"


def test_losses_by_the_node_are_bounded_too(bench: _Bench, clock: Clock) -> None:
    with bench.database.write() as session:
        run = session.get_one(RunRecord, run_of(bench).id)
        run.lost_attempts = LOST_ATTEMPTS_EVER_MAX - 1
    engine = bench.engine_on(_Cluster(complete_caches(), endings=[by_others()]))
    ticks(engine, 5)
    error = run_of(bench).error
    assert error is not None
    assert error["message"] == "the run's process has vanished 100 times, last: others have the memory"


def test_a_run_that_is_gone_with_ray_or_its_engine_is_not_to_blame_and_starts_again_at_once(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches(), complete_caches())
    ticks(bench.engine_on(cluster))
    engine = bench.engine_on(cluster)
    backoff = Backoff.model_validate(run_of(bench).backoff)
    assert (backoff.lost_attempts, backoff.faults, backoff.is_over) == (1, 0, True)
    ticks(engine)
    assert (run_of(bench).attempt, run_of(bench).state) == (2, State.RUNNING)


def test_caches_that_are_lost_again_wait_say_so_and_keep_their_time_under_the_next_engine(
    bench: _Bench, clock: Clock
) -> None:
    engine = bench.engine(*[_Task(outcome=by_others()) for _ in range(2)])
    ticks(engine, 6)
    job = bench.queries.job(bench.job_id)
    backoff = Backoff.model_validate(job.backoff)
    assert (backoff.lost_attempts, backoff.faults, backoff.is_over) == (2, 0, False)
    assert logs_of(bench, job)[-1] == f"inference was {backoff.waits_for}"
    assert summarise(job, {}).waits_for == backoff.waits_for

    cluster = _Cluster(_Task(inferred(5)))
    engine = bench.engine_on(cluster)
    ticks(engine)
    assert not cluster.inferring
    clock.on(2.6)
    assert summarise(job, {}).waits_for is None
    ticks(engine)
    assert len(cluster.inferring) == 1
    assert bench.queries.job(bench.job_id).backoff is None


def test_a_waiting_run_that_is_paused_and_resumed_between_two_looks_still_says_what_it_waits_for(
    bench: _Bench, clock: Clock
) -> None:
    engine = bench.engine_on(_Cluster(complete_caches(), endings=[vanished(), vanished()]))
    ticks(engine, 8)
    before = run_of(bench).waits_for
    bench.job_control.pause_run(run_of(bench).id)
    bench.job_control.resume_run(run_of(bench).id)
    assert run_of(bench).waits_for is None
    ticks(engine, 1)
    # Now it is seen as queued, as it is seen when that happens twice.
    bench.job_control.pause_run(run_of(bench).id)
    bench.job_control.resume_run(run_of(bench).id)
    ticks(engine, 1)
    assert run_of(bench).waits_for == before


def test_a_clock_that_was_set_back_keeps_nobody_waiting(clock: Clock) -> None:
    backoff = after_loss(after_loss(None, "so", is_node_fault=False), "so", is_node_fault=False)
    assert not backoff.is_over
    clock.on(-24 * 3600)
    assert backoff.is_over
