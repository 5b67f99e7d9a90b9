"""What the engine decides at moments that no real process can be made to meet: tasks that tell and end on cue.

With real processes, Ray and kills: ``test_engine``, ``test_engine_life``, ``test_kill_storm``.
"""

import errno
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from service.db.database import Database
from service.db.deletions.deletion import Deleter
from service.db.engine_queries import EngineQueries
from service.db.models import EngineRecord, JobRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.scheduling.job_control import JobControl
from service.db.states import State
from service.engine.active_jobs import ACTIVE_JOBS_EVER_MAX, KEY_ACTIVE_JOBS_MAX, LOST_ATTEMPTS_MAX
from service.engine.attempt_files import list_artifacts
from service.engine.housekeeping import Housekeeper
from service.engine.process import _lead
from service.engine.progress import CacheProgress
from service.engine.scheduler import Scheduler
from service.errors import LeaseLost
from service.gpus import GpuWatch, gpu_reason
from service.operations.readiness import EngineParts
from store import Catalog
from tests.support.service_helpers import add_job, make_plan, make_settings, new_database, start_run, teacher_row
from tests.support.store_cases import is_held, make_spec, write_cache
from workers.cluster.actor_group import ActorGroup
from workers.cluster.outcomes import Numbered, TaskOutcome
from workers.cluster.ray_cluster import Cluster
from workers.config.task import CachesTask, TeacherAccuracy, TrainingTask
from workers.config.teacher import TeacherSpec
from workers.run_files import ARTIFACTS, CHECKPOINT
from workers.teacher.cache_plan import CachePlan
from workers.teacher.forwards import ForwardCounter


@dataclass
class _Task:
    """In the place of a cluster's: tells what it was given, and keeps what it is told."""

    events: Sequence[Numbered] = ()
    outcome: TaskOutcome | None = None
    told: list[str] = field(default_factory=list)
    actor_group: ActorGroup = field(default_factory=lambda: ActorGroup([cast("Any", object())], [0]))

    def poll(self) -> tuple[Sequence[Numbered], TaskOutcome | None]:
        return self.events, self.outcome

    def acknowledge(self, _: Sequence[Numbered]) -> None:
        self.events = ()

    def stop(self) -> None:
        self.told.append("stop")

    def pause(self) -> None:
        self.told.append("pause")

    def kill(self) -> None:
        self.told.append("kill")
        self.outcome = vanished()

    def close(self) -> None:
        self.told.append("close")


class _Cluster:
    """In Ray's place: finds no process of an earlier engine, and gives these tasks to whoever builds caches.

    Args:
        endings: how runs end, in the order in which they start; then they go on for ever.

    Attributes:
        trained: the orders that were given to each process, and its share of a GPU.
        started: the processes that were given them.
        attached: by name, what a process that is found again is said to have.
        inferring: the share of a GPU of each process that was to build caches.
        exported: orders, names and first events of what is to be exported.
        exports: the tasks of these.
    """

    cpus = 2

    def __init__(self, *tasks: _Task, gpus: int = 0, endings: Sequence[TaskOutcome] = ()) -> None:
        self.gpus = gpus
        self._tasks, self._endings = iter(tasks), iter(endings)
        self.has_ended_others = False
        self.trained: list[tuple[Sequence[TrainingTask], float]] = []
        self.started: list[ActorGroup] = []
        self.found: dict[str, _Task] = {}
        self.attached: dict[str, tuple[int, float, float]] = {}
        self.inferring: list[float] = []
        self.exported: list[tuple[TrainingTask, str, int]] = []
        self.exports: list[_Task] = []

    def export(self, name: str, order: TrainingTask, first_event: int) -> _Task:
        actor_group = ActorGroup([cast("Any", object())], [0])
        actor_group.exports = True
        self.exported.append((order, name, first_event))
        self.exports.append(_Task(actor_group=actor_group))
        return self.exports[-1]

    def find_export(self, name: str, acknowledged: int) -> _Task | None:
        named = zip(self.exported, self.exports, strict=True)
        return next((task for (_, known, _), task in named if known == name), None)

    def train(self, name: str, orders: Sequence[TrainingTask], cpus: float, gpu_share: float) -> list[_Task]:
        self.trained.append((orders, gpu_share))
        actor_group = ActorGroup(
            [cast("Any", object())] * orders[0].training.actors, range(len(orders)), cpus, gpu_share
        )
        self.started.append(actor_group)
        endings = [next(self._endings, None) for _ in orders]
        for order, ending in zip(orders, endings, strict=True):
            if ending is not None and ending.value is not None:
                ending.value["order"] = order.model_dump_json()
        self.tasks = [_Task(outcome=ending, actor_group=actor_group) for ending in endings]
        return self.tasks

    def attach(
        self, name: str, count: int, acknowledged: Mapping[int, int], cpus: float, gpu_share: float
    ) -> dict[int, _Task]:
        if name not in self.found:
            return {}
        self.attached[name] = (count, cpus, gpu_share)
        self.found[name].actor_group = ActorGroup([cast("Any", object())] * count, acknowledged, cpus, gpu_share)
        return {0: self.found[name]}

    def end_others(self, names: Mapping[str, int]) -> int:
        self.has_ended_others, self.kept = True, names
        return 0

    def build_caches(self, asked: CachesTask) -> _Task:
        assert asked.forwards is not None
        self.forwards_in = asked.forwards
        assert asked.confine_on_gpu
        task = next(self._tasks)
        task.actor_group = ActorGroup([cast("Any", object())], [0], gpu_share=asked.gpu_share)
        task.actor_group.shares = []
        self.inferring.append(asked.gpu_share)
        return task


