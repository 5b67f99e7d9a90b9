"""Setting work aside while the disk is full, read-only or fails: what ends so, what is told of it, and what goes on."""

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import SafetensorError
from sqlalchemy import update

from service.cli.job_commands.job_view import JobView
from service.db.database import Database, DatabaseDiskError, DatabaseFull
from service.db.engine_queries import EngineQueries
from service.db.models import EngineRecord, JobRecord, Json, RunRecord
from service.db.scheduling.backoff import DISK_TRIES, TryBackoff
from service.db.states import State
from service.engine.disk import EngineDisk
from service.engine.scheduler import Scheduler
from service.operations import disk
from service.operations.disk import Freeable
from service.operations.readiness import EngineParts
from store import DiskFull
from tests.service.api.test_routes import problem
from tests.service.engine.test_scheduler import _Bench, _Cluster, _Task, complete_caches, failed, inferred, vanished
from tests.support.full_disk import on_a_small_disk
from tests.support.service_helpers import Api, PostgresServer, start_run
from tests.support.store_cases import make_spec, write_cache
from workers.cluster.outcomes import TaskOutcome, outcome
from workers.disk_errors import disk_error
from workers.errors import DiskLow, InvalidDataset
from workers.run_files import CHECKPOINT
from workers.training.checkpoints.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from tests.support.digits import Digits

pytest_plugins = ["tests.support.service_fixtures"]
LOW = "the disk ran full while writing a checkpoint"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    bench = _Bench(tmp_path)
    yield bench
    bench.gpus.close()
    bench.database.close()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> "Room":
    return Room(monkeypatch)


