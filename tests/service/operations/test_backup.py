"""Backup and restore: under load, killed at every change, damaged, refused; on SQLite and on a real PostgreSQL."""

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from service.cli import main
from service.db.database import Database
from service.db.deletions.student_files import StudentFiles
from service.db.engine_queries import EngineQueries
from service.db.ids import new_id
from service.db.models import JobRecord
from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from service.db.student_file_record import StudentFileRecord
from service.engine.attempt_files import list_artifacts
from service.errors import BackupFailed, BadBackup, DataDirBusy, DataDirNotEmpty
from service.operations import backup as backup_module
from service.operations.backup import backup
from service.operations.backup_format import MANIFEST, PARTIAL, Manifest, read_backup
from service.operations.data_dir import STAGING, in_use, locked, open_database, unknown_files
from service.operations.private_files import FileEntry
from service.operations.restore import _Target, restore
from service.settings import Settings
from store import CacheWriter, Catalog
from tests.support.kill_points import killed_at_every_change
from tests.support.service_helpers import (
    PostgresServer,
    check_whole,
    make_plan,
    make_settings,
    new_database,
    onnx_bytes,
    running_api,
    teacher_row,
    void,
)
from tests.support.store_cases import make_spec, write_cache
from workers.teacher.imports.imported_specs import imported_preprocessing

pytest_plugins = ["tests.support.service_fixtures"]


def a_service(folder: Path, jobs: int = 1, **changes: object) -> Settings:
    """A data directory with a teacher, succeeded jobs of two runs with their artifacts, and one job that waits."""
    folder.mkdir()
    settings = make_settings(folder, **changes)
    settings.make_folders()
    new_database(settings.database)
    with closing(Database(settings.database)) as database:
        for number in range(jobs):
            do_job(settings, database, number)
        add_job(settings, database, 0)
    return settings


def add_job(settings: Settings, database: Database, number: int) -> JobRecord:
    content = onnx_bytes(salt=float(number))
    sha256 = hashlib.sha256(content).hexdigest()
    api_queries = ApiQueries(database)
    place = settings.teacher_path(sha256)
    teacher = api_queries.add_teacher(teacher_row(sha256), lambda: void(place.write_bytes(content)))[0]
    return api_queries.add_job(make_plan(), teacher, None)[0]


def do_job(settings: Settings, database: Database, number: int) -> str:
    """What an engine and its workers would do: a checkpoint, artifacts in one rename, and then the rows."""
    job, queries = add_job(settings, database, number), EngineQueries(database)
    claimed = queries.claim_job()
    assert claimed is not None
    for run in queries.runs(claimed.id):
        attempt = queries.start_attempts([run.id])[0].attempt
        folder = settings.jobs_dir / claimed.id / run.id / f"a{attempt}"
        partial = folder / "artifacts.partial"
        partial.mkdir(parents=True)
        (folder / "checkpoint.pt").write_bytes(os.urandom(1000))
        (partial / "student.onnx").write_bytes(os.urandom(5000))
        (partial / "result.json").write_text("{}")
        partial.rename(folder / "artifacts")
        rows = list_artifacts(folder, settings.data_dir.resolve())
        assert queries.record_result(run.id, attempt, rows, {"last": {"top1": 0.5}})
        (folder / "checkpoint.pt").unlink()
    assert queries.move_job(claimed.id, State.SUCCEEDED)
    return job.id