class _Bench:
    """An engine without processes, with one job that it has not begun."""

    def __init__(self, tmp_path: Path, **plan: object) -> None:
        self.settings = make_settings(tmp_path)
        self.settings.make_folders()
        new_database(self.settings.database)
        self.database = Database(self.settings.database)
        self.queries, self.job_control = EngineQueries(self.database, "this"), JobControl(self.database)
        assert self.queries.acquire_lease()
        self.job_id = add_job(ApiQueries(self.database), **plan).id
        self.gpus = GpuWatch(0)

    def engine(self, *tasks: _Task) -> Scheduler:
        return self.engine_on(_Cluster(*tasks))

    def engine_on(self, cluster: _Cluster, **settings: object) -> Scheduler:
        engine = Scheduler(self.settings.model_copy(update=settings), self.queries, EngineParts(self.queries))
        self.gpus = GpuWatch(cluster.gpus)
        engine.recover(cast("Cluster", cluster), self.gpus)
        return engine

    @property
    def state(self) -> State:
        return self.queries.job(self.job_id).state

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
    bench.gpus.close()
    bench.database.close()


def vanished() -> TaskOutcome:
    return TaskOutcome(kind="vanished", error_type="ActorDiedError", message="it died")


def complete_caches() -> _Task:
    cache = make_spec()
    plan = CachePlan(
        teacher=TeacherSpec(path=Path("t.onnx")),
        train_cache=cache,
        test_cache=cache,
        contract_forwards=0,
        accuracy=TeacherAccuracy(test=1.0, views=0.5),
    )
    forwards = {"teacher_forwards": 0, "teacher_forwards_needed": 1000}
    return _Task(outcome=TaskOutcome(kind="done", value={"plan": plan.model_dump(mode="json"), **forwards}))


def failed(kind: str) -> TaskOutcome:
    return TaskOutcome(kind="failed", error_type=kind, message="so it says.")


def trained() -> TaskOutcome:
    return TaskOutcome(kind="done", value={"trained": True})


def inferred(rows: int, key: str = "0" * 64) -> list[Numbered]:
    """A worker's words on so many rows."""
    names = ("rows_done", "rows_total", "rows_per_s", "eta_s")
    told = {"type": "inference_progress", "split": "train", "cache": key, "rows_inferred": rows}
    return [(0, {**told, **dict.fromkeys(names, rows)})]


