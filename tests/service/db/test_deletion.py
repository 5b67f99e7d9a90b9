"""Deletion of jobs, runs, datasets and teachers: what goes, what is refused, and what a kill leaves."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from service.db.database import Database
from service.db.deletions.deletion import Deleter
from service.db.deletions.retention import Limits, Retention
from service.db.engine_queries import EngineQueries
from service.db.ids import new_id
from service.db.job_posting import Idempotency
from service.db.models import (
    Base,
    DatasetRecord,
    DeletedPathRecord,
    EngineRecord,
    EventRecord,
    JobRecord,
    TeacherRecord,
    utc_now,
)
from service.db.queries.api_queries import ApiQueries
from service.db.queries.packed_events import compact
from service.db.scheduling.job_control import JobControl
from service.db.states import State
from service.errors import Conflict, NotFound
from service.operations.data_dir import unknown_files
from tests.support.filled import fill
from tests.support.service_helpers import (
    Api,
    add_job,
    make_plan,
    make_settings,
    onnx_bytes,
    running_api,
    start_run,
    teacher_row,
)
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation import decoded
from workers.data.preparation.prepare import prepare

pytest_plugins = ["tests.support.service_fixtures"]


@pytest.fixture
def deletion(database: Database, tmp_path: Path) -> Deleter:
    settings = make_settings(tmp_path)
    settings.make_folders()
    return Deleter(database, settings)


def a_job(api: Api, state: State = State.SUCCEEDED) -> str:
    """A job of two runs with a folder each, in this state."""
    teacher = api.queries.get(TeacherRecord, api.teacher())
    (job_id,) = fill(api.context.database, teacher, make_plan(), [state])
    for run in api.records.runs(job_id):
        folder = api.settings.jobs_dir / job_id / run.id / "a1"
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_bytes(b"x" * 1000)
    return job_id


def rows(database: Database) -> dict[str, int]:
    """Rows of each table that has any."""
    with database.read() as session:
        counts = {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
            if name != EngineRecord.__tablename__
        }
    return {name: count for name, count in counts.items() if count}


def finished_epochs(queries: EngineQueries, job_id: str, epochs: range, state: State) -> str:
    """The first run of a job trains these epochs and ends in a state, and the job with it; returns its id."""
    assert queries.claim_job() is not None
    run_id = queries.runs(job_id)[0].id
    attempt = start_run(queries, run_id)
    assert attempt is not None
    told = [(n, {"type": "epoch", "epoch": n, "epochs": 9, "metrics": {"epoch": n, "top1": n / 10}}) for n in epochs]
    assert queries.record_events(job_id, run_id, attempt, told) == len(told)
    assert queries.move_run(run_id, attempt, state)
    for run in queries.runs(job_id)[1:]:
        queries.move_run(run.id, 0, State.CANCELLED)
    assert queries.move_job(job_id, state)
    return run_id


# --------------------------------------------------------------------------------------------------------------- jobs


def test_delete_job_takes_rows_events_and_files_and_nothing_else(api: Api) -> None:
    kept, gone = a_job(api), a_job(api)
    with api.context.database.read() as session:
        expected = rows(api.context.database)
        of_one = session.scalar(select(func.count()).select_from(EventRecord).where(EventRecord.job_id == gone))
    assert api.client.delete(f"/v1/jobs/{gone}").status_code == 204
    assert not (api.settings.jobs_dir / gone).exists()
    assert len(list((api.settings.jobs_dir / kept).rglob("log.jsonl"))) == 2
    left = rows(api.context.database)
    assert left["events"] == expected["events"] - (of_one or 0)
    assert (left["jobs"], left["runs"], left["artifacts"]) == (1, 2, expected["artifacts"] - 2)
    for path in ("", "/runs", "/events", "/report"):
        assert api.client.get(f"/v1/jobs/{gone}{path}").status_code == 404
    assert api.client.delete(f"/v1/jobs/{gone}").status_code == 404
    assert unknown_files(api.settings, api.context.database) is None


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.PAUSED, State.CANCELLING])
def test_delete_job_is_refused_while_it_is_live(api: Api, state: State) -> None:
    job_id = a_job(api, state)
    answer = api.client.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 409
    assert f"{job_id} is {state}: cancel it" in answer.json()["detail"]
    assert len(list((api.settings.jobs_dir / job_id).rglob("log.jsonl"))) == 2


def test_a_pinned_job_is_not_deleted_nor_are_its_runs(api: Api) -> None:
    job_id = a_job(api)
    for _ in range(2):
        assert api.client.post(f"/v1/jobs/{job_id}/pin").json()["pinned"]
    run_id = api.records.runs(job_id)[0].id
    for path in (f"/v1/jobs/{job_id}", f"/v1/runs/{run_id}"):
        answer = api.client.delete(path)
        assert answer.status_code == 409
        assert "is pinned: unpin it" in answer.json()["detail"]
    for _ in range(2):
        assert api.client.delete(f"/v1/jobs/{job_id}/pin").status_code == 204
    assert not api.client.get(f"/v1/jobs/{job_id}").json()["pinned"]
    assert api.client.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_a_job_that_a_live_retry_needs_stays_also_through_a_retry_that_has_ended(
    deletion: Deleter, api_queries: ApiQueries, queries: EngineQueries
) -> None:
    job_control = JobControl(api_queries.database)
    first = job_control.cancel_job(add_job(api_queries).id)
    second, _ = api_queries.retry_job(first.id, lambda: None)
    job_control.cancel_job(second.id)
    third, _ = api_queries.retry_job(second.id, lambda: None)
    for job in (first, second):
        with pytest.raises(Conflict, match=f"is tried again by .*{third.id}"):
            deletion.delete_job(job.id)
        with pytest.raises(Conflict, match=f"is tried again by .*{third.id}"):
            deletion.delete_run(queries.runs(job.id)[0].id)
    job_control.cancel_job(third.id)
    deletion.delete_job(second.id)
    assert queries.job(third.id).retry_of == first.id
    assert [run.retry_of for run in queries.runs(third.id)] == [run.id for run in queries.runs(first.id)]
    # Each was retried once, and so it stays.
    again, is_new = api_queries.retry_job(first.id, lambda: None)
    assert (again.id, is_new) == (third.id, False)
    deletion.delete_job(first.id)
    assert {run.retry_of for run in queries.runs(third.id)} == {None}


@pytest.mark.parametrize("packed", [False, True])
def test_a_retry_that_has_ended_keeps_the_epochs_of_what_it_tried_again(
    deletion: Deleter, api_queries: ApiQueries, queries: EngineQueries, packed: bool
) -> None:
    """Those before its own first one; the run in between, which trained none, does not matter."""
    first = add_job(api_queries)
    run = finished_epochs(queries, first.id, range(1, 5), State.FAILED)
    between, _ = api_queries.retry_run(run, lambda: None)
    finished_epochs(queries, between.id, range(0), State.FAILED)
    last, _ = api_queries.retry_run(queries.runs(between.id)[0].id, lambda: None)
    retried = finished_epochs(queries, last.id, range(4, 7), State.SUCCEEDED)
    before = api_queries.metrics(retried)
    assert [line["epoch"] for line in before] == [1, 2, 3, 4, 5, 6]
    if packed:
        for job in (first, last):
            compact(api_queries.database, job.id)
    deletion.delete_job(first.id)
    deletion.delete_job(between.id)
    assert api_queries.metrics(retried) == before
    events, _ = api_queries.events(queries.run(retried), 0, 100)
    assert [event.data["epoch"] for event in events if event.type == "epoch"] == [1, 2, 3, 4, 5, 6]


def test_an_idempotency_key_of_a_deleted_job_makes_a_new_one(deletion: Deleter, api_queries: ApiQueries) -> None:
    teacher, _ = api_queries.add_teacher(teacher_row(), lambda: None)
    key = Idempotency("", "k", "d" * 64)
    job, _ = api_queries.add_job(make_plan(), teacher, key)
    JobControl(api_queries.database).cancel_job(job.id)
    deletion.delete_job(job.id)
    again, is_new = api_queries.add_job(make_plan(), teacher, key)
    assert is_new
    assert again.id != job.id


def test_delete_run_leaves_the_jobs_other_runs(api: Api) -> None:
    job_id = a_job(api)
    gone, kept = (run.id for run in api.records.runs(job_id))
    assert api.client.delete(f"/v1/runs/{gone}").status_code == 204
    assert api.client.get(f"/v1/runs/{gone}").status_code == 404
    assert api.client.get(f"/v1/jobs/{job_id}").json()["run_ids"] == [kept]
    assert [path.name for path in (api.settings.jobs_dir / job_id).iterdir()] == [kept]
    events = api.client.get(f"/v1/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]
    assert {event["run_id"] for event in events} == {kept}
    assert api.client.delete(f"/v1/runs/{gone}").status_code == 404
    live = a_job(api, State.RUNNING)
    assert api.client.delete(f"/v1/runs/{api.records.runs(live)[0].id}").status_code == 409


def test_weights_that_a_live_job_begins_with_stay(api: Api) -> None:
    job_id = a_job(api)
    begun, other = (run.id for run in api.records.runs(job_id))
    student = {"name": "cnn_s", "init": {"run": begun}}
    teacher = api.queries.get(TeacherRecord, api.teacher())
    (live,) = fill(api.context.database, teacher, make_plan(students=[student]), [State.QUEUED])
    for path in (f"/v1/jobs/{job_id}", f"/v1/runs/{begun}"):
        refused = api.client.delete(path)
        assert refused.status_code == 409
        assert f"run {begun}, with whose weights students begin, is used by job {live}" in refused.json()["detail"]
    retention = Retention(api.settings, Deleter(api.context.database, api.settings))
    assert retention.collect(Limits(jobs_max_count=0), dry_run=True).jobs == []
    assert api.client.delete(f"/v1/runs/{other}").status_code == 204
    api.client.post(f"/v1/jobs/{live}/cancel")
    assert api.client.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_counters_of_metrics_do_not_fall_when_jobs_are_deleted(api: Api) -> None:
    """Prometheus would take that for a restart, and count everything once more."""
    ids = [a_job(api, state) for state in (State.SUCCEEDED, State.FAILED)]

    def told() -> list[str]:
        names = ("retort_run_attempts", "retort_teacher_forwards", "retort_cache_")
        return [line for line in api.client.get("/metrics").text.splitlines() if line.startswith(names)]

    before = told()
    assert len(before) == 6
    api.client.delete(f"/v1/jobs/{ids[0]}")
    api.client.delete(f"/v1/runs/{api.records.runs(ids[1])[0].id}")
    assert told() == before


def test_a_stream_of_a_job_that_is_deleted_ends(tmp_path: Path) -> None:
    """It had ended, and its client was slow; coming back it is told that there is none."""
    stream = {"Accept": "text/event-stream"}
    with running_api(make_settings(tmp_path, keep_alive_s=0.5)) as api:
        job_id = a_job(api, State.RUNNING)
        with api.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=stream) as response:
            lines = response.iter_lines()
            next(lines)
            with api.context.database.write() as session:
                session.get_one(JobRecord, job_id).state = State.CANCELLED
            api.context.deletion.delete_job(job_id)
            assert not [line for line in lines if "done" in line]
        assert api.client.get(f"/v1/jobs/{job_id}/events").status_code == 404


# -------------------------------------------------------------------------------------------------------------- kills

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from service.db.database import Database
from service.db.deletions.deletion import Deleter
from service.settings import Settings
from workers.data.preparation import decoded
settings = Settings(data_dir=Path(sys.argv[1]), data_root=Path(sys.argv[2]))
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = die
decoded.remove = die
Path.unlink = die
getattr(Deleter(Database(settings.database), settings), sys.argv[3])(sys.argv[4])
"""


