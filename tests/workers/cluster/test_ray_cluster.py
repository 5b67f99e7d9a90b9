"""Real Ray: blocks are fanned out, what dies is replaced or reported, what is told to stop stops."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from store import SparseEncoding
from tests.support.digits import SMALL, Digits
from tests.support.process_table import processes_with
from tests.support.store_cases import digests
from workers import signals
from workers.cluster import actor_group, inference_workers, pool_events, ray_api
from workers.cluster.actor_group import ActorGroup
from workers.cluster.actors import Task
from workers.cluster.block_queue import ACTOR_DEATHS_MAX, BlockQueue, WorkerLost
from workers.cluster.deaths import Death
from workers.cluster.inference_pool import InferenceActor
from workers.cluster.inference_workers import InferenceWorker, InferenceWorkers
from workers.cluster.outcomes import Numbered, Share, TaskOutcome
from workers.cluster.pool_events import WaitingLog
from workers.cluster.ray_cluster import Cluster, export_name
from workers.config.cache import CacheOptions
from workers.config.task import CachesTask, Folders
from workers.events import Log, ignore, never
from workers.teacher.accuracy import measure_teacher
from workers.teacher.build_caches import build_caches
from workers.teacher.cache_plan import CachePlan
from workers.teacher.forwards import count_forwards
from workers.teacher.plan_caches import plan_caches

pytestmark = pytest.mark.timeout(600)

# Names that no machine has, but which Ray takes for GPUs.
NO_GPUS = ("7001", "7002", "7003")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two cores, and three GPUs that only Ray believes in: what asks for none of them works on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(NO_GPUS))
        cluster = Cluster(tmp_path_factory.mktemp("data"), cpus=2, gpus=3)
    yield cluster
    cluster.close()


def actor_processes(kind: str) -> list[int]:
    """Processes of this test's own cluster that Ray named after this actor class, as ``ray::KIND.method``."""
    token = f"RAY_AUTH_TOKEN={os.environ['RAY_AUTH_TOKEN']}"
    return [pid for pid, line in processes_with(token).items() if f"ray::{kind}" in line]


def is_running(pid: int) -> bool:
    """Whether this process can still do anything: one that has ended may wait to be collected."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def trainer_of(folder: Path) -> int:
    """The process that writes this attempt's log; those of the tests before need a moment to end."""
    return int(json.loads((folder / "log.jsonl").read_text().splitlines()[0])["pid"])


def new_name() -> str:
    return f"run-{uuid.uuid4().hex}-a1"


def follow(task: Task, seen: Callable[[dict[str, Any]], None] = lambda event: None) -> TaskOutcome:
    """Poll to the end, as the engine does; ``seen`` is told every event."""
    numbers = []
    while True:
        events, outcome = task.poll()
        for number, event in events:
            numbers.append(number)
            seen(event)
        task.acknowledge(events)
        if outcome is not None:
            assert numbers == list(range(len(numbers)))
            task.close()
            return outcome
        time.sleep(0.05)