@pytest.mark.parametrize(("rows", "state"), [(5, State.RUNNING), (0, State.FAILED)])
def test_losses_of_a_caches_process_count_unless_it_had_inferred_something(
    bench: _Bench, rows: int, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.db.scheduling.backoff.delay_s", lambda _: 0.0)
    tasks = [_Task(inferred(rows), vanished()) for _ in range(LOST_ATTEMPTS_MAX + 1)]
    engine = bench.engine(*tasks, _Task())
    for _ in range(len(tasks) + 2):
        engine.tick()
    assert bench.state is state


def test_a_caches_process_that_was_told_to_stop_and_did_not_listen_is_no_loss(bench: _Bench) -> None:
    tasks = [_Task() for _ in range(LOST_ATTEMPTS_MAX + 2)]
    engine = bench.engine(*tasks, _Task())
    engine.tick()
    for task in tasks:
        engine.tick()
        bench.job_control.pause_job(bench.job_id)
        engine.tick()
        bench.job_control.resume_job(bench.job_id)
        assert task.told == ["stop"]
        # After the grace, as it is killed.
        task.outcome = vanished()
    engine.tick()
    assert bench.state is State.RUNNING


def test_forwards_are_what_the_counters_say_after_kills_of_workers_and_of_the_engine_too(bench: _Bench) -> None:
    """Of what was run since the last event, nobody has told."""
    ends = [failed("NotFinite")] * 2
    cluster = _Cluster(_Task(inferred(5)), _Task(outcome=vanished()), complete_caches(), endings=ends)
    engine = bench.engine_on(cluster)
    for _ in range(2):
        engine.tick()
    ForwardCounter(cluster.forwards_in).add(400)
    # The engine is killed; its successor loses a worker, and completes the caches with another one.
    engine = bench.engine_on(cluster)
    engine.tick()
    ForwardCounter(cluster.forwards_in).add(30)
    for _ in range(2):
        engine.tick()
    assert bench.queries.job(bench.job_id).teacher_forwards == {"run": 430, "avoided": 570}
    assert cluster.forwards_in.is_dir()
    for _ in range(3):
        engine.tick()
    assert bench.state is State.FAILED
    assert bench.queries.job(bench.job_id).teacher_forwards == {"run": 430, "avoided": 570}
    assert not cluster.forwards_in.exists()


def test_nothing_is_avoided_by_caches_that_cost_more_than_a_live_teacher(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches())
    engine = bench.engine_on(cluster)
    for _ in range(2):
        engine.tick()
    ForwardCounter(cluster.forwards_in).add(1001)
    engine.tick()
    assert bench.queries.job(bench.job_id).teacher_forwards == {"run": 1001, "avoided": 0}


def test_the_caches_of_a_paused_job_are_held_until_it_ends_by_the_next_engine_too(bench: _Bench) -> None:
    catalog = Catalog(bench.settings.caches_dir)
    key = write_cache(bench.settings.caches_dir, make_spec(samples=100)).spec.key
    task = _Task(inferred(5, key))
    engine = bench.engine(task)
    for _ in range(2):
        engine.tick()
    bench.job_control.pause_job(bench.job_id)
    engine.tick()
    task.outcome = TaskOutcome(kind="stopped")
    engine.tick()
    assert bench.state is State.PAUSED
    assert task.told == ["stop", "close"]
    engine.tick()
    assert is_held(catalog, key)

    del engine
    assert not is_held(catalog, key)
    engine = bench.engine()
    assert is_held(catalog, key)
    bench.job_control.cancel_job(bench.job_id)
    engine.tick()
    assert not is_held(catalog, key)


def test_the_caches_of_a_job_are_released_when_it_ends_for_the_next_one_may_need_their_place(bench: _Bench) -> None:
    catalog = Catalog(bench.settings.caches_dir)
    key = write_cache(bench.settings.caches_dir, make_spec(samples=100)).spec.key
    task = _Task(inferred(5, key))
    engine = bench.engine(task)
    for _ in range(2):
        engine.tick()
    bench.job_control.cancel_job(bench.job_id)
    engine.tick()
    task.outcome = TaskOutcome(kind="stopped")
    engine.tick()
    assert bench.state is State.CANCELLED
    assert catalog.get(key).last_used_at is not None
    assert not is_held(catalog, key)


@pytest.mark.parametrize(
    ("action", "state"), [(None, State.LOST), ("pause_run", State.PAUSED), ("cancel_run", State.CANCELLED)]
)
def test_a_run_whose_process_is_gone_with_its_engine_leaves_its_checkpoint_alone(
    bench: _Bench, action: str | None, state: State
) -> None:
    """Killed after its artifacts were in place and before anybody knew, it has not succeeded, nor does it look so."""
    bench.queries.claim_job()
    run = bench.queries.runs(bench.job_id)[0]
    assert start_run(bench.queries, run.id) == 1
    folder = bench.left(run.id, 1)
    if action is not None:
        ask: Callable[[str], object] = getattr(bench.job_control, action)
        ask(run.id)
    bench.engine()
    assert bench.queries.run(run.id).state is state
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_forwards_of_a_disk_that_fails_are_what_was_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the engine that asks goes on."""
    ForwardCounter(tmp_path / "forwards").add(300)
    progress = CacheProgress(tmp_path / "forwards", {"run": 400, "avoided": 0})
    assert progress.forwards(1000) == {"run": 400, "avoided": 600}

    def fail(_: Path) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("service.engine.progress.count_forwards", fail)
    assert progress.forwards(1000) == {"run": 400, "avoided": 600}
    assert CacheProgress(tmp_path / "forwards", {"run": 400, "avoided": 0}).forwards()["run"] == 400


def test_what_workers_tell_of_this_machines_folders_is_stored_relative_to_them(bench: _Bench) -> None:
    """Clients read events and errors."""
    data_dir = bench.settings.data_dir.resolve()
    file = data_dir / "caches" / "ab" / "zarr.json"
    told = {"type": "log", "level": "warning", "message": f"{file}: the file is missing"}
    outcome = TaskOutcome(kind="failed", error_type="CacheCorrupt", message=f"{file}: not JSON, see '{data_dir}'")
    engine = bench.engine(_Task([(0, told)], outcome))
    for _ in range(3):
        engine.tick()
    error = bench.queries.job(bench.job_id).error or {}
    assert error["message"] == "caches/ab/zarr.json: not JSON, see 'the data directory'"
    api_queries = ApiQueries(bench.database)
    events, _ = api_queries.events(api_queries.get(JobRecord, bench.job_id), after=0, limit=100)
    assert "caches/ab/zarr.json: the file is missing" in [event.data.get("message") for event in events]


@pytest.mark.parametrize("state", [State.LOST, State.CANCELLED])
def test_of_a_run_that_is_lost_or_cancelled_the_farthest_checkpoint_alone_stays(bench: _Bench, state: State) -> None:
    """An earlier version has left one for each attempt; what was torn is no checkpoint."""
    bench.queries.claim_job()
    run = bench.queries.runs(bench.job_id)[0]
    for attempt in range(1, 12):
        assert start_run(bench.queries, run.id) == attempt
        folder = bench.left(run.id, attempt)
        if attempt < 11:
            with zipfile.ZipFile(folder / CHECKPOINT, "w") as content:
                content.writestr("data", "weights")
            assert bench.queries.move_run(run.id, attempt, State.LOST)
    if state is State.CANCELLED:
        bench.job_control.cancel_run(run.id)
    bench.engine()
    assert bench.queries.run(run.id).state is state
    left = [path.parent.name for path in folder.parent.rglob(CHECKPOINT)]
    assert sorted(left) == ["a10", "a11"]


def test_a_new_engine_removes_checkpoints_that_an_earlier_version_has_left_of_ended_runs(bench: _Bench) -> None:
    bench.queries.claim_job()
    run = bench.queries.runs(bench.job_id)[0]
    for attempt in (1, 2):
        start_run(bench.queries, run.id)
        with zipfile.ZipFile(bench.left(run.id, attempt) / CHECKPOINT, "w") as content:
            content.writestr("data", "weights")
        bench.queries.move_run(run.id, attempt, State.LOST)
    bench.job_control.cancel_run(run.id)
    Housekeeper(bench.settings, bench.queries).collect(is_first=True)
    left = [path.parent.name for path in (bench.settings.jobs_dir / bench.job_id / run.id).rglob(CHECKPOINT)]
    assert left == ["a2"]


def test_a_run_that_has_succeeded_ends_though_what_it_tried_again_is_deleted_meanwhile(bench: _Bench) -> None:
    """The one has ended, so nothing keeps the other."""
    api_queries = ApiQueries(bench.database)
    bench.job_control.cancel_job(bench.job_id)
    again, _ = api_queries.retry_job(bench.job_id, lambda: None)
    bench.queries.claim_job()
    run = bench.queries.runs(again.id)[0]
    attempt = start_run(bench.queries, run.id)
    assert attempt is not None
    assert bench.queries.record_result(run.id, attempt, [], {})
    ended = bench.queries.run(run.id)
    bench.job_control.cancel_job(again.id)
    for other in bench.queries.runs(again.id)[1:]:
        assert other.state is State.CANCELLED
    assert bench.queries.move_job(again.id, State.CANCELLED)
    Deleter(bench.database, bench.settings).delete_job(bench.job_id)
    assert ended.retry_of is not None
    bench.engine()._endings.sweep(ended)


def test_a_job_that_fails_as_a_whole_leaves_checkpoints_alone(bench: _Bench) -> None:
    bench.queries.claim_job()
    run = bench.queries.runs(bench.job_id)[0]
    assert start_run(bench.queries, run.id) == 1
    engine = bench.engine(_Task(outcome=TaskOutcome(kind="failed", error_type="QuotaExceeded", message="no room")))
    folder = bench.left(run.id, 1)
    for _ in range(2):
        engine.tick()
    assert bench.state is State.FAILED
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_an_engine_that_was_stopped_before_it_looked_for_strays_ends_no_process_of_its_successors(
    bench: _Bench,
) -> None:
    """Nothing was unfinished, so it has written nothing that would have told it."""
    assert EngineQueries(bench.database, "other").acquire_lease(ttl_s=0)
    cluster = _Cluster()
    with pytest.raises(LeaseLost, match="this ends: another engine leads"):
        Scheduler(bench.settings, bench.queries, EngineParts(bench.queries)).recover(
            cast("Cluster", cluster), GpuWatch(0)
        )
    assert not cluster.has_ended_others


def test_an_engine_that_is_told_to_end_before_it_leads_takes_no_lease(bench: _Bench) -> None:
    assert bench.queries.release_lease()
    ending = threading.Event()
    ending.set()
    assert not _lead(bench.queries, ending, EngineParts(bench.queries))
    assert bench.queries.lease().holder is None


def test_an_engine_that_waits_for_the_lease_says_who_has_it_since_when_and_by_which_clock(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat from the future, too, and then it leads."""
    with bench.database.write() as session:
        ahead = utc_now() + timedelta(hours=2)
        session.execute(update(EngineRecord).values(holder="elsewhere:pid:7:ab", heartbeat_at=ahead))
    monkeypatch.setattr("service.engine.process.LEASE_TTL_S", 0.05)
    challenger = EngineQueries(bench.database, "challenger")
    with capture_logs() as logs:
        assert _lead(challenger, threading.Event(), EngineParts(challenger))
    assert challenger.lease().holder == "challenger"
    [line] = logs
    assert line["log_level"] == "warning"
    assert (line["leader"], line["heartbeat_at"]) == ("elsewhere:pid:7:ab", ahead.isoformat())
    assert line["clock"] == "this machine's clock"
    assert "s ahead of this machine's clock" in line["reason"]


# -------------------------------------------------------------------------------------------------------------- GPUs


def test_runs_whose_gpu_does_not_work_are_tried_once_more_and_the_gpus_are_tried_again(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches(), gpus=1, endings=[failed("DeviceUnavailable")] * 4)
    engine = bench.engine_on(cluster)
    for _ in range(6):
        engine.tick()
    assert bench.state is State.FAILED
    for run in bench.queries.runs(bench.job_id):
        assert (run.state, run.attempt) == (State.FAILED, 2)
        assert run.error is not None
        assert run.error["message"] == "so it says. (It was tried twice, in a fresh process each time)"
    assert all(order.has_gpu_share for orders, _ in cluster.trained for order in orders)
    # By a real process, which finds none here.
    while (told := gpu_reason(bench.queries.gpus())) is None:
        engine.tick()
    assert "a GPU is promised to runs and none works: " in told


@pytest.mark.parametrize(("failures", "state"), [(1, State.RUNNING), (2, State.FAILED)])
def test_caches_whose_gpu_does_not_work_are_tried_once_more(bench: _Bench, failures: int, state: State) -> None:
    tasks = [_Task(outcome=failed("DeviceUnavailable")) for _ in range(failures)]
    engine = bench.engine_on(_Cluster(*tasks, _Task(), gpus=1))
    for _ in range(5):
        engine.tick()
    assert bench.state is state
    if state is State.FAILED:
        assert "tried twice" in (bench.queries.job(bench.job_id).error or {})["message"]


def test_runs_that_are_out_of_memory_are_tried_once_more_on_a_gpu_of_their_own(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches(), gpus=1, endings=[failed("OutOfMemoryError")] * 4)
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(8):
        engine.tick()
    assert [share for _, share in cluster.trained] == [0.5, 0.5, 1.0, 1.0]
    assert [orders[0].memory_fraction for orders, _ in cluster.trained] == [0.5, 0.5, 1.0, 1.0]
    for run in bench.queries.runs(bench.job_id):
        assert (run.state, run.attempt) == (State.FAILED, 2)
        assert run.error is not None
        assert "a whole GPU if it was on one, to itself, after it had shared one" in run.error["message"]


def test_a_run_that_wants_a_whole_gpu_has_it_for_itself(bench: _Bench) -> None:
    """Two halves are taken by one run after it has failed, and the other run goes on until it ends."""
    cluster = _Cluster(complete_caches(), gpus=1, endings=[failed("OutOfMemoryError")])
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(8):
        engine.tick()
    assert [share for _, share in cluster.trained] == [0.5, 0.5]
    states = [run.state for run in bench.queries.runs(bench.job_id)]
    assert states == [State.LOST, State.RUNNING]


@pytest.mark.parametrize(("device", "gpus", "share"), [("cpu", 1, 0.0), ("auto", 1, 0.5), ("auto", 0, 0.0)])
def test_the_share_of_a_gpu_is_that_of_the_device(tmp_path: Path, device: str, gpus: int, share: float) -> None:
    bench = _Bench(tmp_path, training={"epochs": 3, "device": device})
    cluster = _Cluster(complete_caches(), gpus=gpus)
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(3):
        engine.tick()
    assert [given for _, given in cluster.trained] == [share, share]
    assert all(order.has_gpu_share is (share > 0) for orders, _ in cluster.trained for order in orders)
    bench.database.close()


def test_a_job_that_asks_for_cuda_without_a_gpu_fails_at_once(tmp_path: Path) -> None:
    bench = _Bench(tmp_path, training={"epochs": 3, "device": "cuda"})
    bench.engine().tick()
    error = bench.queries.job(bench.job_id).error
    assert error is not None
    assert error["type"] == "DeviceUnavailable"
    assert "training.device is 'cuda', but the engine has no GPU" in error["message"]
    bench.database.close()


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.0), ("auto", 0.5)])
def test_inference_of_a_job_takes_a_share_of_a_gpu_unless_the_job_is_for_the_cpu(
    tmp_path: Path, device: str, share: float
) -> None:
    bench = _Bench(tmp_path, training={"epochs": 3, "device": device})
    cluster = _Cluster(_Task(), gpus=1)
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(2):
        engine.tick()
    assert cluster.inferring == [share]
    bench.database.close()