def killed_while(api: Api, method: str, id: str) -> None:
    """Another process deletes it, and is killed when the rows are gone and the files are not."""
    command = [sys.executable, "-c", KILLED, str(api.settings.data_dir), str(api.settings.data_root), method, id]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_files_that_a_killed_deletion_has_left_are_swept_and_no_others(api: Api) -> None:
    """A start does not take them for those of a lost database, which it must never remove."""
    job_id = a_job(api)
    unknown = api.settings.jobs_dir / "job_of_another_database" / "run_x" / "a1"
    unknown.mkdir(parents=True)
    killed_while(api, "delete_job", job_id)
    assert api.client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert len(list((api.settings.jobs_dir / job_id).rglob("log.jsonl"))) == 2
    told = unknown_files(api.settings, api.context.database)
    assert told is not None
    assert "job_of_another_database" in told
    assert job_id not in told
    assert api.context.deletion.tombstones.sweep() == 2000
    assert not (api.settings.jobs_dir / job_id).exists()
    assert unknown.is_dir()


def test_a_tombstone_stays_for_a_while_because_a_process_may_make_the_folder_again(api: Api) -> None:
    job_id = a_job(api)
    api.context.deletion.delete_job(job_id)
    (api.settings.jobs_dir / job_id / "run_x" / "a1").mkdir(parents=True)
    assert unknown_files(api.settings, api.context.database) is None
    with api.context.database.write() as session:
        session.get_one(DeletedPathRecord, f"jobs/{job_id}").deleted_at = utc_now().replace(year=2020)
    api.context.deletion.tombstones.sweep()
    assert not (api.settings.jobs_dir / job_id).exists()
    assert "deleted_paths" not in rows(api.context.database)