def test_inference_pool_with_a_killed_actor_commits_every_block_once_and_the_same_bytes(
    cluster: Cluster, digits: Digits, tmp_path: Path
) -> None:
    folders, peace = (Folders(data_dir=tmp_path / name, data_root=tmp_path) for name in ("shared", "peace"))
    # Many views, so that there are blocks enough to be in the middle of.
    views = digits.views.model_copy(update={"count": 24})
    training = SMALL.model_copy(update={"device": "cpu"})
    job = digits.job("kd").model_copy(update={"views": views, "training": training})
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    seen_first: dict[Path, os.stat_result] = {}
    pending_at_the_kill = 0
    between_the_splits: set[int] = set()

    def kill_one_in_the_middle(event: dict[str, Any]) -> None:
        nonlocal pending_at_the_kill
        told[event["type"]].append(event)
        for record in folders.caches.glob("*/commits/*.json"):
            seen_first.setdefault(record, record.stat())
        if event["type"] == "cache_ready" and event["split"] == "test":
            between_the_splits.update(actor_processes("InferenceActor"))
        if event["type"] == "inference_progress" and event["split"] == "train" and not pending_at_the_kill:
            # Those of the first cache infer the second one, too.
            assert between_the_splits
            assert between_the_splits <= {*actor_processes("InferenceActor")}
            pending_at_the_kill = event["rows_total"] - event["rows_done"]
            os.kill(actor_processes("InferenceActor")[0], signal.SIGKILL)

    counters = tmp_path / "forwards"
    outcome = follow(
        cluster.build_caches(CachesTask(job=job, folders=folders, forwards=counters)), kill_one_in_the_middle
    )
    assert outcome.kind == "done", outcome.message
    assert outcome.value is not None
    assert pending_at_the_kill > 0
    replaced = [log["message"] for log in told["log"] if "died and is replaced" in log["message"]]
    assert len(replaced) == 1
    assert "signal 9 (SIGKILL)" in replaced[0]
    # The device of the job is that of its teacher, too.
    assert told["contract_checked"][0]["provider_reason"] == "asked for"
    assert "inference on CPUExecutionProvider: asked for" in [log["message"] for log in told["log"]]
    plan = CachePlan.model_validate(outcome.value["plan"])
    specs = (plan.test_cache, plan.train_cache)
    assert [ready["rows_inferred"] for ready in told["cache_ready"]] == [spec.views * spec.samples for spec in specs]
    # What was run is what was committed and what the killed one had in hand, but for the batch that it was counting.
    needed = told["contract_checked"][0]["forwards"] + sum(spec.views * spec.samples for spec in specs)
    lost = plan.train_cache.rows_in(range(4))
    assert needed - 256 <= count_forwards(counters) <= needed + lost
    # A record that was there stayed, whoever had the block in its queue again.
    assert len(seen_first) == sum(spec.blocks for spec in specs)
    for record, before in seen_first.items():
        assert (record.stat().st_ino, record.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    shutil.copytree(digits.folders.datasets, peace.datasets)
    assert plan_caches(job, peace, ignore, never, threads=1) == plan.model_copy(update={"accuracy": None})
    build_caches(plan, peace, ignore, never, threads=1)
    assert measure_teacher(plan, peace).accuracy == plan.accuracy
    for spec in specs:
        shared, alone = (digests(root.caches / spec.key) for root in (folders, peace))
        del shared["LAST_USED"], alone["LAST_USED"]
        assert shared == alone

    # Everything is there: the second time no teacher is run.
    again = follow(cluster.build_caches(CachesTask(job=job, folders=folders)))
    assert again.value is not None
    assert again.value["teacher_forwards"] == 0


def test_build_caches_refuses_a_lossy_cache_after_one_block_and_says_so(
    cluster: Cluster, digits: Digits, tmp_path: Path
) -> None:
    sparse = SparseEncoding(kind="sparse", top=1, tail=2, temperature=4.0)
    job = digits.job("kd").model_copy(update={"cache": CacheOptions(encoding=sparse)})
    told: list[tuple[int, int]] = []

    def hear(event: dict[str, Any]) -> None:
        if event["type"] == "inference_progress" and event["split"] == "train":
            told.append((event["rows_done"], event["rows_inferred"]))

    task = CachesTask(job=job, folders=Folders(data_dir=tmp_path, data_root=tmp_path))
    outcome = follow(cluster.build_caches(task), hear)
    assert outcome.error_type == "LossyCache"
    block = digits.train.samples
    assert told[-1] == (block, block)
    assert all(0 <= inferred <= done <= block for done, inferred in told)


def test_task_that_waits_for_its_share_is_stopped_at_once(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    [task] = cluster.train(new_name(), [digits.order("kd", tmp_path)], cpus=64, gpu_share=0.0)
    assert task.poll() == ([], None)
    task.stop()
    assert follow(task).kind == "vanished"


@pytest.mark.slow
def test_cluster_trains_runs_side_by_side(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    orders = [digits.order(method, tmp_path / method) for method in ("kd", "rld")]
    tasks = [task for order in orders for task in cluster.train(new_name(), [order], cpus=1, gpu_share=0.0)]
    outcomes = [follow(task) for task in tasks]
    assert [outcome.kind for outcome in outcomes] == ["done", "done"]
    assert all((order.folder / "artifacts/student.onnx").is_file() for order in orders)


def test_cluster_exports_a_trained_run_in_another_process_and_in_the_same_one_if_called_twice(
    cluster: Cluster, digits: Digits, tmp_path: Path
) -> None:
    order = digits.order("kd", tmp_path).model_copy(update={"stage": "train"})
    name = new_name()
    trained = follow(*cluster.train(name, [order], cpus=1, gpu_share=0.25))
    assert trained.value == {"trained": True, "order": order.model_dump_json()}
    assert not (tmp_path / "artifacts").exists()

    to_export = order.model_copy(update={"stage": "export", "told_epoch": SMALL.epochs})
    cluster.export(export_name(name, 0), to_export, 7)
    task = cluster.export(export_name(name, 0), to_export, 7)
    numbers, kinds, outcome = [], [], None
    while outcome is None:
        events, outcome = task.poll()
        task.acknowledge(events)
        numbers += [number for number, _ in events]
        kinds += [event["type"] for _, event in events]
        time.sleep(0.02)
    assert outcome.kind == "done", outcome.message
    assert numbers == list(range(7, 7 + len(numbers)))
    assert set(kinds) == {"log", "finished"}
    assert (tmp_path / "artifacts/student.onnx").is_file()
    said = [json.loads(line)["event"] for line in (tmp_path / "artifacts/log.jsonl").read_text().splitlines()]
    stages = ["attempt begins", "attempt trained", "export begins", "attempt succeeded"]
    assert [event for event in said if event in stages] == stages
    task.close()

    # Killed in the middle of it: what is half-written is nobody's any more once that is told, and can be swept away.
    task = cluster.export(export_name(new_name(), 0), to_export, 0)
    while not (tmp_path / "artifacts.partial/student.safetensors").exists():
        task.poll()
        time.sleep(0.02)
    [exporting] = actor_processes("TrainingActor")
    task.kill()
    assert follow(task).kind == "vanished"
    while is_running(exporting):
        time.sleep(0.02)
    task.close()

    # Nothing is trained in its place where there is no GPU.
    (tmp_path / "checkpoint.pt").unlink()
    lost = follow(cluster.export(export_name(new_name(), 0), to_export, 0))
    assert (lost.kind, lost.error_type) == ("vanished", "CheckpointLost")


def test_cluster_trains_runs_that_share_their_batches_in_one_process(
    cluster: Cluster, digits: Digits, tmp_path: Path
) -> None:
    """One of them is stopped, and is no reason for the others to end."""
    training = SMALL.model_copy(update={"epochs": 4})
    # Exporting them would take twice as long as all the rest.
    orders = [
        digits.order(method, tmp_path / method, training).model_copy(update={"stage": "train"})
        for method in ("kd", "rld", "ce")
    ]
    tasks = cluster.train(new_name(), orders, cpus=1, gpu_share=0.0)
    assert {task.actor_group for task in tasks} == {tasks[0].actor_group}

    def stop_the_second(event: dict[str, Any]) -> None:
        if event["type"] == "epoch" and event["epoch"] == 1:
            tasks[1].stop()

    kinds = [follow(tasks[1], stop_the_second).kind, follow(tasks[0]).kind, follow(tasks[2]).kind]
    assert kinds == ["stopped", "done", "done"]
    assert len({trainer_of(order.folder) for order in orders}) == 1
    # Ended with the last of its tasks; Ray needs a moment for it, and the time limit of the test is the only other end.
    while actor_processes("TrainingActor"):
        time.sleep(0.05)


def test_task_of_a_student_in_two_processes_ends_once(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"actors": 2})
    order = digits.order("kd", tmp_path / "two", training)
    outcome = follow(*cluster.train(new_name(), [order], cpus=1, gpu_share=0.0))
    assert outcome.kind == "done", outcome.message
    assert outcome.value is not None
    assert outcome.value["last"]["top1"] > 0.6


def test_cluster_attach_finds_runs_by_name_which_are_paused_stopped_or_killed_one_by_one(
    cluster: Cluster, digits: Digits, tmp_path: Path
) -> None:
    """Three runs of one process: events go on with the numbers that they had, and each end is its own."""
    training = SMALL.model_copy(update={"epochs": 500})
    methods, name = ("kd", "rld", "ce"), new_name()
    orders = [digits.order(method, tmp_path / method, training) for method in methods]
    tasks = cluster.train(name, orders, cpus=1, gpu_share=0.0)
    told: list[tuple[int, dict[str, Any]]] = []
    while len(told) < 4:
        # Not acknowledged, so they are told again.
        told, outcome = tasks[0].poll()
        assert outcome is None
        time.sleep(0.02)
    found = cluster.attach(name, 1, {0: told[2][0], 1: 0, 2: 0})
    assert sorted(found) == [0, 1, 2]
    found[0].pause()
    numbers, outcome = [], None
    while outcome is None:
        events, outcome = found[0].poll()
        found[0].acknowledge(events)
        numbers += [number for number, _ in events]
        time.sleep(0.02)
    assert outcome.kind == "paused", outcome
    assert numbers == list(range(2, len(numbers) + 2))
    assert (tmp_path / "kd/checkpoint.pt").exists()

    found[1].stop()
    assert follow(found[1]).kind == "stopped"
    assert not (tmp_path / "rld/artifacts").exists()
    assert (tmp_path / "rld/checkpoint.pt").exists()

    os.kill(trainer_of(tmp_path / "ce"), signal.SIGKILL)
    assert follow(found[2]).kind == "vanished"
    found[0].close()
    assert cluster.attach(new_name(), 1, {0: 0}) == {}


def why_inference_waits(gpu_share: float) -> str:
    told: list[str] = []
    WaitingLog(gpu_share, lambda event: told.append(event.message) if isinstance(event, Log) else None).report()
    [message] = told
    return message


def test_student_in_two_processes_vanishes_with_one_of_them_and_end_others_gives_back_all_shares(
    cluster: Cluster, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost while the first one does not notice, as with NCCL, which waits for it: here the first one is stopped."""
    name = new_name()
    order = digits.order("kd", tmp_path / "two", SMALL.model_copy(update={"actors": 2, "epochs": 500}))
    [task] = cluster.train(name, [order], cpus=1, gpu_share=0.0)
    told: list[Numbered] = []
    while not any(event["type"] == "epoch" for _, event in told):
        told, lost = task.poll()
        assert lost is None
        time.sleep(0.02)
    monkeypatch.setattr(pool_events, "_WAITING_S", 0.0)
    assert "inference waits for 1 of the 2 CPU cores, of which 0 are free; 1 other processes" in why_inference_waits(0)
    assert why_inference_waits(0.25) == "inference has its share of the machine: Ray is starting its processes"
    # An engine that was stopped may have left such a one.
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    caches = cluster.build_caches(CachesTask(job=digits.job("kd"), folders=folders))
    while not caches.poll()[0]:
        time.sleep(0.02)

    first = trainer_of(order.folder)
    [second] = {*actor_processes("TrainingActor")} - {first}
    os.kill(first, signal.SIGSTOP)
    os.kill(second, signal.SIGKILL)
    while lost is None:
        _, lost = task.poll()
        time.sleep(0.02)
    assert lost.kind == "vanished"
    assert "process 2 of the 2 of this student is gone: the process " in (lost.message or "")
    assert "signal 9 (SIGKILL)" in (lost.message or "")
    assert not lost.is_node_fault
    assert (order.folder / "checkpoint.pt").exists()
    assert not (order.folder / "artifacts").exists()

    while cluster.attach(name, 2, {0: 0}):
        time.sleep(0.02)
    assert cluster.end_others({}) == 2
    assert follow(caches).kind == "vanished"
    # These want both cores, of which the lost run had one each.
    workers = InferenceWorkers(InferenceActor, 0.0, several=True)
    try:
        for _ in range(cluster.cpus + 2):
            workers.start()
        while sum(worker.is_started for worker in workers.all) < cluster.cpus:
            time.sleep(0.02)
        # Not those that they wait for: or runs whose turn it is would wait for all inference that was ever asked for.
        assert workers.shares() == [Share(cpus=1.0, gpu=0.0)] * cluster.cpus
    finally:
        workers.close()


# ------------------------------------------------------------------------------------ GPUs that only Ray believes in


def test_inference_workers_put_one_actor_on_each_gpu_and_a_smaller_one_where_none_has_room(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(workers: InferenceWorkers) -> InferenceWorker:
        workers.start()
        return workers.all[-1]

    def wait_for(worker: InferenceWorker) -> Sequence[int | str]:
        while not worker.is_started:
            time.sleep(0.02)
        return worker.gpu_ids()

    first, second = (InferenceWorkers(InferenceActor, 0.25, several=True) for _ in range(2))
    try:
        workers = [new(first) for _ in range(3)]
        taken = [wait_for(worker) for worker in workers]
        assert sorted(str(gpu) for [gpu] in taken) == sorted(NO_GPUS)
        assert sorted(share.gpu_id or "" for share in first.shares()) == sorted(NO_GPUS)

        waiting = new(second)
        second.add_small()
        second.add_small()
        [_, small] = second.all
        there = wait_for(small)
        assert not waiting.is_started
        # What holds nothing yet is told as asked for.
        held = [Share(cpus=0.0, gpu=0.5001), Share(cpus=0.0, gpu=0.25, gpu_id=str(there[0]))]
        assert second.shares() == held
        second.retire_small()
        assert second.all == [waiting, small]
        # Room for the other one, on the very GPU.
        first.end(workers[taken.index(there)])
        assert wait_for(waiting) == there
        second.retire_small()
        assert second.all == [waiting]

        # Idle, it gives its GPU back: the cache that its job wants next may be in another job's hands.
        monkeypatch.setattr(inference_workers, "_IDLE_S", 0.0)
        with second.in_use(0):
            pass
        while second.all:
            time.sleep(0.02)
    finally:
        first.close()
        second.close()


def test_task_of_a_run_with_a_gpu_that_does_not_work_fails(cluster: Cluster, digits: Digits, tmp_path: Path) -> None:
    order = digits.order("kd", tmp_path).model_copy(update={"has_gpu_share": True})
    name = new_name()
    [task] = cluster.train(name, [order], cpus=1, gpu_share=0.5)
    found = cluster.attach(name, 1, {0: 0}, cpus=1, gpu_share=0.5)[0]
    assert found.actor_group.shares == [Share(cpus=1, gpu=0.5)]
    outcome = follow(found)
    assert (outcome.kind, outcome.error_type) == ("failed", "DeviceUnavailable")
    # Which GPU it is on, it says itself.
    assert [share.gpu_id for share in found.actor_group.shares if share.gpu_id in NO_GPUS]
    task.close()
    assert "a GPU was promised to this run" in (outcome.message or "")


# --------------------------------------------------------------------------------------------------- without Ray


def test_block_queue_allows_any_number_of_deaths_but_not_of_the_same_blocks() -> None:
    queue, done, killed = BlockQueue(range(10), 4), [], Death("killed")
    while queue:
        blocks = queue.take()
        for _ in range(ACTOR_DEATHS_MAX):
            queue.give_back(blocks, killed)
            assert queue.take() == blocks
        for _ in range(2 * ACTOR_DEATHS_MAX):
            queue.give_back(blocks, Death("others have the memory", is_node_fault=True))
            assert queue.take() == blocks
        done.append(blocks)
    assert done == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(WorkerLost, match="4 inference actors died with the same blocks, the last one: killed"):
        queue.give_back([8, 9], killed)


def test_signals_that_come_while_handlers_are_swapped_wait_and_meet_the_callers() -> None:
    met: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: met.append(number))
    try:
        with signals.waiting():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # To this thread: Ray's own would take it.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert not met
        assert met == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_are_left_to_the_main_thread_and_a_thread_may_wait_as_well() -> None:
    masks: list[set[signal.Signals]] = []

    def work() -> None:
        signals.leave_to_main_thread()
        with signals.waiting():
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert masks[0] >= set(signals.ENDING)


class Process:
    """Stands for one of a student's processes: notes what it is told, answers how its work has ended."""

    def __init__(self, outcome: TaskOutcome | None = None) -> None:
        self.told: list[int] = []
        self.stop = SimpleNamespace(remote=self.told.append)
        self.answer = SimpleNamespace(remote=lambda *_: ray_api.ray.put(([], outcome, None)))


@pytest.mark.usefixtures("cluster")
def test_task_stop_reaches_a_later_process_of_a_student_that_waits_for_its_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one waits for it meanwhile, in an exchange that hears nothing."""
    monkeypatch.setattr(actor_group, "_PEER_GRACE_S", 0.0)
    stopped = TaskOutcome(kind="stopped", message="while it waited for pictures")
    first, second = Process(), Process(stopped)
    task = Task(ActorGroup([first, second], [0]), has_begun=True)
    task.stop()
    assert (first.told, second.told) == ([0], [0])
    while (found := task.poll()[1]) is None:
        time.sleep(0.01)
    assert found == stopped