class Room:
    """Says how many bytes are free, and whether the disk can be written, at the boundary to the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes = 1 << 40
        self.is_read_only = False
        self.error: int | None = None
        system = {"statvfs": self.statvfs, "fsync": self.fsync, "ST_RDONLY": os.ST_RDONLY, "strerror": os.strerror}
        monkeypatch.setattr(disk, "os", SimpleNamespace(**system))
        monkeypatch.setattr(disk, "PROBE_S", 0.0)
        monkeypatch.setattr("service.engine.disk.RESUME_S", 0.0)
        monkeypatch.setattr("service.db.scheduling.backoff.DISK_TRIES", replace(DISK_TRIES, base_s=0.0))

    def statvfs(self, _: Path) -> SimpleNamespace:
        flag = os.ST_RDONLY if self.is_read_only else 0
        return SimpleNamespace(f_flag=flag, f_bavail=self.free_bytes, f_frsize=1, f_files=0, f_favail=0)

    def fsync(self, _: int) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))


def tick_until(engine: Scheduler, holds: Callable[[], bool]) -> None:
    for _ in range(20):
        if holds():
            return
        engine.tick()
    pytest.fail("it never is so")


def disk_part(bench: _Bench) -> Json:
    """What the engine says of its disk."""
    with bench.database.read() as session:
        part: Json = (session.get_one(EngineRecord, 1).parts or {})["disk"]
        return part


def full() -> TaskOutcome:
    return TaskOutcome(kind="failed", error_type="DiskLow", message=LOW, disk="ENOSPC")


# ------------------------------------------------------------------------------------------------- what is recognised


def raised(*errors: BaseException) -> BaseException:
    """The last of these, each raised while the one before it was handled."""
    try:
        if len(errors) > 1:
            raise errors[-1] from raised(*errors[:-1])
        raise errors[0]
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "ENOSPC"),
        (OSError(errno.EROFS, "read-only", "/x"), "EROFS"),
        (raised(OSError(errno.EDQUOT, "quota"), DiskLow("no room")), "EDQUOT"),
        (DiskLow("no room"), "ENOSPC"),
        (DiskFull("no room", 1, 0), "ENOSPC"),
        # An array file whose disk fails is reported as one that cannot be read.
        (raised(OSError(errno.EIO, "i/o"), InvalidDataset("x cannot be read")), "EIO"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "ENOSPC"),
        (
            RuntimeError("[enforce fail at inline_container.cc:858] PytorchStreamWriter failed writing file data/0"),
            "ENOSPC",
        ),
        (OSError("4096 requested and 1024 written"), "ENOSPC"),
        (RuntimeError("onnxruntime: write failed: Input/output error"), "EIO"),
        (OSError(errno.ENOENT, "gone"), None),
        (PermissionError(errno.EACCES, "denied"), None),
        # What a client has named is no error of the disk.
        (InvalidDataset("there is no folder 'No space left on device'"), None),
        (ValueError("loss is nan"), None),
    ],
)
def test_disk_error_is_found_behind_what_libraries_make_of_it(error: BaseException, code: str | None) -> None:
    assert disk_error(error) == code
    if isinstance(error, Exception):
        assert outcome(error).disk == code


def test_disk_error_of_numpy_is_found_on_a_file_that_takes_no_more() -> None:
    with Path("/dev/full").open("wb") as file, pytest.raises(OSError, match="requested and 0 written") as caught:
        np.ones(1 << 16).tofile(file)
    assert disk_error(caught.value) == "ENOSPC"


@pytest.mark.parametrize(
    ("error", "is_damage"),
    [
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (MemoryError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), True),
        (OSError(errno.EINVAL, "Invalid argument"), True),
        (KeyError("storage"), True),
    ],
)
def test_load_checkpoint_passes_over_a_damaged_file_but_not_over_one_that_may_be_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_damage: bool
) -> None:
    """What it holds would be trained again, and the next checkpoint would take it away."""
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    assert load_checkpoint([tmp_path], "x") is None

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("workers.training.checkpoints.checkpoint.torch.load", fail)
    if is_damage:
        assert load_checkpoint([tmp_path], "x") is None
        return
    with pytest.raises(type(error)):
        load_checkpoint([tmp_path], "x")


# --------------------------------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize(
    "ending", [full(), TaskOutcome(kind="failed", error_type="OSError", message="EROFS", disk="EROFS")]
)
def test_runs_that_end_because_of_the_disk_are_set_aside_with_the_reason_and_go_on_by_themselves(
    bench: _Bench, room: Room, ending: TaskOutcome
) -> None:
    """From their checkpoints, as no failure and no loss; their job is set aside once nothing else is left of it."""
    cluster = _Cluster(complete_caches(), endings=[ending, ending])
    engine = bench.engine_on(cluster)
    tick_until(engine, lambda: bool(cluster.trained))
    room.is_read_only = True
    tick_until(engine, lambda: bench.state is State.PAUSED)
    job = bench.queries.job(bench.job_id)
    assert (job.state, (job.set_aside or {})["code"]) == (State.PAUSED, ending.disk)
    for run in bench.queries.runs(bench.job_id):
        assert (run.state, run.attempt, run.lost_attempts, run.error) == (State.PAUSED, 1, 0, None)
        assert run.set_aside is not None
        assert run.set_aside["message"].startswith(str(ending.message))
        assert "mount it writable again" in run.set_aside["message"]
    room.is_read_only = False
    cluster._tasks = iter([complete_caches()])
    tick_until(engine, lambda: all(run.attempt == 2 for run in bench.queries.runs(bench.job_id)))
    runs = bench.queries.runs(bench.job_id)
    assert [(run.state, run.attempt, run.set_aside) for run in runs] == [(State.RUNNING, 2, None)] * 2


def test_below_the_reserve_nothing_is_claimed_begun_or_resumed_until_there_is_a_margin(
    bench: _Bench, room: Room
) -> None:
    floor = 100 << 20
    engine = bench.engine_on(_Cluster(_Task()), disk_floor_bytes=floor)
    room.free_bytes = floor - 1
    for _ in range(3):
        engine.tick()
    assert bench.state is State.QUEUED
    part = disk_part(bench)
    assert part["ok"] is False
    assert (
        "100.0 MiB stay in reserve (RETORT_DISK_FLOOR_BYTES); work goes on by itself once 116.0 MiB" in part["reason"]
    )
    room.free_bytes = floor + (1 << 20)
    engine.tick()
    assert bench.state is State.QUEUED
    room.free_bytes = floor + (16 << 20)
    engine.tick()
    assert bench.state is State.RUNNING
    assert disk_part(bench)["ok"] is True
    assert disk_part(bench)["last_error"]["message"] == part["reason"]


def test_runs_of_a_claimed_job_wait_below_the_reserve_and_say_why(bench: _Bench, room: Room) -> None:
    """Whether their caches are complete or not."""
    engine = bench.engine_on(_Cluster(complete_caches()), disk_floor_bytes=100)
    bench.queries.claim_job()
    engine.recover(engine._context.cluster, bench.gpus)
    room.free_bytes = 99
    for _ in range(2):
        engine.tick()
    first, second = bench.queries.runs(bench.job_id)
    assert "99 B are free for" in (first.waits_for or "")
    assert (first.state, second.waits_for) == (State.QUEUED, None)
    room.free_bytes = 1 << 40
    for _ in range(4):
        engine.tick()
    assert [run.state for run in bench.queries.runs(bench.job_id)] == [State.RUNNING] * 2


def test_a_disk_that_fails_to_write_is_found_by_writing_and_believed_again_by_writing(
    bench: _Bench, room: Room
) -> None:
    engine = bench.engine_on(_Cluster(_Task()))
    for number, code in ((errno.EIO, "EIO"), (errno.EDQUOT, "EDQUOT")):
        room.error = number
        engine.tick()
        assert engine._disk.fault is not None
        assert engine._disk.fault.code == code
    assert bench.state is State.QUEUED
    room.error = None
    engine.tick()
    assert bench.state is State.RUNNING


def test_caches_that_end_because_of_the_disk_set_their_job_aside(bench: _Bench, room: Room) -> None:
    """With the runs that wait for them; and again, later each time."""
    tasks = [_Task(outcome=full()) for _ in range(2)]
    engine = bench.engine(*tasks, _Task())
    tick_until(engine, lambda: bench.state is State.PAUSED)
    job = bench.queries.job(bench.job_id)
    assert (job.state, (job.set_aside or {})["code"]) == (State.PAUSED, "ENOSPC")
    assert job.error is None
    assert [run.state for run in bench.queries.runs(bench.job_id)] == [State.PAUSED] * 2
    tick_until(engine, lambda: all(task.told for task in tasks))
    tick_until(engine, lambda: bench.state is State.RUNNING)
    assert [task.told for task in tasks] == [["close"]] * 2


def test_try_backoff_of_a_disk_that_has_failed_for_weeks_is_that_of_an_hour() -> None:
    backoff = TryBackoff()
    for _ in range(1100):
        backoff.count("run")
    assert not backoff.is_due("run")
    backoff.reset("run")
    assert backoff.is_due("run")


def test_set_job_aside_leaves_an_ordinary_pause_where_clients_have_paused_every_run(bench: _Bench, room: Room) -> None:
    """Or its document would say that it goes on by itself, and nobody would have it do so."""
    engine = bench.engine(_Task())
    tick_until(engine, lambda: bench.state is State.RUNNING)
    with bench.database.write() as session:
        session.execute(update(RunRecord).values(state=State.PAUSED))
    attempt = bench.queries.job(bench.job_id).attempt
    assert bench.queries.set_job_aside(bench.job_id, attempt, {"code": "ENOSPC", "message": "full", "since": "now"})
    job = bench.queries.job(bench.job_id)
    assert (job.state, job.set_aside) == (State.PAUSED, None)


def test_what_gets_nowhere_is_tried_later_each_time_and_at_once_when_it_has_got_somewhere(
    bench: _Bench, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.db.scheduling.backoff.DISK_TRIES", DISK_TRIES)
    clock = [1000.0]
    monkeypatch.setattr("service.db.scheduling.backoff.time", SimpleNamespace(monotonic=lambda: clock[0]))
    kept = EngineDisk(bench.settings, bench.queries, EngineParts(bench.queries))
    for wait_s in (5.0, 10.0, 20.0):
        kept.count("run_1")
        clock[0] += wait_s - 0.1
        assert not kept._backoff.is_due("run_1")
        clock[0] += 0.1
        assert kept._backoff.is_due("run_1")
    for _ in range(20):
        kept.count("run_1")
    clock[0] += 600.0
    assert kept._backoff.is_due("run_1")
    kept.has_got_on("run_1")
    kept.count("run_1")
    clock[0] += 5.0
    assert kept._backoff.is_due("run_1")


@pytest.mark.parametrize(("is_read_only", "state"), [(True, State.PAUSED), (False, State.LOST)])
def test_a_process_that_vanishes_is_no_loss_if_the_disk_is_found_to_be_bad(
    bench: _Bench, room: Room, is_read_only: bool, state: State
) -> None:
    """A page that cannot be read or written ends it by a signal."""
    cluster = _Cluster(complete_caches(), endings=[vanished(), vanished()])
    engine = bench.engine_on(cluster)
    tick_until(engine, lambda: bool(cluster.trained))
    room.is_read_only = is_read_only
    run = bench.queries.runs(bench.job_id)[0]
    work = engine._jobs[bench.job_id].runs[run.id]
    engine._run_stage.poll(engine._jobs[bench.job_id], run.id, work)
    run = bench.queries.run(run.id)
    assert (run.state, run.lost_attempts) == (state, int(not is_read_only))


def test_artifacts_that_cannot_be_listed_because_of_the_disk_set_a_run_aside(
    bench: _Bench, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("service.engine.run_stage.list_artifacts", fail)
    engine = bench.engine_on(
        _Cluster(complete_caches(), endings=[TaskOutcome(kind="done", value={}) for _ in range(2)])
    )
    tick_until(engine, lambda: bench.state is State.PAUSED)
    for run in bench.queries.runs(bench.job_id):
        assert (run.state, run.error) == (State.PAUSED, None)
        assert "the run's artifacts cannot be listed" in (run.set_aside or {})["message"]


def test_a_disk_that_lets_nothing_be_removed_does_not_end_the_engine(
    bench: _Bench, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("service.engine.endings.sweep_attempts", fail)
    monkeypatch.setattr("store.catalog.write_atomically", fail)
    key = write_cache(bench.settings.caches_dir, make_spec(samples=100)).spec.key
    engine = bench.engine(_Task(inferred(5, key), failed("InvalidTeacher")))
    tick_until(engine, lambda: bench.state is State.FAILED)


# ------------------------------------------------------------------------------------------------------- what is told


def test_a_job_that_is_set_aside_says_so_in_its_document_its_events_and_to_who_watches(api: Api) -> None:
    """A client's pause makes it an ordinary one, a client's resume has it tried at once."""
    job = api.post_job()
    first, second = job["run_ids"]
    api.records.claim_job()
    reason = {"code": "ENOSPC", "message": "it is full", "since": "2026-01-01T00:00:00Z"}
    for run in (first, second):
        assert start_run(api.records, run) == 1
        assert api.records.set_run_aside(run, 1, reason) is State.PAUSED
    assert api.records.settle_job(job["id"], 1)
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["set_aside"] == reason
    assert api.client.get(f"/v1/runs/{first}").json()["set_aside"] == reason
    events = api.client.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    view = JobView.of(job, [{"id": run, "name": run[-2:], "epochs": 3} for run in job["run_ids"]])
    said = [view.apply(event) for event in events]
    assert said[-1] == "job set aside, it goes on by itself: it is full"
    assert f"{first[-2:]}: set aside: it is full" in said

    assert api.client.post(f"/v1/runs/{first}/pause").json()["set_aside"] is None
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["set_aside"] == reason
    assert api.records.resume_set_aside([first, second]) == [second]
    assert api.records.run(first).state is State.PAUSED
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"
    assert api.client.post(f"/v1/runs/{first}/resume").json()["state"] == "queued"


def test_a_client_that_pauses_a_job_that_is_set_aside_keeps_it_paused(api: Api) -> None:
    job = api.post_job()["id"]
    claimed = api.records.claim_job()
    assert claimed is not None
    assert api.records.set_job_aside(job, 1, {"code": "EIO", "message": "m", "since": "2026-01-01T00:00:00Z"})
    paused = api.client.post(f"/v1/jobs/{job}/pause").json()
    assert (paused["state"], paused["set_aside"]) == ("paused", None)
    assert api.records.runs_aside() == []
    view = JobView.of({"id": job}, [])
    for event in api.client.get(f"/v1/jobs/{job}/events").json()["data"]:
        view.apply(event)
    assert view.note == f"paused, this waits until `retort resume {job}`"


def test_a_job_that_is_set_aside_is_an_ordinary_pause_once_its_last_run_to_go_on_has_failed(api: Api) -> None:
    job = api.post_job()
    assert api.records.claim_job() is not None
    assert api.records.set_job_aside(job["id"], 1, {"code": "EIO", "message": "m", "since": "2026-01-01T00:00:00Z"})
    first, *others = job["run_ids"]
    for run_id in others:
        assert api.records.move_run(run_id, 0, State.FAILED)
    assert api.records.job(job["id"]).set_aside is not None
    assert api.records.move_run(first, 0, State.FAILED)
    assert api.records.job(job["id"]).set_aside is None


def test_messages_say_which_command_frees_how_much(bench: _Bench) -> None:
    """Of caches that nobody needs, and of the checkpoints of jobs that have ended."""
    settings, job = bench.settings, bench.job_id
    free = write_cache(settings.caches_dir, make_spec(samples=100))
    needed = write_cache(settings.caches_dir, make_spec(samples=200))
    with bench.database.write() as session:
        session.get_one(JobRecord, job).caches = {"train": needed.spec.key}
    for name, size in (("job_gone", 3 << 20), (job, 5 << 20)):
        folder = settings.jobs_dir / name / "run" / "a1"
        folder.mkdir(parents=True)
        (folder / CHECKPOINT).write_bytes(bytes(size))
    sentence = Freeable(settings, bench.database).sentence()
    size_bytes = sum(path.stat().st_size for path in (settings.caches_dir / free.spec.key).rglob("*") if path.is_file())
    assert f"`retort cache delete KEY` can free {disk.size(size_bytes)} in 1 caches" in sentence
    assert "3.0 MiB are checkpoints of jobs that have ended (`retort gc --dry-run` lists what can go)" in sentence


# ------------------------------------------------------------------------------------------------------- the database


def small(database: Database) -> None:
    """Let the file grow no further, as a full disk does."""
    with database.read() as session:
        connection = session.connection().connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")


def test_a_full_sqlite_database_is_507_with_the_reason(api: Api) -> None:
    """And reading goes on."""
    body = api.job_body(methods=["kd"], seeds=list(range(500)))
    # The connection that was used last is used next.
    small(api.context.database)
    told = problem(api.client.post("/v1/jobs", json=body), 507, "database-full")
    assert "its disk is full (database or disk is full)" in told["detail"]
    assert "bytes are free in" in told["detail"]
    assert "`retort gc --dry-run`" in told["detail"]
    assert api.client.get("/v1/jobs").status_code == 200


def test_a_read_only_sqlite_database_is_503_with_the_reason(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as made:
        made.execute("CREATE TABLE t (x)")
    database = Database(f"sqlite:///file:{tmp_path / 'db'}?mode=ro&uri=true")

    def write() -> None:
        with database.write() as session:
            session.connection().exec_driver_sql("INSERT INTO t VALUES (1)")

    with closing(database), pytest.raises(DatabaseDiskError, match="it can only be read") as caught:
        write()
    assert not isinstance(caught.value, DatabaseFull)


@pytest.mark.parametrize(("state", "is_full"), [("53100", True), ("25006", False), ("58030", False)])
def test_a_postgresql_database_whose_disk_is_full_or_fails_says_so(
    postgres: PostgresServer, state: str, is_full: bool
) -> None:
    """As the server tells: here a function of its own does."""
    with closing(Database(postgres.url("retort"))) as database:
        raise_it = f"DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '{state}'; END $$"
        with pytest.raises(DatabaseDiskError, match="could not extend file") as caught, database.write() as session:
            session.connection().exec_driver_sql(raise_it)
    assert isinstance(caught.value, DatabaseFull) == is_full


class _FullDatabase(EngineQueries):
    """Whose lease cannot be renewed for some time, because the disk is full."""

    def __init__(self, times: int, renewed: threading.Event) -> None:
        self.holder, self._times, self._renewed = "engine", times, renewed

    def acquire_lease(
        self,
        ttl_s: float = 0.0,
        gone: str | None = None,
        begin: Callable[[Json | None], Json | None] | None = None,
        *,
        renews: bool = False,
    ) -> bool:
        self._times -= 1
        if self._times > 0:
            raise DatabaseFull("full")
        self._renewed.set()
        return True


def test_a_heartbeat_outlives_a_full_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other engine could take the lease."""
    from service.engine.process import Heartbeat

    monkeypatch.setattr("service.engine.process.RENEW_S", 0.005)
    monkeypatch.setattr("service.engine.process.LEASE_TTL_S", 0.02)
    ending, renewed = threading.Event(), threading.Event()
    queries = _FullDatabase(30, renewed)
    with Heartbeat(queries, ending, EngineParts(queries)):
        assert renewed.wait(30)
    assert not ending.is_set()


