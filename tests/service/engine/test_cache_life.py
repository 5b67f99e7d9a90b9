"""The life of caches in the service: pins over HTTP and on the command line, the quota, and what jobs keep from it."""

import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from sqlalchemy import event

from service.cli import main
from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord
from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from service.db.transitions import transition
from service.engine import cache_leases, process
from service.engine.cache_leases import CacheLeases, LeaseKeeper
from service.engine.scheduler import Scheduler
from service.gpus import GpuWatch
from service.operations.open_files import FILES_WANTED
from service.operations.readiness import EngineParts
from store import Catalog
from store.eviction import full_bytes
from tests.service.api.test_routes import problem
from tests.support.digits import Digits
from tests.support.processes import Processes, events_until, job_of
from tests.support.service_helpers import Api, add_job, finish, make_settings, running_api
from tests.support.store_cases import is_held, make_spec, write_cache
from workers.cluster.ray_cluster import Cluster

pytest_plugins = ["tests.support.service_fixtures"]


def small_cache(root: Path, seed: int = 0) -> str:
    """A complete cache; returns its key."""
    return write_cache(root, make_spec(samples=100, augmentation_seed=seed)).spec.key


# ---------------------------------------------------------------------------------------- HTTP and command line


def test_a_pin_over_http_is_idempotent_shown_and_refuses_deletion(api: Api) -> None:
    key = small_cache(api.settings.caches_dir)
    path = f"/v1/caches/{key}"
    assert api.client.get(path).json()["pinned"] is False
    for _ in range(2):
        response = api.client.post(f"{path}/pin")
        assert response.status_code == 200
        assert response.json()["pinned"] is True
        assert response.json().items() <= api.client.get(path).json().items()
    assert "unpin it first" in problem(api.client.delete(path), 409, "conflict")["detail"]
    for _ in range(2):
        response = api.client.delete(f"{path}/pin")
        assert (response.status_code, response.content) == (204, b"")
        assert api.client.get(path).json()["pinned"] is False
    assert api.client.delete(path).status_code == 204
    for method in ("POST", "DELETE"):
        problem(api.client.request(method, f"{path}/pin"), 404, "not-found")
        problem(api.client.request(method, "/v1/caches/nonsense/pin"), 422, "invalid-request")


@pytest.mark.parametrize(("setting", "shown"), [(0, None), (12345, 12345)])
def test_the_list_says_what_all_caches_take_and_may_take(tmp_path: Path, setting: int, shown: int | None) -> None:
    with running_api(make_settings(tmp_path, caches_max_bytes=setting)) as api:
        for seed in range(2):
            small_cache(api.settings.caches_dir, seed)
        total = sum(entry.size_bytes for entry in api.context.catalog.list())
        body = api.client.get("/v1/caches?limit=1").json()
        assert (len(body["data"]), body["has_more"]) == (1, True)
        assert (body["total_bytes"], body["quota_bytes"]) == (total, shown)