@pytest.mark.parametrize(("shares", "gpu_share"), [([0.5, 1.0], 0.5), ([1.0], 1.0)])
def test_inference_that_is_out_of_memory_is_tried_once_more_on_a_gpu_of_its_own(
    bench: _Bench, shares: list[float], gpu_share: float
) -> None:
    cluster = _Cluster(*[_Task(outcome=failed("OutOfMemory")) for _ in shares], gpus=1)
    engine = bench.engine_on(cluster, gpu_share=gpu_share)
    for _ in range(6):
        engine.tick()
    assert cluster.inferring == shares
    assert bench.state is State.FAILED
    error = bench.queries.job(bench.job_id).error
    assert error is not None
    assert ("It had a whole GPU to itself, after it had shared one" in error["message"]) == (len(shares) > 1)


def test_engine_whose_slots_one_key_fills_takes_the_job_of_another(bench: _Bench) -> None:
    """Each job of the one more urgent than all before it, and none of them ever ends."""
    api_queries = ApiQueries(bench.database)
    teacher = api_queries.add_teacher(teacher_row(), lambda: None)[0]
    engine = bench.engine(*[_Task() for _ in range(ACTIVE_JOBS_EVER_MAX)])
    for number in range(KEY_ACTIVE_JOBS_MAX + 2):
        api_queries.add_job(make_plan(), teacher, None, priority=number + 1, key_id="greedy")
        engine.tick()
    patient = api_queries.add_job(make_plan(), teacher, None, priority=-100, key_id="patient")[0]
    engine.tick()
    active = [job.record.key_id for job in engine._jobs.values()]
    assert active.count("greedy") == KEY_ACTIVE_JOBS_MAX < ACTIVE_JOBS_EVER_MAX
    assert bench.queries.job(patient.id).state is State.RUNNING


