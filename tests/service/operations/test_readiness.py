"""Readiness in parts: what each says, what is kept of its last error, what a look costs; and an engine without Ray."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.api.metrics import Metrics
from service.cli import main
from service.cli.processes.background_service import BackgroundService, ServiceEnded
from service.cli.processes.supervisor import GAVE_UP, command
from service.db.database import Database, DatabaseFull
from service.db.engine_queries import EngineQueries
from service.db.models import EngineRecord, utc_now
from service.doctor import installation, packages
from service.engine import process
from service.engine.process import RAY_STARTS_MAX, Heartbeat, _start_ray, run_engine
from service.errors import RayFailed
from service.gpus import GpuReport
from service.operations.data_dir import open_database
from service.operations.readiness import PARTS, RAY_STARTS, EngineParts, ReadinessCheck
from tests.support.service_helpers import Api, make_settings
from workers.cluster.head_folder import HeadFailed, machine_folder
from workers.cluster.ray_cluster import Cluster

pytest_plugins = ["tests.support.service_fixtures"]


@pytest.fixture
def parts(api: Api) -> EngineParts:
    """Of an engine that leads on the API's database, and whose Ray works."""
    queries = EngineQueries(api.context.database, "engine")
    parts = EngineParts(queries)
    assert queries.acquire_lease(begin=parts.begin)
    return parts


def ready(api: Api) -> dict[str, Any]:
    """The document, whose status is that of its ``ready``."""
    response = api.client.get("/readyz")
    document: dict[str, Any] = response.json()
    assert response.status_code == (200 if document["ready"] else 503)
    return document


def test_readyz_has_every_part_and_is_not_ready_before_ray_has_started(api: Api, parts: EngineParts) -> None:
    document = ready(api)
    assert tuple(document["parts"]) == PARTS
    assert document["reasons"] == [RAY_STARTS]
    assert [name for name, part in document["parts"].items() if part["ok"]] == [name for name in PARTS if name != "ray"]
    assert document["parts"]["ray"]["last_error"] is None
    parts.set("ray", None)
    document = ready(api)
    assert document["ready"]
    assert all(part["ok"] for part in document["parts"].values())


@pytest.mark.parametrize("name", ["ray", "disk"])
def test_readyz_has_the_engines_report_of_a_part_its_time_and_its_last_error(
    api: Api, parts: EngineParts, name: str
) -> None:
    parts.set("ray", None)
    parts.set(name, "it does not work")
    first = ready(api)
    assert first["reasons"] == ["it does not work"]
    parts.set(name, "it works even less")
    second = ready(api)["parts"][name]
    assert second["ok"] is False
    assert second["since"] == first["parts"][name]["since"]
    parts.set(name, None)
    third = ready(api)
    assert third["ready"]
    assert third["parts"][name] == {
        "ok": True,
        "reason": None,
        "since": None,
        "last_error": second["last_error"],
    }
    assert second["last_error"]["message"] == "it works even less"


def test_readiness_parts_of_an_engine_that_is_gone_are_unknown_and_the_next_one_keeps_their_last_errors(
    api: Api, parts: EngineParts
) -> None:
    parts.set("ray", "it died")
    with api.context.database.write() as session:
        session.get_one(EngineRecord, 1).heartbeat_at = utc_now() - timedelta(hours=1)
    document = ready(api)
    assert document["parts"]["lease"]["ok"] is False
    assert "last heard of" in document["reasons"][0]
    for name in ("ray", "gpu", "clock"):
        assert document["parts"][name]["ok"] is None
    assert document["parts"]["ray"]["last_error"]["message"] == "it died"

    queries = EngineQueries(api.context.database, "next")
    assert queries.acquire_lease(begin=EngineParts(queries).begin)
    document = ready(api)
    assert document["reasons"] == [RAY_STARTS]
    assert document["parts"]["ray"]["last_error"]["message"] == "it died"


def test_readyz_distinguishes_a_clock_that_is_ahead_from_an_engine_that_is_silent(api: Api, parts: EngineParts) -> None:
    with api.context.database.write() as session:
        session.get_one(EngineRecord, 1).heartbeat_at = utc_now() + timedelta(hours=1)
    document = ready(api)
    assert document["parts"]["clock"]["ok"] is False
    assert document["parts"]["lease"]["ok"] is None
    [reason] = document["reasons"]
    assert "ahead of this machine's clock" in reason


def test_readyz_sees_a_full_disk_that_no_engine_reports(tmp_path: Path, api: Api, parts: EngineParts) -> None:
    """The API refuses uploads and jobs then."""
    parts.set("ray", None)
    settings = api.settings.model_copy(update={"disk_floor_bytes": 1 << 60})
    look = ReadinessCheck(api.context.database, settings).look()
    assert look.parts["disk"].ok is False
    assert "stay in reserve (RETORT_DISK_FLOOR_BYTES)" in look.reasons[0]