# ------------------------------------------------------------------------------------------------------ the real thing


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, digits: "Digits") -> Path:
    """A folder with the digits' teacher, on a disk that has room."""
    folder = tmp_path_factory.mktemp("given")
    shutil.copy(digits.teacher_spec.path, folder / "teacher.onnx")
    (folder / "preprocessing.json").write_text(digits.preprocessing.model_dump_json())
    return folder


def on_a_disk(tmp_path: Path, given: Path, kind: str) -> dict[str, Any]:
    (tmp_path / "disk").mkdir()
    told = on_a_small_disk("200m", tmp_path / "disk", given, Path(kind), module="tests.support.disk_service")
    assert {one["state"] for job in told["after"].values() for one in job} == {"succeeded"}
    return told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_service_whose_disk_fills_up_sets_its_jobs_aside_and_goes_on_when_there_is_room(
    tmp_path: Path, given: Path
) -> None:
    told = on_a_disk(tmp_path, given, "full")
    [job] = told["jobs"].values()
    assert [one["state"] for one in job] == ["paused"] * 3
    assert {one["set_aside"]["code"] for one in job} == {"ENOSPC"}
    assert "while writing a checkpoint of" in job[0]["set_aside"]["message"]
    assert told["ready"]["ready"] is False
    assert told["ready"]["parts"]["disk"]["ok"] is False
    assert set(told["attempts"].values()) == {2}
    assert told["ready after"]["ready"] is True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_service_whose_disk_is_read_only_claims_nothing(tmp_path: Path, given: Path) -> None:
    told = on_a_disk(tmp_path, given, "read-only")
    assert {one["state"] for job in told["jobs"].values() for one in job} == {"queued"}
    assert "mount it writable again" in told["ready"]["parts"]["disk"]["reason"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_service_whose_database_is_full_says_so_and_goes_on_when_there_is_room(tmp_path: Path, given: Path) -> None:
    told = on_a_disk(tmp_path, given, "database")
    assert told["problem"]["status"] == 507
    assert "0 bytes are free" in told["problem"]["detail"]
    assert (told["engine"], told["engine after"]) == (True, True)
    assert told["ready"]["parts"]["disk"]["ok"] is False
