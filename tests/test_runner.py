"""What the engine decides at moments that no real process can be made to meet: tasks that tell and end on cue.

With real processes, Ray and kills: ``test_engine``, ``test_engine_life``, ``test_kill_storm``.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from service.db import Database, upgrade_to_head
from service.engine import _lead
from service.errors import LeaseLost
from service.jobs import State
from service.records import Records
from service.registry import Registry
from service.runner import LOSSES_MAX, Engine
from service.wishes import Wishes
from store import Catalog
from tests.service_helpers import add_job, make_settings, start_run
from tests.store_cases import is_held, make_spec, write_cache
from workers.cluster import Cluster
from workers.outcomes import Numbered, Outcome


@dataclass
class _Task:
    """In the place of a cluster's: tells what it was given, and keeps what it is told."""

    events: Sequence[Numbered] = ()
    outcome: Outcome | None = None
    told: list[str] = field(default_factory=list)

    def poll(self) -> tuple[Sequence[Numbered], Outcome | None]:
        return self.events, self.outcome

    def acknowledge(self, _: Sequence[Numbered]) -> None:
        self.events = ()

    def stop(self) -> None:
        self.told.append("stop")

    def close(self) -> None:
        self.told.append("close")


class _Cluster:
    """In Ray's place: finds no process of an earlier engine, and gives these tasks to whoever builds caches."""

    cpus, gpus = 2, 0

    def __init__(self, *tasks: _Task) -> None:
        self._tasks = iter(tasks)
        self.has_ended_others = False

    def attach(self, *_: object) -> dict[int, _Task]:
        return {}

    def end_others(self, _: object) -> int:
        self.has_ended_others = True
        return 0

    def build_caches(self, *_: object) -> _Task:
        return next(self._tasks)


class _Bench:
    """An engine without processes, with one job that it has not begun."""

    def __init__(self, tmp_path: Path) -> None:
        self.settings = make_settings(tmp_path)
        self.settings.make_folders()
        upgrade_to_head(self.settings.database)
        self.database = Database(self.settings.database)
        self.records, self.wishes = Records(self.database, "this"), Wishes(self.database)
        assert self.records.acquire_lease()
        self.job_id = add_job(Registry(self.database)).id

    def engine(self, *tasks: _Task) -> Engine:
        engine = Engine(self.settings, self.records)
        engine.recover(cast("Cluster", _Cluster(*tasks)))
        return engine

    @property
    def state(self) -> State:
        return self.records.job(self.job_id).state

    def left(self, run_id: str, attempt: int) -> Path:
        """What an attempt has left: a checkpoint, artifacts that look complete, and some that do not."""
        folder = self.settings.data_dir / "jobs" / self.job_id / run_id / f"a{attempt}"
        for name in ("artifacts", "artifacts.partial"):
            (folder / name).mkdir(parents=True)
        (folder / "checkpoint.pt").touch()
        return folder


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    bench = _Bench(tmp_path)
    yield bench
    bench.database.close()


def vanished() -> Outcome:
    return Outcome(kind="vanished", error_type="ActorDiedError", message="it died")


def inferred(rows: int, key: str = "0" * 64) -> list[Numbered]:
    """A worker's words on so many rows."""
    names = ("rows_done", "rows_total", "rows_per_s", "eta_s")
    told = {"type": "inference_progress", "split": "train", "cache": key, "rows_inferred": rows}
    return [(0, {**told, **dict.fromkeys(names, rows)})]


@pytest.mark.parametrize(("rows", "state"), [(5, State.RUNNING), (0, State.FAILED)])
def test_losses_of_a_caches_process_count_unless_it_had_inferred_something(
    bench: _Bench, rows: int, state: State
) -> None:
    tasks = [_Task(inferred(rows), vanished()) for _ in range(LOSSES_MAX + 1)]
    engine = bench.engine(*tasks, _Task())
    for _ in range(len(tasks) + 2):
        engine.tick()
    assert bench.state is state


def test_a_caches_process_that_was_told_to_stop_and_did_not_listen_is_no_loss(bench: _Bench) -> None:
    tasks = [_Task() for _ in range(LOSSES_MAX + 2)]
    engine = bench.engine(*tasks, _Task())
    engine.tick()
    for task in tasks:
        engine.tick()
        bench.wishes.pause_job(bench.job_id)
        engine.tick()
        bench.wishes.resume_job(bench.job_id)
        assert task.told == ["stop"]
        # After the grace, as it is killed.
        task.outcome = vanished()
    engine.tick()
    assert bench.state is State.RUNNING


def test_the_caches_of_a_paused_job_are_held_until_it_ends_by_the_next_engine_too(bench: _Bench) -> None:
    catalog = Catalog(bench.settings.caches_dir)
    key = write_cache(bench.settings.caches_dir, make_spec(samples=100)).spec.key
    task = _Task(inferred(5, key))
    engine = bench.engine(task)
    for _ in range(2):
        engine.tick()
    bench.wishes.pause_job(bench.job_id)
    engine.tick()
    task.outcome = Outcome(kind="stopped")
    engine.tick()
    assert bench.state is State.PAUSED
    assert task.told == ["stop", "close"]
    engine.tick()
    assert is_held(catalog, key)

    del engine
    assert not is_held(catalog, key)
    engine = bench.engine()
    assert is_held(catalog, key)
    bench.wishes.cancel_job(bench.job_id)
    engine.tick()
    assert not is_held(catalog, key)


@pytest.mark.parametrize(
    ("wish", "state"), [(None, State.LOST), ("pause_run", State.PAUSED), ("cancel_run", State.CANCELLED)]
)
def test_a_run_whose_process_is_gone_with_its_engine_leaves_its_checkpoint_alone(
    bench: _Bench, wish: str | None, state: State
) -> None:
    """Killed after its artifacts were in place and before anybody knew, it has not succeeded, nor does it look so."""
    bench.records.claim_job()
    run = bench.records.runs(bench.job_id)[0]
    assert start_run(bench.records, run.id) == 1
    folder = bench.left(run.id, 1)
    if wish is not None:
        ask: Callable[[str], object] = getattr(bench.wishes, wish)
        ask(run.id)
    bench.engine()
    assert bench.records.run(run.id).state is state
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_a_job_that_fails_as_a_whole_leaves_checkpoints_alone(bench: _Bench) -> None:
    bench.records.claim_job()
    run = bench.records.runs(bench.job_id)[0]
    assert start_run(bench.records, run.id) == 1
    engine = bench.engine(_Task(outcome=Outcome(kind="failed", error_type="QuotaExceeded", message="no room")))
    folder = bench.left(run.id, 1)
    for _ in range(2):
        engine.tick()
    assert bench.state is State.FAILED
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_an_engine_that_was_stopped_before_it_looked_for_strays_ends_no_process_of_its_successors(
    bench: _Bench,
) -> None:
    """Nothing was unfinished, so it has written nothing that would have told it."""
    assert Records(bench.database, "other").acquire_lease(ttl_s=0)
    cluster = _Cluster()
    with pytest.raises(LeaseLost, match="this ends: another engine leads"):
        Engine(bench.settings, bench.records).recover(cast("Cluster", cluster))
    assert not cluster.has_ended_others


def test_an_engine_that_is_told_to_end_before_it_leads_takes_no_lease(bench: _Bench) -> None:
    assert bench.records.release_lease()
    ending = threading.Event()
    ending.set()
    assert not _lead(bench.records, ending)
    assert bench.records.lease_holder() is None
