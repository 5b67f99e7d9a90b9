"""Real Ray: blocks are fanned out, what dies is replaced or reported, what is told to stop stops."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store import CacheReader, Catalog
from tests.digits import SMALL, Digits
from workers.caching import CachePlan
from workers.cluster import Cluster, Outcome, Task
from workers.config import Folders

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(cpus=2, gpus=0)
    yield cluster
    cluster.close()


def actor_processes(kind: str) -> list[int]:
    """Processes of this test's own cluster that Ray named after this actor class, as ``ray::KIND.method``."""
    token = f"RAY_AUTH_TOKEN={os.environ['RAY_AUTH_TOKEN']}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"ray::{kind}".encode() in path.read_bytes() and token in (path.parent / "environ").read_bytes():
                found.append(int(path.parent.name))
    return found


def follow(task: Task, seen: Callable[[dict[str, Any]], None] = lambda event: None) -> Outcome:
    """Poll to the end, as the engine does; ``seen`` is told every event."""
    numbers = []
    while True:
        events, outcome = task.poll()
        for number, event in events:
            numbers.append(number)
            seen(event)
        if outcome is not None:
            assert numbers == list(range(len(numbers)))
            task.close()
            return outcome
        time.sleep(0.02)


def test_caches_are_built_by_actors_and_equal_those_built_here(
    cluster: Cluster, digits: Digits, tmp_path: Path
) -> None:
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    outcome = follow(cluster.build_caches(digits.job("kd"), folders))
    assert outcome.kind == "done", outcome.message
    assert outcome.value is not None
    plan = CachePlan.model_validate(outcome.value["plan"])
    assert plan.train_cache == digits.plan.train_cache
    assert Catalog(folders.caches).verify(plan.train_cache.key).ok
    here, there = (CacheReader(root, plan.train_cache) for root in (digits.folders.caches, folders.caches))
    for view in range(plan.train_cache.views):
        assert abs(here.logits(view) - there.logits(view)).max() < 1e-2
    # Everything is there: the second time no teacher is run.
    again = follow(cluster.build_caches(digits.job("kd"), folders))
    assert again.value is not None
    assert again.value["teacher_forwards"] == 0


def test_an_inference_actor_that_is_killed_is_replaced(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    # Many views, so that there are blocks enough to be in the middle of.
    views = digits.views.model_copy(update={"count": 60})
    job = digits.job("kd").model_copy(update={"views": views})
    logs: list[str] = []
    killed: list[int] = []

    def kill_one_in_the_middle(event: dict[str, Any]) -> None:
        if event["type"] == "log":
            logs.append(event["message"])
        if event["type"] == "inference_progress" and event["split"] == "train" and not killed:
            killed.extend(actor_processes("_InferenceActor")[:1])
            os.kill(killed[0], signal.SIGKILL)

    outcome = follow(cluster.build_caches(job, folders), kill_one_in_the_middle)
    assert outcome.kind == "done", outcome.message
    assert any("died and is replaced" in line for line in logs)
    assert outcome.value is not None
    assert Catalog(folders.caches).verify(CachePlan.model_validate(outcome.value["plan"]).train_cache.key).ok


def test_a_task_that_waits_for_its_share_is_stopped_at_once(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    task = cluster.train(digits.order("kd", tmp_path), cpus=64, gpu_share=1.0)
    assert task.poll() == ([], None)
    task.stop()
    assert follow(task).kind == "vanished"


def test_runs_train_side_by_side(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    orders = [digits.order(method, tmp_path / method) for method in ("kd", "rld")]
    tasks = [cluster.train(order, cpus=1, gpu_share=1.0) for order in orders]
    outcomes = [follow(task) for task in tasks]
    assert [outcome.kind for outcome in outcomes] == ["done", "done"]
    assert all((order.folder / "artifacts/student.onnx").is_file() for order in orders)


def test_a_users_mistake_comes_back_as_one(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"optimizer": SMALL.optimizer.model_copy(update={"lr": 1e30})})
    outcome = follow(cluster.train(digits.order("kd", tmp_path, training), cpus=1, gpu_share=1.0))
    assert outcome.kind == "failed"
    assert outcome.error_type == "NotFinite"
    assert outcome.is_user_error
    assert "before the update" in (outcome.message or "")


def test_a_run_that_is_told_to_stop_stops(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 500})
    task = cluster.train(digits.order("kd", tmp_path, training), cpus=1, gpu_share=1.0)

    def stop_at_the_first_epoch(event: dict[str, Any]) -> None:
        if event["type"] == "epoch" and event["epoch"] == 1:
            task.stop()

    assert follow(task, stop_at_the_first_epoch).kind == "stopped"
    assert not (tmp_path / "artifacts").exists()
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_process_that_is_killed_has_vanished(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 500})
    task = cluster.train(digits.order("kd", tmp_path, training), cpus=1, gpu_share=1.0)

    def kill_at_the_first_epoch(event: dict[str, Any]) -> None:
        if event["type"] == "epoch" and event["epoch"] == 1:
            [process] = actor_processes("_TrainingActor")
            os.kill(process, signal.SIGKILL)

    outcome = follow(task, kill_at_the_first_epoch)
    assert outcome.kind == "vanished"
    assert not outcome.is_user_error