def test_a_teachers_file_left_by_a_killed_deletion_goes_unless_it_was_uploaded_again(api: Api) -> None:
    teacher = api.teacher()
    path = api.settings.teacher_path(api.queries.get(TeacherRecord, teacher).sha256)
    killed_while(api, "delete_teacher", teacher)
    assert path.is_file()
    assert unknown_files(api.settings, api.context.database) is None
    again = api.teacher()
    api.context.deletion.tombstones.sweep()
    assert path.is_file()
    killed_while(api, "delete_teacher", again)
    api.context.deletion.tombstones.sweep()
    assert not path.exists()


def test_a_teacher_of_live_jobs_is_refused_by_their_names_and_shared_bytes_stay(api: Api) -> None:
    jobs = [api.post_job()["id"] for _ in range(2)]
    teacher = api.teacher()
    answer = api.client.delete(f"/v1/teachers/{teacher}")
    assert answer.status_code == 409
    assert all(job in answer.json()["detail"] for job in jobs)
    sha256 = api.queries.get(TeacherRecord, teacher).sha256
    twin = teacher_row(sha256)
    twin.identity = "f" * 64
    api.queries.add_teacher(twin, lambda: None)
    for job in jobs:
        api.client.post(f"/v1/jobs/{job}/cancel")
    path = api.settings.teacher_path(sha256)
    assert api.client.delete(f"/v1/teachers/{teacher}").status_code == 204
    assert path.read_bytes() == onnx_bytes()
    assert api.client.delete(f"/v1/teachers/{twin.id}").status_code == 204
    assert not path.exists()