@pytest.mark.parametrize("kind", ["InvalidTeacher", "SessionLost"])
def test_engine_names_the_teacher_in_the_error_of_a_job_that_it_has_failed(
    bench: _Bench, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.db.scheduling.backoff.delay_s", lambda _: 0.0)
    lost = TaskOutcome(kind="vanished", error_type=kind, message="its process ended")
    ending = failed(kind) if kind == "InvalidTeacher" else lost
    engine = bench.engine(*[_Task(outcome=ending) for _ in range(LOST_ATTEMPTS_MAX + 1)])
    for _ in range(2 * LOST_ATTEMPTS_MAX + 4):
        engine.tick()
    job = bench.queries.job(bench.job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert f"teacher {job.teacher['name']!r} ({job.teacher_id}): " in job.error["message"]


def test_a_run_that_is_found_again_holds_what_it_was_started_with_and_not_what_runs_take_today(tmp_path: Path) -> None:
    """Half of the GPU and one of two cores, where a run would now have a quarter and half a core: two more fit."""
    bench = _Bench(tmp_path, methods=["ce", "kd", "rld", "dkd"], group_size=1)
    cluster = _Cluster(complete_caches(), complete_caches(), gpus=1)
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(3):
        engine.tick()
    name = bench.queries.runs(bench.job_id)[0].actor
    assert name is not None
    assert [share for _, share in cluster.trained] == [0.5, 0.5]

    cluster.found[name] = _Task()
    engine = bench.engine_on(cluster, gpu_share=0.25)
    for _ in range(4):
        engine.tick()
    assert cluster.attached == {name: (1, 1.0, 0.5)}
    assert [share for _, share in cluster.trained[2:]] == [0.25, 0.25]
    bench.database.close()


def test_a_run_that_had_too_little_memory_has_a_whole_gpu_under_the_next_engine_too(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches(), complete_caches(), gpus=1, endings=[failed("OutOfMemoryError")])
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(4):
        engine.tick()
    assert [run.state for run in bench.queries.runs(bench.job_id)] == [State.LOST, State.RUNNING]
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(4):
        engine.tick()
    assert [share for _, share in cluster.trained] == [0.5, 0.5, 1.0]


def test_a_run_that_needs_a_whole_gpu_is_told_as_waiting_until_one_is_empty(tmp_path: Path) -> None:
    """A half of each of two GPUs is free: by sums that would be one."""
    bench = _Bench(tmp_path, methods=["ce", "kd", "rld"], group_size=1)
    cluster = _Cluster(complete_caches(), gpus=2, endings=[failed("OutOfMemoryError")])
    engine = bench.engine_on(cluster, gpu_share=0.5)
    for _ in range(3):
        engine.tick()
    first, second, third = bench.queries.runs(bench.job_id)
    assert len(cluster.started) == 3
    for actor_group, gpu in zip(cluster.started[1:], ("0", "1"), strict=True):
        actor_group.note(0, gpu)
    for _ in range(3):
        engine.tick()
    waits = bench.queries.run(first.id)
    why = f"waits for a whole GPU: 2 of 2 are partly or wholly used by run {second.id}, run {third.id}"
    assert (waits.state, waits.waits_for) == (State.LOST, why)
    events, _ = ApiQueries(bench.database).events(waits, 0, 1000)
    told = [event.data["message"] for event in events if event.type == "log"]
    assert told == [why]
    assert [share for _, share in cluster.trained] == [0.5] * 3

    cluster.tasks[0].outcome = failed("NotFinite")
    for _ in range(2):
        engine.tick()
    begun = bench.queries.run(first.id)
    assert (begun.state, begun.waits_for) == (State.RUNNING, None)
    assert cluster.trained[-1][1] == 1.0
    bench.database.close()


# ------------------------------------------------------------------------------------------------------------ exports


def test_a_run_that_is_trained_on_a_gpu_is_exported_while_the_next_one_trains(tmp_path: Path) -> None:
    """A successor finds its export, and one that is lost has the next attempt find the run trained."""
    bench = _Bench(tmp_path, group_size=1)
    cluster = _Cluster(complete_caches(), _Task(), gpus=1, endings=[trained()])
    engine = bench.engine_on(cluster)
    for _ in range(5):
        engine.tick()
    first, second = bench.queries.runs(bench.job_id)
    assert [(orders[0].stage, orders[0].run.index) for orders, _ in cluster.trained] == [("train", 0), ("train", 1)]
    [(order, name, _)] = cluster.exported
    assert (order.stage, order.run.index, order.has_gpu_share) == ("export", 0, False)
    assert order.folder == cluster.trained[0][0][0].folder
    assert [first.state, second.state] == [State.RUNNING, State.RUNNING]

    engine = bench.engine_on(cluster)
    states = [run.state for run in bench.queries.runs(bench.job_id)]
    assert states == [State.RUNNING, State.LOST]
    assert name in cluster.kept
    cluster.exports[0].outcome = vanished()
    engine.tick()
    assert bench.queries.run(first.id).state is State.LOST
    bench.database.close()


def test_no_more_are_exported_at_once_than_there_are_cores(tmp_path: Path) -> None:
    bench = _Bench(tmp_path, methods=["ce", "kd", "rld"])
    cluster = _Cluster(complete_caches(), gpus=1, endings=[trained()] * 3)
    engine = bench.engine_on(cluster)
    for _ in range(5):
        engine.tick()
    assert len(cluster.exported) == cluster.cpus == 2
    cluster.exports[0].outcome = failed("ExportMismatch")
    engine.tick()
    assert len(cluster.exported) == 3
    bench.database.close()


def test_a_run_that_was_told_to_pause_and_is_trained_is_not_exported(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches(), gpus=1)
    engine = bench.engine_on(cluster)
    for _ in range(3):
        engine.tick()
    bench.job_control.pause_job(bench.job_id)
    for task in cluster.tasks:
        task.outcome = trained()
    for _ in range(2):
        engine.tick()
    assert bench.state is State.PAUSED
    assert not cluster.exported


def test_artifacts_are_listed_without_what_a_file_manager_has_put_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "a1" / ARTIFACTS
    folder.mkdir(parents=True)
    for name in ("result.json", "._result.json", ".DS_Store", "desktop.ini"):
        (folder / name).write_text("{}")
    assert [row["name"] for row in list_artifacts(tmp_path / "a1", tmp_path)] == ["result.json"]


@pytest.mark.parametrize(("action", "state"), [("pause_run", State.PAUSED), ("cancel_run", State.CANCELLED)])
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_run_that_is_told_to_stop_while_its_artifacts_are_made_is_ended_at_once(
    tmp_path: Path, action: str, state: State, gpus: int
) -> None:
    """By a process that exports, and by the one that has trained it: neither listens meanwhile."""
    bench = _Bench(tmp_path, methods=["ce", "kd"], group_size=1)
    cluster = _Cluster(complete_caches(), gpus=gpus, endings=[trained()] if gpus else [])
    engine = bench.engine_on(cluster)
    for _ in range(4):
        engine.tick()
    run = bench.queries.runs(bench.job_id)[0]
    work = engine._jobs[bench.job_id].runs[run.id].task
    exporting = cast("_Task", work)
    if not gpus:
        exporting.events = [(0, {"type": "epoch", "epoch": run.epochs, "metrics": {}})]
        engine.tick()
    assert exporting.told == []
    folder = bench.left(run.id, 1)
    ask: Callable[[str], object] = getattr(bench.job_control, action)
    ask(run.id)
    engine.tick()
    assert "kill" in exporting.told
    assert bench.queries.run(run.id).state is state
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]
    if not gpus and state is State.PAUSED:
        # Resumed, it tells of no epoch again, and exports at once.
        bench.job_control.resume_run(run.id)
        engine.tick()
        again = cast("_Task", engine._jobs[bench.job_id].runs[run.id].task)
        bench.job_control.pause_run(run.id)
        engine.tick()
        assert "kill" in again.told
    bench.database.close()


def test_a_run_that_is_still_training_is_asked_to_stop_and_not_killed(bench: _Bench) -> None:
    cluster = _Cluster(complete_caches())
    engine = bench.engine_on(cluster)
    for _ in range(3):
        engine.tick()
    run = bench.queries.runs(bench.job_id)[0]
    task = cast("_Task", engine._jobs[bench.job_id].runs[run.id].task)
    bench.job_control.pause_run(run.id)
    engine.tick()
    assert task.told == ["pause"]