def tree(*tops: Path) -> dict[str, bytes]:
    """Every file below these folders."""
    return {str(path): path.read_bytes() for top in tops for path in top.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------- there and back


def test_backup_and_restore_bring_back_what_a_service_has_and_the_api_serves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line; the artifacts are downloaded from the new place."""
    old = a_service(tmp_path / "old")
    assert main(["backup", str(tmp_path / "b"), "--data-dir", str(old.data_dir)]) == 0
    assert "2 jobs" in capsys.readouterr().out
    new = make_settings(tmp_path)
    assert main(["--json", "restore", str(tmp_path / "b"), "--data-dir", str(new.data_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["set_aside"] == []
    assert check_whole(new) == 2
    with running_api(new) as api:
        jobs = api.client.get("/v1/jobs").json()["data"]
        assert [job["state"] for job in jobs] == ["queued", "succeeded"]
        run = api.client.get(f"/v1/jobs/{jobs[1]['id']}/runs").json()["data"][0]["id"]
        for file in api.client.get(f"/v1/runs/{run}/artifacts").json()["data"]:
            content = api.client.get(f"/v1/runs/{run}/artifacts/{file['name']}").content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_backup_and_restore_bring_back_uploaded_files_of_students(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old = make_settings(tmp_path / "old")
    with open_database(old) as database:
        sha256 = hashlib.sha256(b"weights").hexdigest()
        described = {
            "kind": "weights",
            "name": "begun",
            "size_bytes": 7,
            "tensors": 1,
            "parameters": 1,
            "dtypes": ["F32"],
        }
        row = StudentFileRecord(id=new_id("stf"), sha256=sha256, **described)
        StudentFiles(database, old).add(row, lambda path: void(path.write_bytes(b"weights")))
    backup(old, tmp_path / "b")
    new = make_settings(tmp_path)
    restore(new, tmp_path / "b")
    assert new.student_file_path(sha256).read_bytes() == b"weights"
    with open_database(new) as database:
        assert unknown_files(new, database) is None
        StudentFiles(database, new).delete(row.id)
    assert not new.student_file_path(sha256).exists()
    old.student_file_path(sha256).write_bytes(b"others!")
    with pytest.raises(BackupFailed, match=rf"or damaged: student-files/{sha256}\.safetensors"):
        backup(old, tmp_path / "c")


def test_backup_and_restore_create_what_is_for_this_user_alone(tmp_path: Path) -> None:
    """Whatever the umask is: the database holds digests of keys."""
    old = a_service(tmp_path / "old")
    backup(old, tmp_path / "deep" / "b")
    new = make_settings(tmp_path)
    restore(new, tmp_path / "deep" / "b")
    for top in (tmp_path / "deep", new.data_dir):
        for path in (top, *top.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_restore_by_root_gives_the_files_to_the_owner_of_the_data_directory(tmp_path: Path) -> None:
    old = a_service(tmp_path / "old")
    backup(old, tmp_path / "b")
    new = make_settings(tmp_path)
    new.data_dir.mkdir()
    os.chown(new.data_dir, 10001, 10001)
    restore(new, tmp_path / "b")
    assert {path.stat().st_uid for path in new.data_dir.rglob("*")} == {10001}


def test_backup_has_complete_caches_if_they_are_asked_for_and_restore_puts_them_back(tmp_path: Path) -> None:
    old = a_service(tmp_path / "old")
    spec = make_spec()
    write_cache(old.caches_dir, spec)
    CacheWriter(old.caches_dir, make_spec(views=3))
    assert not any(name.startswith("caches") for name in backup(old, tmp_path / "without").files)
    made = backup(old, tmp_path / "with", with_caches=True)
    assert {name.split("/")[1] for name in made.files if name.startswith("caches")} == {spec.key}
    new = make_settings(tmp_path)
    restore(new, tmp_path / "with")
    assert Catalog(new.caches_dir).verify(spec.key).ok
    assert [path.name for path in new.caches_dir.iterdir()] == [spec.key]


def test_backup_always_has_imported_caches_and_restore_brings_them_back_pinned(tmp_path: Path) -> None:
    old = a_service(tmp_path / "old")
    imported = make_spec(preprocessing=imported_preprocessing("logits", None))
    for spec in (make_spec(), imported):
        write_cache(old.caches_dir, spec)
    Catalog(old.caches_dir).pin(imported.key)
    made = backup(old, tmp_path / "without")
    assert {name.split("/")[1] for name in made.files if name.startswith("caches")} == {imported.key}
    assert made.imported_caches == 1
    assert backup(old, tmp_path / "with", with_caches=True).imported_caches == 1
    new = make_settings(tmp_path)
    assert restore(new, tmp_path / "without")[0] == made
    assert Catalog(new.caches_dir).verify(imported.key).ok
    assert Catalog(new.caches_dir).get(imported.key).pinned


def test_backup_has_no_decoded_datasets_no_unfinished_files_and_no_later_attempts(tmp_path: Path) -> None:
    """An attempt that the copy of the database does not know would be taken for a sign of a lost one."""
    old = a_service(tmp_path / "old")
    (old.datasets_dir / "x").write_bytes(b"decoded")
    (old.teachers_dir / ".incoming-x").write_bytes(b"x")
    attempt = next(old.jobs_dir.glob("*/*/a1"))
    (attempt / "checkpoint.pt.1.partial").write_bytes(b"x")
    (attempt.with_name("a2")).mkdir()
    (attempt.with_name("a2") / "checkpoint.pt").write_bytes(b"x")
    names = backup(old, tmp_path / "b").files
    assert {name.split("/")[0] for name in names} == {"database.sqlite3", "jobs", "teachers"}
    assert not [name for name in names if "partial" in name or "incoming" in name or "/a2/" in name]


def test_backup_has_a_later_checkpoint_of_a_run_whose_checkpoint_is_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the attempt that the copy of the database knows, from which a restored service goes on."""
    old = a_service(tmp_path / "old")
    attempt = next(old.jobs_dir.glob("*/*/a1"))
    (attempt / "checkpoint.pt").write_bytes(b"first")
    copy = backup_module.copy_file

    def copy_while_the_next_attempt_trains(source: Path, target: Path) -> FileEntry:
        if source == attempt / "checkpoint.pt" and source.exists():
            (attempt.with_name("a2")).mkdir()
            (attempt.with_name("a2") / "checkpoint.pt").write_bytes(b"second")
            source.unlink()
        return copy(source, target)

    monkeypatch.setattr(backup_module, "copy_file", copy_while_the_next_attempt_trains)
    made = backup(old, tmp_path / "b")
    [name] = [name for name in made.files if name.endswith("checkpoint.pt")]
    assert name.endswith("/a1/checkpoint.pt")
    assert (tmp_path / "b" / name).read_bytes() == b"second"


# ----------------------------------------------------------------------------------------------------------- under load


def test_backup_while_jobs_succeed_holds_each_succeeded_run_with_its_artifacts(tmp_path: Path) -> None:
    """Each of four backups, of a database that is written all the time; the later ones hold more."""
    old = a_service(tmp_path / "old")
    ending, grown = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        with closing(Database(old.database)) as database:
            number = 0
            while not ending.is_set():
                number += 1
                do_job(old, database, number)
                grown.release()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(4):
            assert grown.acquire(timeout=60)
            backup(old, tmp_path / f"b{number}")
    finally:
        ending.set()
        thread.join()
    runs = []
    for number in range(4):
        folder = tmp_path / f"new{number}"
        folder.mkdir()
        new = make_settings(folder)
        restore(new, tmp_path / f"b{number}")
        runs.append(check_whole(new))
    assert runs == sorted(runs)
    assert runs[0] < runs[-1]


# --------------------------------------------------------------------------------------------------------------- killed


def a_small_service(folder: Path, text: str) -> Settings:
    """One job with one run, one file of which is there; a kill between two copies is like one between two others."""
    folder.mkdir()
    settings = make_settings(folder)
    settings.make_folders()
    new_database(settings.database)
    with closing(Database(settings.database)) as database:
        api_queries, queries = ApiQueries(database), EngineQueries(database)
        teacher = api_queries.add_teacher(teacher_row(), lambda: None)[0]
        job = api_queries.add_job(make_plan(name=text, methods=["ce"]), teacher, None)[0]
        assert queries.claim_job() is not None
        (run,) = queries.start_attempts([run.id for run in queries.runs(job.id)])
    attempt = settings.jobs_dir / job.id / run.id / "a1"
    attempt.mkdir(parents=True)
    (attempt / "checkpoint.pt").write_text(text)
    settings.teacher_path(teacher.sha256).write_text(text)
    return settings


@pytest.fixture
def hashes_of_teachers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones whose contents are not what they are called by."""
    monkeypatch.setattr("service.operations.backup._is_there", lambda files, path, sha256: path in files)


@pytest.mark.usefixtures("hashes_of_teachers_agree")
def test_backup_killed_at_any_change_is_no_whole_backup_and_can_be_made_again(tmp_path: Path) -> None:
    """The last changes are the manifest's rename and the folder's."""
    old, target = a_small_service(tmp_path / "old", "old"), tmp_path / "b"
    partial = target.with_name(target.name + PARTIAL)
    left = set()

    def look(number: int) -> None:
        assert not target.exists()
        left.add(partial.exists())
        if partial.exists() and not (partial / MANIFEST).exists():
            with pytest.raises(BadBackup, match="no whole backup"):
                read_backup(partial)

    assert killed_at_every_change(lambda: backup(old, target), tmp_path, look) > 10
    assert left == {False, True}
    assert read_backup(target).jobs == 1
    assert not partial.exists()


@pytest.mark.usefixtures("hashes_of_teachers_agree")
@pytest.mark.parametrize("replace", [False, True])
def test_restore_killed_at_any_change_starts_nothing_half_and_can_be_repeated(tmp_path: Path, replace: bool) -> None:
    """Either nothing has been touched, or nothing starts, or all is there; and the same command again brings it."""
    backup(a_small_service(tmp_path / "old", "old"), tmp_path / "b")
    template, folder, first = tmp_path / "template", tmp_path / "new", tmp_path / "first"
    a_small_service(template, "replaced")
    first.mkdir()
    restore(make_settings(first), tmp_path / "b")
    seen = set()

    def files(data_dir: Path) -> dict[str, bytes]:
        """What a start would find; nobody has opened the database, so that it has the bytes of the backup."""
        kept = ("retort.sqlite3", "jobs", "teachers")
        found = {str(path.relative_to(data_dir)): path for path in data_dir.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if name.split("/")[0] in kept}

    def begin() -> Path:
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(template, folder) if replace else folder.mkdir()
        return make_settings(folder).data_dir

    def work() -> None:
        restore(make_settings(folder), tmp_path / "b", replace=replace)

    wanted, before = files(make_settings(first).data_dir), files(begin())
    assert (len(wanted), len(before)) == (3, 3 if replace else 0)

    def look(number: int) -> None:
        data_dir = make_settings(folder).data_dir
        try:
            with in_use(data_dir):
                seen.add("untouched" if files(data_dir) == before else "whole")
                assert files(data_dir) in (before, wanted)
        except FileNotFoundError:
            seen.add("untouched")
        except DataDirBusy:
            seen.add("refused")
        if files(data_dir) != wanted or (data_dir / STAGING).exists():
            work()
        assert files(data_dir) == wanted
        with in_use(data_dir):
            assert not list(data_dir.rglob(f"*{STAGING}"))
        if replace:
            aside = [path.name for path in data_dir.glob("*.replaced-*")]
            assert sorted(name.partition(".replaced-")[0] for name in aside) == ["jobs", "retort.sqlite3", "teachers"]
        begin()

    assert killed_at_every_change(work, folder, look) > 20
    assert files(make_settings(folder).data_dir) == wanted
    assert seen == {"untouched", "refused", "whole"}


def test_restore_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because the backup changes while it is read."""
    old, other = a_service(tmp_path / "old"), a_service(tmp_path / "other")
    made = backup(old, tmp_path / "b")
    (name, entry) = next((name, entry) for name, entry in made.files.items() if name.endswith(".onnx"))
    changed = {**made.files, name: entry.model_copy(update={"size_bytes": 1})}
    monkeypatch.setattr(
        "service.operations.restore.read_backup", lambda folder: made.model_copy(update={"files": changed})
    )
    before = tree(other.data_dir)
    with pytest.raises(BadBackup, match="has changed while it was read"):
        restore(other, tmp_path / "b", replace=True)
    assert tree(other.data_dir) == before


# -------------------------------------------------------------------------------------------------------------- refused


def edit(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """A change to a backup's manifest."""

    def damage(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        change(document)
        (folder / MANIFEST).write_text(json.dumps(document))

    return damage


def flip(folder: Path) -> None:
    path = next(folder.rglob("student.onnx"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "no whole backup"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": 1'), "cannot be read"),
        (edit(lambda document: document.update(format=2)), "format"),
        (edit(lambda document: document.update(revision="9999")), "does not know: restore it with that version"),
        (edit(lambda document: document.update(database="postgresql")), "set RETORT_DATABASE_URL"),
        (edit(lambda document: document.update(files={})), "names no database"),
        (
            edit(lambda document: document["files"].update({"jobs/../../x": {"size_bytes": 0, "sha256": "0" * 64}})),
            "no file of a backup",
        ),
        (lambda folder: next(folder.rglob("result.json")).unlink(), "cannot be read"),
        (lambda folder: (folder / "database.sqlite3").write_bytes(b""), "is damaged"),
        (flip, "is damaged"),
    ],
)
def test_restore_refuses_a_backup_that_is_not_whole_and_touches_nothing(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    backup(a_service(tmp_path / "old"), tmp_path / "b")
    damage(tmp_path / "b")
    new = make_settings(tmp_path)
    with pytest.raises(BadBackup, match=says):
        restore(new, tmp_path / "b")
    assert not new.data_dir.exists()


def test_restore_refuses_data_that_is_there_and_sets_it_aside_only_if_told(tmp_path: Path) -> None:
    """The log of the old database goes with it: SQLite would read it into the new one."""
    old, other = a_service(tmp_path / "old"), a_service(tmp_path / "other", jobs=2)
    backup(old, tmp_path / "b")
    before = tree(other.data_dir)
    with pytest.raises(DataDirNotEmpty, match="--replace"):
        restore(other, tmp_path / "b")
    assert tree(other.data_dir) == before
    with closing(sqlite3.connect(other.data_dir / "retort.sqlite3")) as killed:
        # A connection that stays open leaves what a kill leaves.
        killed.execute("UPDATE jobs SET name = 'in the log'")
        killed.commit()
        _, aside = restore(other, tmp_path / "b", replace=True)
        log = other.data_dir / "retort.sqlite3-wal"
        assert not log.exists()
        assert {path.name.partition(".replaced-")[0] for path in aside} == {"retort.sqlite3", "jobs", "teachers"}
        assert any(path.name.endswith("Z-wal") for path in aside)
    assert check_whole(other) == 2


def test_restore_notices_a_running_service_and_a_service_a_restore(tmp_path: Path) -> None:
    old = a_service(tmp_path / "old")
    # A backup does not mind.
    with open_database(old):
        backup(old, tmp_path / "b")
        with pytest.raises(DataDirBusy, match="stop it first"):
            restore(old, tmp_path / "b", replace=True)
    with locked(old.data_dir, fcntl.LOCK_EX, ""), pytest.raises(DataDirBusy, match="wait for its end"):
        backup(old, tmp_path / "b2")


@pytest.mark.parametrize("arguments", [["api"], ["engine"], ["keys", "list"], ["backup", "B"]])
def test_restore_that_is_half_done_keeps_every_command_from_the_data_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    old = a_service(tmp_path / "old")
    (old.data_dir / STAGING).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_DATA_DIR", str(old.data_dir))
    monkeypatch.setenv("RETORT_GPUS", "0")
    assert main(arguments) == 1
    assert "was not finished: give the same `retort restore DIR` again" in capsys.readouterr().err


def test_backup_refuses_what_exists_and_folders_that_are_not_its_own(tmp_path: Path) -> None:
    old = a_service(tmp_path / "old")
    backup(old, tmp_path / "b")
    with pytest.raises(BackupFailed, match="exists already"):
        backup(old, tmp_path / "b")
    mine = tmp_path / "c.partial" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("x")
    with pytest.raises(BackupFailed, match="no part of a backup"):
        backup(old, tmp_path / "c")
    assert mine.read_text() == "x"
    with pytest.raises(BackupFailed, match="there is no database"):
        backup(make_settings(tmp_path), tmp_path / "d")
    elsewhere = Settings(data_dir=tmp_path / "mistyped", database_url="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(BackupFailed, match="mistyped: name the service's with --data-dir"):
        backup(elsewhere, tmp_path / "d")


def test_backup_refuses_a_service_whose_files_are_gone_or_damaged_unless_told(tmp_path: Path) -> None:
    """It would be worth less than it says."""
    old = a_service(tmp_path / "old")
    next(old.jobs_dir.rglob("student.onnx")).write_bytes(b"rot")
    next(old.teachers_dir.glob("*.onnx")).unlink()
    with pytest.raises(BackupFailed, match="2 files that the database names are gone") as caught:
        backup(old, tmp_path / "b")
    assert "--accept-missing" in str(caught.value)
    assert not list(tmp_path.glob("b*"))
    missing = backup(old, tmp_path / "b", accept_missing=True).missing
    assert [name.split("/")[0] for name in missing] == ["jobs", "teachers"]
    assert read_backup(tmp_path / "b").missing == missing


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


def test_backup_of_postgresql_is_of_one_moment_and_is_restored_into_an_empty_database(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database with tables is refused; a restore that ends just after pg_restore goes on behind it."""
    old = a_service(tmp_path / "old", database_url=postgres.create("backed_up"))
    backup(old, tmp_path / "b")
    new = make_settings(tmp_path, database_url=postgres.create("brought_back"))
    with pytest.raises(DataDirNotEmpty, match="create an empty one"):
        restore(old.model_copy(update={"data_dir": new.data_dir}), tmp_path / "b", replace=True)
    with pytest.raises(BadBackup, match="set RETORT_DATABASE_URL"):
        restore(make_settings(tmp_path), tmp_path / "b")
    restore_postgres = _Target._restore_postgres

    def restore_and_end(target: _Target) -> None:
        restore_postgres(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Target, "_restore_postgres", restore_and_end)
        with pytest.raises(KeyboardInterrupt):
            restore(new, tmp_path / "b")
    with pytest.raises(DataDirBusy, match="not finished"):
        check_whole(new)
    restore(new, tmp_path / "b")
    assert check_whole(new) == 2


def test_backup_of_postgresql_names_the_program_that_is_missing(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = a_service(tmp_path / "old", database_url=postgres.create("undumped"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupFailed, match="no pg_dump on PATH"):
        backup(old, tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


def test_manifest_says_what_a_backup_holds(tmp_path: Path) -> None:
    made = backup(a_service(tmp_path / "old"), tmp_path / "b")
    assert Manifest.model_validate_json((tmp_path / "b" / MANIFEST).read_bytes()) == made
    assert set(made.files) == {
        path.relative_to(tmp_path / "b").as_posix()
        for path in (tmp_path / "b").rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