# ----------------------------------------------------------------------------------------------------------- datasets


def an_npz(api: Api, name: str, seed: int = 0) -> NpzDataset:
    images = np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(6) % 2
    arrays = {
        f"{split}_{kind}": value
        for split in ("train", "test")
        for kind, value in (("images", images), ("labels", labels))
    }
    np.savez(api.settings.data_root / name, **arrays)
    return NpzDataset(path=name)


def decode(api: Api, spec: NpzDataset | DigitsDataset) -> set[str]:
    """Decodes both splits; returns the fingerprints."""
    splits = ("train", "test")
    made = [prepare(spec, split, api.settings.data_root, api.settings.datasets_dir) for split in splits]
    return {dataset.fingerprint for dataset in made}


def register(api: Api, name: str, spec: NpzDataset | DigitsDataset) -> str:
    row = DatasetRecord(id=new_id("ds"), name=name, spec=spec.model_dump(mode="json"))
    return api.queries.add_dataset(row)[0].id


def there(api: Api) -> set[str]:
    return {copy.fingerprint for copy in decoded.copies(api.settings.datasets_dir)}


def test_delete_dataset_takes_its_decoded_copy_and_leaves_the_pictures_and_others(api: Api) -> None:
    spec, other = an_npz(api, "a.npz"), an_npz(api, "b.npz", seed=1)
    decode(api, spec)
    others = decode(api, other)
    dataset = register(api, "a", spec)
    assert api.client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert there(api) == others
    assert (api.settings.data_root / "a.npz").is_file()
    assert api.client.delete(f"/v1/datasets/{dataset}").status_code == 404
    # Made again on need.
    again = decode(api, spec)
    assert there(api) == others | again


def test_a_decoded_copy_is_found_after_its_pictures_have_changed_or_gone(api: Api) -> None:
    spec = an_npz(api, "a.npz")
    decode(api, spec)
    dataset = register(api, "a", spec)
    (api.settings.data_root / "a.npz").unlink()
    assert api.client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert there(api) == set()


def test_a_decoded_copy_that_another_name_or_another_source_has_stays(api: Api) -> None:
    spec = an_npz(api, "a.npz")
    made = decode(api, spec)
    names = [register(api, name, spec) for name in ("one", "two")]
    assert api.client.delete(f"/v1/datasets/{names[0]}").status_code == 204
    assert there(api) == made
    twin = an_npz(api, "twin.npz")
    assert decode(api, twin) == made
    assert api.client.delete(f"/v1/datasets/{names[1]}").status_code == 204
    assert there(api) == made


def test_a_data_set_of_live_jobs_is_refused_by_their_names(api: Api) -> None:
    dataset = register(api, "numbers", DigitsDataset())
    job = api.post_job(dataset="numbers")["id"]
    answer = api.client.delete(f"/v1/datasets/{dataset}")
    assert answer.status_code == 409
    assert f"is used by job {job}" in answer.json()["detail"]
    api.client.post(f"/v1/jobs/{job}/cancel")
    assert api.client.delete(f"/v1/datasets/{dataset}").status_code == 204


def test_a_decoded_copy_left_by_a_killed_deletion_goes_unless_it_is_used_again(api: Api) -> None:
    spec = an_npz(api, "a.npz")
    made = decode(api, spec)
    killed_while(api, "delete_dataset", register(api, "a", spec))
    assert there(api) == made
    decode(api, spec)
    api.context.deletion.tombstones.sweep()
    assert there(api) == made
    killed_while(api, "delete_dataset", register(api, "a", spec))
    api.context.deletion.tombstones.sweep()
    assert there(api) == set()
    assert "deleted_paths" not in rows(api.context.database)


def test_delete_of_what_is_not_there_is_not_found(deletion: Deleter) -> None:
    for method, kind in (("delete_job", "job"), ("delete_run", "run"), ("delete_dataset", "ds"), ("pin_job", "job")):
        with pytest.raises(NotFound):
            getattr(deletion, method)(new_id(kind))