def test_readyz_reports_a_database_that_could_not_be_written_until_it_is_written(
    api: Api, parts: EngineParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process, or the engine with its heartbeat: it may be asked nothing else any more."""
    parts.set("ray", None)
    failure: list[Exception] = [OperationalError("x", {}, sqlite3.OperationalError())]
    cast("Any", failure[0]).orig.sqlite_errorcode = sqlite3.SQLITE_FULL

    def write() -> None:
        with api.context.database.write():
            raise failure[0]

    with pytest.raises(DatabaseFull):
        write()
    part = ready(api)["parts"]["database"]
    assert part["ok"] is False
    assert "its disk is full" in part["reason"]
    with api.context.database.write():
        pass
    assert ready(api)["ready"]
    with pytest.raises(DatabaseFull):
        write()
    assert not ready(api)["ready"]
    # Of another process.
    with closing(Database(api.settings.database)) as other:
        assert EngineQueries(other, "engine").acquire_lease()
    assert ready(api)["ready"]


def test_readiness_of_an_engine_of_an_earlier_version_has_no_parts_and_is_believed(api: Api) -> None:
    assert EngineQueries(api.context.database, "earlier").acquire_lease()
    assert ready(api)["ready"]
    with api.context.database.write() as session:
        session.get_one(EngineRecord, 1).parts = {"ray": {"of": "tomorrow"}}
    assert ready(api)["ready"]


def test_readiness_look_is_one_statement_and_reads_no_migrations(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either database; less than a millisecond of this process, where Alembic took nine."""
    queries = EngineQueries(database, "engine")
    assert queries.acquire_lease()
    settings = make_settings(tmp_path, database_url=str(database.url))
    settings.make_folders()
    readiness = ReadinessCheck(database, settings)
    assert readiness.look().ready

    def fail(*_: object) -> None:
        pytest.fail("Alembic was asked")

    monkeypatch.setattr("service.db.revisions.MigrationContext", SimpleNamespace(configure=fail))
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    event.listen(database._reading, "before_cursor_execute", note)
    assert readiness.look().ready
    assert len(statements) == 1
    event.remove(database._reading, "before_cursor_execute", note)

    # A Python call takes a microsecond or less, so a look stays under a millisecond.
    calls = 0

    def count(_frame: object, what: str, _argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    sys.setprofile(count)
    try:
        assert readiness.look().ready
    finally:
        sys.setprofile(None)
    assert 0 < calls < 600


def test_readiness_parts_are_the_same_in_metrics_engine_health_and_doctor(
    api: Api, parts: EngineParts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_DISK_FLOOR_BYTES", "0")
    line = ["engine-health", "--data-dir", str(api.settings.data_dir)]
    parts.set("ray", None)
    assert main(line) == 0
    for name in ("ray", "disk"):
        parts.set(name, f"no {name}")
    assert main(line) == 1
    assert "retort: no ray; no disk" in capsys.readouterr().err
    text = Metrics(api.context, "1").text().decode()
    assert 'retort_ready{part="ray"} 0.0' in text
    assert 'retort_ready{part="lease"} 1.0' in text
    finding = installation.check_engine(api.settings)
    assert (finding.status, finding.advice) == ("fail", "see `ray` and `ray folder`, `disk`")
    assert "no ray; no disk" in finding.found
    for name in ("ray", "disk"):
        parts.set(name, None)
    finding = installation.check_engine(api.settings)
    assert finding.status == "ok"
    assert "last error of disk, at" in finding.found


def test_readiness_has_gpus_that_do_not_work_as_a_part(api: Api, parts: EngineParts) -> None:
    parts.set("ray", None)
    report = GpuReport(promised=1, failure="the driver is too old")
    EngineQueries(api.context.database, "engine").record_gpus(report.model_dump(mode="json"))
    part = ready(api)["parts"]["gpu"]
    assert part["ok"] is False
    assert "the driver is too old" in part["reason"]


class _Clock:
    """A wall clock that is set back by an hour at its second look."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.looks = 0

    def time(self) -> float:
        self.looks += 1
        return time.time() - (3600.0 if self.looks > 1 else 0.0)


def test_engine_whose_clock_is_set_keeps_that_as_the_clocks_last_error(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = EngineQueries(api.context.database, "engine")
    parts = EngineParts(queries)
    assert queries.acquire_lease(begin=parts.begin)
    parts.set("ray", None)
    monkeypatch.setattr("service.engine.process.RENEW_S", 0.01)
    monkeypatch.setattr("service.engine.process.time", _Clock())
    with Heartbeat(queries, threading.Event(), parts):
        for _ in range(1000):
            part = ready(api)["parts"]["clock"]
            if part["last_error"]:
                break
    assert part["ok"] is True
    assert part["last_error"]["message"].startswith("the clock went back by 3600 s")


# ---------------------------------------------------------------------------------------------------------------- Ray


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often Ray was to be started; it fails as often as the list's first number says, and then nothing is there."""
    counts = [10**9, 0]

    def start(*_: object) -> Cluster:
        counts[1] += 1
        if counts[1] <= counts[0]:
            raise HeadFailed(f"no port is free\n(try {counts[1]})")
        return cast("Cluster", object())

    monkeypatch.setattr(process, "Cluster", start)
    monkeypatch.setattr(process, "RAY_RETRY_S", 0.001)
    return counts


def test_engine_gives_up_when_ray_has_failed_five_times_and_leaves_the_reason(
    tmp_path: Path, failing: list[int]
) -> None:
    """The lease, too: another engine need not wait for it to run out."""
    settings = make_settings(tmp_path, gpus=0)
    before = process.signals.handle
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process.signals, "handle", lambda *_: None)
        with pytest.raises(RayFailed, match="Ray does not start") as caught:
            run_engine(settings)
    assert before is process.signals.handle
    assert failing[1] == RAY_STARTS_MAX == 5
    assert "it was tried 5 of 5 times): no port is free (try 5). The engine gives up" in str(caught.value)
    with open_database(settings) as database:
        assert EngineQueries(database).lease().holder is None
        look = ReadinessCheck(database, settings).look()
    assert "no engine leads: start `retort engine`; the last one gave up: Ray does not start" in look.reasons[0]
    last = look.parts["ray"].last_error
    assert last is not None
    assert "no port is free (try 5)" in last.message


def test_engine_goes_on_where_ray_starts_after_some_failures(api: Api, failing: list[int]) -> None:
    failing[0] = 4
    queries = EngineQueries(api.context.database, "engine")
    parts = EngineParts(queries)
    assert queries.acquire_lease(begin=parts.begin)
    assert _start_ray(api.settings, parts, threading.Event()) is not None
    assert ready(api)["parts"]["ray"]["reason"].startswith("Ray does not start (it was tried 4 of 5 times)")


def test_engine_that_is_to_end_while_ray_fails_ends(api: Api, failing: list[int]) -> None:
    ending = threading.Event()
    ending.set()
    assert _start_ray(api.settings, EngineParts(api.records), ending) is None
    assert failing[1] == 1


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Iterator[Path]:
    """Ray's folder for a data directory, open to others."""
    folder = machine_folder(tmp_path / "data")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    yield folder
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def test_doctor_looks_at_the_owner_and_the_mode_of_rays_folder(tmp_path: Path, foreign_folder: Path) -> None:
    settings = make_settings(tmp_path)
    finding = packages.check_ray_folder(settings)
    assert finding.status == "fail"
    assert "is open to others (mode 0777, it has to be 0700)" in finding.found
    assert str(foreign_folder) in finding.advice
    foreign_folder.chmod(0o700)
    assert packages.check_ray_folder(settings).status == "ok"
    if os.getuid() == 0:
        os.chown(foreign_folder, 12345, -1)
        assert f"belongs to the user 12345, and this one is {os.getuid()}" in packages.check_ray_folder(settings).found
    foreign_folder.rmdir()
    foreign_folder.write_text("")
    assert "is no folder" in packages.check_ray_folder(settings).found
    foreign_folder.unlink()
    assert packages.check_ray_folder(settings).status == "ok"


@pytest.mark.slow
def test_serve_ends_with_the_reason_when_ray_cannot_start(tmp_path: Path, foreign_folder: Path) -> None:
    """And is never said to be ready."""
    with (
        BackgroundService(tmp_path / "data", tmp_path) as running,
        pytest.raises(ServiceEnded, match="Ray does not start") as caught,
    ):
        running.wait_ready()
    assert "is open to others (mode 0777" in str(caught.value)
    assert running.wait() == 1
    log = (tmp_path / "data" / "service.log").read_text()
    assert "retort: ready at" not in log
    assert f"engine ended by itself (exit status {GAVE_UP}), so api was ended, too" in log


@pytest.mark.slow
def test_engine_alone_ends_with_a_status_of_its_own(tmp_path: Path, foreign_folder: Path) -> None:
    settings = {"RETORT_DATA_DIR": str(tmp_path / "data"), "RETORT_GPUS": "0"}
    done = subprocess.run(command("engine"), env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == GAVE_UP
    assert done.stderr.startswith("retort: Ray does not start (it was tried 5 of 5 times)")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in said].count("Ray does not start") == 5
    with closing(Database(f"sqlite:///{tmp_path / 'data' / 'retort.sqlite3'}")) as database:
        assert EngineQueries(database).lease().holder is None