@pytest.mark.parametrize("where", ["over HTTP", "in the folder"])
def test_the_command_line_pins_and_unpins(
    api: Api, where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    key = small_cache(api.settings.caches_dir)
    folder = [] if where == "over HTTP" else ["--data-dir", str(api.settings.data_dir)]

    def retort(*arguments: str) -> tuple[int, str]:
        status = main(["--url", api.url, "cache", *folder, *arguments])
        return status, "".join(capsys.readouterr())

    assert retort("pin", key[:8]) == (0, "")
    assert "complete, pinned" in retort("list")[1]
    assert "complete, pinned" in retort("show", key)[1]
    status, said = retort("delete", key)
    assert status == 1
    assert "unpin it first" in said
    assert retort("unpin", key[:8]) == (0, "")
    assert "pinned" not in retort("list")[1]
    assert retort("delete", key)[0] == 0


# ------------------------------------------------------------------------------------------------ the engine's holds


def test_a_jobs_caches_are_held_until_it_ends_and_count_as_used_then(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    shared, own = (small_cache(tmp_path, seed) for seed in range(2))
    holds = CacheLeases(catalog)
    holds.take("job_1", [shared])
    holds.take("job_2", [shared, own, "a" * 64])
    assert is_held(catalog, own)
    assert catalog.get(own).last_used_at is None
    holds.release("job_2")
    assert catalog.get(own).last_used_at is not None
    assert [is_held(catalog, key) for key in (shared, own)] == [True, False]
    for _ in range(2):
        holds.release("job_1")
        assert not is_held(catalog, shared)


def test_a_cache_that_was_made_again_is_held_again(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    key = small_cache(tmp_path)
    holds = CacheLeases(catalog)
    holds.take("job", [key])
    catalog.delete(key)
    small_cache(tmp_path)
    holds.take("job", [key])
    assert is_held(catalog, key)


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open no file beside those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The smallest number that is free, which the next one would get.
    with open(os.devnull) as file:
        number = file.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_cache_without_a_file_left_for_its_lease_is_held_later(tmp_path: Path) -> None:
    """And a lease is released then, though the last use cannot be noted."""
    catalog = Catalog(tmp_path)
    keys = [small_cache(tmp_path, seed) for seed in range(2)]
    holds = CacheLeases(catalog)
    holds.take("job_1", keys[:1])
    with no_more_files():
        holds.take("job_2", keys)
        holds.release("job_1")
    assert catalog.get(keys[0]).last_used_at is None
    assert [is_held(catalog, key) for key in keys] == [False, False]
    holds.retry(())
    assert [is_held(catalog, key) for key in keys] == [True, True]
    holds.release("job_2")
    assert [is_held(catalog, key) for key in keys] == [False, False]
    assert holds.job_ids == set()


def test_jobs_that_wait_leave_files_to_those_that_are_worked_on(tmp_path: Path) -> None:
    """Half of them; what several jobs name takes one."""
    catalog = Catalog(tmp_path)
    keys = [small_cache(tmp_path, seed) for seed in range(3)]
    holds = CacheLeases(catalog, waiting_max=1)
    for number, key in enumerate(keys):
        holds.take(f"job_{number}", [keys[0], key], waits=True)
    assert [is_held(catalog, key) for key in keys] == [True, False, False]
    holds.retry({"job_2"})
    assert [is_held(catalog, key) for key in keys] == [True, False, True]
    for number in (0, 2):
        holds.release(f"job_{number}")
    assert [is_held(catalog, key) for key in keys] == [True, False, False]
    holds.release("job_1")
    assert not any(is_held(catalog, key) for key in keys)


def test_an_engine_may_open_more_files_than_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    begins = RuntimeError("the engine begins")
    monkeypatch.setattr(process, "open_database", Mock(side_effect=begins))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1 if hard < FILES_WANTED else FILES_WANTED - 1, hard))
    try:
        with pytest.raises(RuntimeError, match=str(begins)):
            process.run_engine(make_settings(tmp_path))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, FILES_WANTED)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_queued_jobs_get_leases_whatever_their_age_and_cost_one_query_at_each_look(
    tmp_path: Path, database: Database, queries: EngineQueries, api_queries: ApiQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an index alone; also one that is queued again, older than all others, until it ends."""
    monkeypatch.setattr(cache_leases, "_IDS_MAX", 2)
    catalog, key = Catalog(tmp_path / "caches"), small_cache(tmp_path / "caches")
    keeper = LeaseKeeper(queries, CacheLeases(catalog, waiting_max=0))
    oldest, *_ = [add_job(api_queries).id for _ in range(5)]
    statements: list[tuple[str, Any]] = []

    def look(*at_work: str) -> int:
        """Reads of a look that is due, and of another one at once."""
        del statements[:]
        keeper._next_s = 0.0
        keeper.look(at_work)
        keeper.look(at_work)
        return len(statements)

    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        if statement.startswith("SELECT"):
            statements.append((statement, parameters))

    event.listen(database._reading, "before_cursor_execute", note)
    # All of them, and five in twos; none names a cache, so none is asked again.
    assert [look(), look()] == [1 + 3, 1]
    if database.url.get_backend_name() == "sqlite":
        with database.read() as session:
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statements[0][0]}", statements[0][1])
            assert "COVERING INDEX" in plan.all()[0][3]
    finish(queries, oldest)
    look()
    with database.write() as session:
        job = session.get_one(JobRecord, oldest)
        assert transition(session, job, State.QUEUED, {"caches": {"train": key}})
    assert look() == 1 + 1
    assert not is_held(catalog, key)
    # There is room now, and the job is known to wait for it.
    assert look(oldest) == 1
    assert is_held(catalog, key)
    assert queries.move_job(oldest, State.CANCELLED)
    look()
    assert not is_held(catalog, key)


class _Watcher:
    """In a cluster's place: looks at the caches whenever work on a job's begins, and starts none."""

    cpus, gpus = 2, 0

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def end_others(self, _: object) -> int:
        return 0

    def build_caches(self, *_: object, **__: object) -> object:
        self._look()
        return SimpleNamespace(actor_group=SimpleNamespace(shares=[]))


def test_a_new_engine_holds_the_caches_of_all_unfinished_jobs_before_it_starts_any(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.make_folders()
    upgrade_to_head(settings.database)
    database = Database(settings.database)
    queries, api_queries = EngineQueries(database), ApiQueries(database)
    catalog = Catalog(settings.caches_dir)
    keys = [small_cache(settings.caches_dir, seed) for seed in range(2)]
    for key in keys:
        add_job(api_queries)
        claimed = queries.claim_job()
        assert claimed is not None
        queries.update_job(claimed.id, caches={"train": key})
    looks: list[list[bool]] = []
    watcher = _Watcher(lambda: looks.append([is_held(catalog, key) for key in keys]))
    engine = Scheduler(settings, queries, EngineParts(queries))
    engine.recover(cast("Cluster", watcher), GpuWatch(promised=0))
    engine.tick()
    database.close()
    assert looks == [[True, True], [True, True]]


def test_an_engine_holds_the_caches_that_a_queued_job_names_before_it_has_its_turn(tmp_path: Path) -> None:
    """Imported ones that were unpinned; until it is cancelled."""
    settings = make_settings(tmp_path)
    settings.make_folders()
    upgrade_to_head(settings.database)
    database = Database(settings.database)
    queries, api_queries = EngineQueries(database), ApiQueries(database)
    catalog, key = Catalog(settings.caches_dir), small_cache(settings.caches_dir, 0)
    looks: list[bool] = []
    watcher = _Watcher(lambda: looks.append(is_held(catalog, key)))
    engine = Scheduler(settings, queries, EngineParts(queries))
    engine.recover(cast("Cluster", watcher), GpuWatch(promised=0))
    add_job(api_queries)
    [job_id] = queries.live_states()
    with database.write() as session:
        session.get_one(JobRecord, job_id).caches = {"train": key}
    # It is claimed in the first, and begins in the second.
    engine.tick()
    engine.tick()
    database.close()
    assert looks == [True]


# ------------------------------------------------------------------------------------------------- the real service


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Digits) -> Iterator[Processes]:
    """API and engine that have the caches of digits, and room for half a training split more."""
    test, train = digits.plan.test_cache, digits.plan.train_cache
    monkeypatch.setenv("RETORT_CACHES_MAX_BYTES", str(full_bytes(test) + full_bytes(train) * 3 // 2))
    processes = Processes(tmp_path / "data")
    try:
        shutil.copytree(digits.folders.caches, processes.data_dir / "caches", dirs_exist_ok=True)
        processes.wait_ready()
        yield processes
    finally:
        processes.close()


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_job_evicts_what_is_not_used_and_fails_with_a_sentence_when_nothing_may_go(
    service: Processes, digits: Digits
) -> None:
    client = service.client
    preprocessing = digits.preprocessing.model_dump(mode="json")
    teacher = client.upload_teacher(digits.teacher_spec.path, preprocessing=preprocessing)["id"]
    old = {"test": digits.plan.test_cache.key, "train": digits.plan.train_cache.key}
    pinned_or_used = rf"\(.*{old['train'][:12]}.*\)"

    def keys() -> set[str]:
        return {cache["key"] for cache in client.caches()}

    def post(seed: int, **training: object) -> dict[str, Any]:
        """A job with training pictures of its own; all share the test split's cache."""
        plan = job_of(teacher, "kd", **training)
        plan["views"]["seed"] = seed
        return client.submit(plan)

    def refusal() -> str:
        done = client.wait(post(1)["id"])
        assert done["state"] == "failed", service.logs()
        assert done["error"]["type"] == "QuotaExceeded"
        assert [run["state"] for run in client.runs(done["id"])] == ["cancelled"]
        assert keys() == set(old.values())
        return str(done["error"]["message"])

    # While a job trains, its caches stay.
    busy = post(0, epochs=500)
    events_until(client, busy["id"], "epoch")
    assert client.job(busy["id"])["caches"] == old
    assert re.search(f"bytes in use {pinned_or_used}", refusal())
    client.cancel(busy["id"])
    assert client.wait(busy["id"])["state"] == "cancelled"

    # A pin outlives both processes.
    client.pin_cache(old["train"])
    for name in ("engine", "api"):
        service.kill(name)
        service.start(name)
    service.wait_ready()
    assert re.search(f"bytes pinned {pinned_or_used}", refusal())

    # Now it may go, and the job that needs its place says so, and keeps its own from the start.
    client.unpin_cache(old["train"])
    posted = post(1)
    events_until(client, posted["id"], "inference_progress")
    assert all(is_held(Catalog(service.data_dir / "caches"), key) for key in keys() | {old["test"]})
    job = client.wait(posted["id"])
    assert job["state"] == "succeeded", (job["error"], service.logs())
    assert keys() == {old["test"], job["caches"]["train"]}
    told = [event["data"]["message"] for event in client.events(job["id"]) if event["type"] == "log"]
    assert any(f"cache {old['train'][:12]}" in line and "was evicted" in line for line in told)
