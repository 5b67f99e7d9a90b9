"""Checkpoints that runs keep when they have succeeded, and the tasks of runs that go on from them."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from tests.service.engine.test_scheduler import _Bench, _Cluster, complete_caches
from workers.cluster.outcomes import TaskOutcome
from workers.run_files import ARTIFACTS, CHECKPOINT


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


def test_run_that_only_writes_the_artifacts_of_the_one_that_it_retries_keeps_its_last_checkpoint(
    keeping: _Bench,
) -> None:
    """Cancelled once it was trained; twice, so that the retry of a retry finds it as well."""
    folders, posting = list[Path](), ApiQueries(keeping.database)
    for _ in range(2):
        job_id = keeping.job_id
        cluster = _Cluster(complete_caches())
        engine = keeping.engine_on(cluster)
        for _ in range(3):
            engine.tick()
        [run] = keeping.queries.runs(job_id)
        folders.append(keeping.settings.jobs_dir / job_id / run.id / "a1")
        folders[-1].mkdir(parents=True)
        if len(folders) == 1:
            with zipfile.ZipFile(folders[0] / CHECKPOINT, "w") as file:
                file.writestr("weights", "of all epochs")
        keeping.job_control.cancel_job(job_id)
        cluster.tasks[0].outcome = TaskOutcome(kind="stopped")
        for _ in range(2):
            engine.tick()
        assert keeping.state is State.CANCELLED
        keeping.job_id = posting.retry_job(job_id, lambda: None)[0].id
    saved = (folders[0] / CHECKPOINT).read_bytes()
    cluster = _Cluster(complete_caches())
    engine = keeping.engine_on(cluster)
    for _ in range(3):
        engine.tick()
    [run] = keeping.queries.runs(keeping.job_id)
    folder = keeping.settings.jobs_dir / keeping.job_id / run.id / "a1"
    (folder / ARTIFACTS).mkdir(parents=True)
    cluster.tasks[0].outcome = TaskOutcome(kind="done", value={"last": {}})
    for _ in range(2):
        engine.tick()
    assert keeping.state is State.SUCCEEDED
    assert (folder / CHECKPOINT).read_bytes() == saved
    # It is of the run that has succeeded: whoever deletes those that it has retried leaves it.
    assert [(each / CHECKPOINT).exists() for each in folders] == [False, False]


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
