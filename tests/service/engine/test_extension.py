"""Checkpoints that runs keep when they have succeeded, and the tasks of runs that go on from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.db.states import State
from tests.service.engine.test_scheduler import _Bench, _Cluster, complete_caches
from workers.cluster.outcomes import TaskOutcome
from workers.run_files import CHECKPOINT


def bench_of(tmp_path: Path, **plan: Any) -> Iterator[_Bench]:  # noqa: ANN401
    bench = _Bench(tmp_path, methods=["kd"], **plan)
    yield bench
    bench.gpus.close()
    bench.database.close()


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[_Bench]:
    yield from bench_of(tmp_path, training={"epochs": 3, "keep_checkpoint": True})


@pytest.fixture
def extending(tmp_path: Path) -> Iterator[_Bench]:
    extends = {"run": "run_1", "training": {"epochs": 2}, "checkpoint": "jobs/job_1/run_1/a2/checkpoint.pt"}
    yield from bench_of(tmp_path, training={"epochs": 3}, extends=extends)


def test_run_that_has_succeeded_keeps_its_last_checkpoint_where_the_job_says_so(keeping: _Bench) -> None:
    cluster = _Cluster(complete_caches())
    engine = keeping.engine_on(cluster)
    for _ in range(3):
        engine.tick()
    [run] = keeping.queries.runs(keeping.job_id)
    folder = keeping.left(run.id, 1)
    cluster.tasks[0].outcome = TaskOutcome(kind="done", value={"last": {}})
    for _ in range(2):
        engine.tick()
    assert keeping.state is State.SUCCEEDED
    assert sorted(path.name for path in folder.iterdir()) == ["artifacts", CHECKPOINT]


def test_task_of_a_run_that_extends_another_has_its_folder_and_its_training(extending: _Bench) -> None:
    cluster = _Cluster(complete_caches())
    engine = extending.engine_on(cluster)
    for _ in range(3):
        engine.tick()
    [[task]] = [orders for orders, _ in cluster.trained]
    assert task.extends is not None
    assert task.extends.folder == extending.settings.data_dir.resolve() / "jobs/job_1/run_1/a2"
    assert (task.extends.training.epochs, task.training.epochs) == (2, 3)
    assert task.earlier == ()
