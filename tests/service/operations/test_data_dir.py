"""What a start finds in a data directory: files that the database does not know, a log that is gone, another's lock."""

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.api.server import serve
from service.cli import main
from service.db.connection.connections import LogGone
from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.queries.api_queries import ApiQueries
from service.engine.process import run_engine
from service.errors import DamagedCopy, NewerDatabase
from service.operations.data_dir import open_database
from service.settings import Settings
from tests.support.service_helpers import add_job, make_settings, running_api, start_run


def a_service(folder: Path) -> tuple[Settings, str, str]:
    """Settings, job and run of a data directory with one attempt."""
    settings = make_settings(folder)
    with open_database(settings) as database:
        queries = EngineQueries(database)
        job = add_job(ApiQueries(database))
        queries.claim_job()
        (run, _) = queries.runs(job.id)
        assert start_run(queries, run.id) == 1
    (settings.jobs_dir / job.id / run.id / "a1").mkdir(parents=True)
    (settings.teachers_dir / f"{'a' * 64}.onnx").touch()
    return settings, job.id, run.id


def warnings_of_a_start(settings: Settings) -> list[str]:
    with capture_logs() as logs, open_database(settings):
        pass
    return [str(line["reason"]) for line in logs if line["event"] == "files that the database does not know"]


def test_start_says_nothing_of_files_that_the_database_knows(tmp_path: Path) -> None:
    settings, _, _ = a_service(tmp_path)
    (settings.jobs_dir / ".DS_Store").touch()
    assert warnings_of_a_start(settings) == []


def test_start_names_jobs_attempts_and_teachers_that_the_database_does_not_know(tmp_path: Path) -> None:
    """As an older copy of the database leaves them, and what to do."""
    settings, job, run = a_service(tmp_path)
    (settings.jobs_dir / job / run / "a2").mkdir()
    (settings.jobs_dir / "job_unknown" / "run_x" / "a1").mkdir(parents=True)
    (settings.teachers_dir / f"{'b' * 64}.onnx").touch()
    (settings.student_files_dir / f"{'c' * 64}.safetensors").touch()
    (warning,) = warnings_of_a_start(settings)
    uploads = f"student-files/{'c' * 64}.safetensors, teachers/{'b' * 64}.onnx"
    assert f"has jobs/{job}/{run}/a2, jobs/job_unknown, {uploads}, which" in warning
    assert "`retort restore` the newest backup" in warning
    for number in range(10):
        (settings.jobs_dir / f"job_{number}" / "run_x" / "a1").mkdir(parents=True)
    (warning,) = warnings_of_a_start(settings)
    assert "and 9 more" in warning


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Settings, str]:
    """What a kill leaves, and a job whose rows are in the log alone."""
    (tmp_path / "killed").mkdir()
    settings, killed = make_settings(tmp_path), make_settings(tmp_path / "killed")
    prepare(settings)
    with closing(Database(settings.database)) as database:
        queries, job = EngineQueries(database), add_job(ApiQueries(database))
        queries.claim_job()
        run = queries.runs(job.id)[0]
        start_run(queries, run.id)
        (settings.jobs_dir / job.id / run.id / "a1").mkdir(parents=True)
        # Without a kill: the connections stay open meanwhile.
        shutil.copytree(settings.data_dir, killed.data_dir)
    assert (killed.data_dir / "retort.sqlite3-wal").stat().st_size > 0
    return killed, job.id


def test_start_refuses_a_database_whose_log_was_removed_after_a_kill_and_goes_on_with_it_back(
    killed: tuple[Settings, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite itself opens it as if nothing had ever been committed after the last checkpoint."""
    settings, job = killed
    log = settings.data_dir / "retort.sqlite3-wal"
    kept = log.read_bytes()
    log.unlink()
    assert main(["keys", "list", "--data-dir", str(settings.data_dir)]) == 1
    assert f"{log} is gone" in capsys.readouterr().err
    for start in (serve, run_engine):
        with pytest.raises(LogGone, match="put it back, or `retort restore` the newest backup"):
            start(settings)
    assert not log.exists()
    log.write_bytes(kept)
    assert warnings_of_a_start(settings) == []
    with open_database(settings) as database:
        assert EngineQueries(database).job(job).id == job


def test_start_without_the_log_and_its_index_names_the_jobs_that_are_lost(killed: tuple[Settings, str]) -> None:
    """Somebody insists, or has removed both: the folders are all that is left to notice it by."""
    settings, job = killed
    for suffix in ("-wal", "-shm"):
        (settings.data_dir / f"retort.sqlite3{suffix}").unlink()
    (warning,) = warnings_of_a_start(settings)
    assert f"jobs/{job}, which the database does not know" in warning


def test_readyz_of_an_api_that_runs_on_says_that_the_log_was_removed(tmp_path: Path) -> None:
    """As a reason like any other fault of the database, with the way on."""
    with running_api(make_settings(tmp_path)) as api:
        # The next request opens a connection, and finds what the removal of the log alone leaves.
        api.context.database.close()
        database = Path(api.context.database.url.database or "")
        database.with_name(f"{database.name}-shm").touch()
        answer = api.client.get("/readyz")
        assert answer.status_code == 503
        assert "put it back, or `retort restore` the newest backup" in answer.json()["reasons"][0]
        assert api.client.get("/v1/jobs").json()["detail"] == answer.json()["reasons"][0]


def prepare(settings: Settings) -> None:
    settings.make_folders()
    upgrade_to_head(settings.database)


# ------------------------------------------------------------------------------------------------ a newer database


@pytest.fixture
def newer(tmp_path: Path) -> Settings:
    """A database that a later version has migrated: a revision of its own, and a column gone."""
    settings = make_settings(tmp_path, gpus=0)
    prepare(settings)
    with closing(sqlite3.connect(settings.data_dir / "retort.sqlite3")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("ALTER TABLE api_keys RENAME COLUMN digest TO other")
        database.commit()
    return settings


def test_api_and_engine_refuse_a_database_that_a_newer_version_has_migrated(newer: Settings) -> None:
    """In words, and they leave it as it is."""
    before = (newer.data_dir / "retort.sqlite3").read_bytes()
    for start in (serve, run_engine):
        with pytest.raises(NewerDatabase, match="a newer Retort has used it") as caught:
            start(newer)
        assert "is at migration 9999" in str(caught.value)
        assert "restore` the backup that was made before the upgrade" in str(caught.value)
    assert (newer.data_dir / "retort.sqlite3").read_bytes() == before


@pytest.mark.parametrize("arguments", [["keys", "list"], ["engine-health"], ["backup", "b"]])
def test_commands_on_the_database_say_that_it_is_newer(
    newer: Settings, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(newer.data_dir)
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([*arguments, "--data-dir", str(newer.data_dir)]) == 1
    out, err = capsys.readouterr()
    assert "a newer Retort has used it" in out + err


def test_readyz_of_an_api_that_runs_on_says_that_the_database_is_newer(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path)) as api:
        with api.context.database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        answer = api.client.get("/readyz")
        assert answer.status_code == 503
        assert "a newer Retort has used it" in answer.json()["reasons"][0]


def test_api_without_an_engine_empties_the_log_of_the_database_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = threading.Event()
    monkeypatch.setattr("service.api.app.NOTE_USES_S", 0.01)
    monkeypatch.setattr(Database, "checkpoint", lambda _: called.set())
    with running_api(make_settings(tmp_path)):
        assert called.wait(30)


def test_start_on_a_copy_reads_its_database_through_once_and_refuses_one_of_two_moments(tmp_path: Path) -> None:
    """As ``cp -a`` makes it of a service at work: the database of before a checkpoint, the log of after it."""
    settings, job, _ = a_service(tmp_path)
    whole, torn = (tmp_path / name for name in ("whole", "torn"))

    def start(folder: Path) -> list[str]:
        with capture_logs() as logs, open_database(settings.model_copy(update={"data_dir": folder})) as database:
            assert EngineQueries(database).job(job).id == job
        return [line["event"] for line in logs if "is checked" in line["event"]]

    assert start(settings.data_dir) == []
    with closing(Database(settings.database)) as database, database.read():
        for _ in range(40):
            add_job(ApiQueries(database))
        shutil.copytree(settings.data_dir, torn)
        database.checkpoint()
        for _ in range(40):
            add_job(ApiQueries(database))
        shutil.copytree(settings.data_dir, whole)
    for suffix in ("-wal", "-shm"):
        shutil.copy(whole / f"retort.sqlite3{suffix}", torn)
    assert len(start(whole)) == 1
    assert start(whole) == []
    with pytest.raises(DamagedCopy, match=f"copied from {settings.data_dir}, most likely while a service"):
        start(torn)
