"""What retention chooses and keeps, how it is asked for, and what compacted events are to whoever reads them."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select, text, update

from service.cli import main
from service.db.database import Database
from service.db.deletions.deletion import Deleter
from service.db.deletions.retention import DAY_S, Collected, Limits, Retention
from service.db.engine_queries import EngineQueries
from service.db.models import (
    DeletedPathRecord,
    EventRecord,
    JobRecord,
    PackedEventsRecord,
    TeacherRecord,
    utc_now,
)
from service.db.queries.api_queries import ApiQueries
from service.db.queries.packed_events import PACK_MAX, PROGRESS, compact
from service.db.scheduling.job_control import JobControl
from service.db.states import State
from service.engine.housekeeping import Housekeeper
from service.settings import Settings
from tests.support.filled import fill
from tests.support.service_helpers import Api, add_job, make_plan, make_settings, start_run, teacher_row
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation import decoded
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.files import alone

pytest_plugins = ["tests.support.service_fixtures"]
FILE_BYTES = 1000


def without_reasons(collected: Collected) -> Collected:
    return replace(collected, jobs=[replace(job, reason="") for job in collected.jobs])


class Shelf:
    """Jobs that ended 5, 4, 3, 2, 1 days ago, each with a file of 1000 bytes."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self.api_queries, self.queries = ApiQueries(database), EngineQueries(database, "engine")
        self.deletion = Deleter(database, settings)
        self.retention = Retention(settings, self.deletion)
        teacher, _ = self.api_queries.add_teacher(teacher_row(), lambda: None)
        states = [State.SUCCEEDED, State.CANCELLED, State.FAILED, State.CANCELLED, State.SUCCEEDED]
        self.ids = fill(database, teacher, make_plan(), states)
        for age, job_id in zip((5, 4, 3, 2, 1), self.ids, strict=True):
            self.ended(job_id, age)
            folder = settings.jobs_dir / job_id / "run_x" / "a1"
            folder.mkdir(parents=True)
            (folder / "log.jsonl").write_bytes(b"x" * FILE_BYTES)

    def ended(self, job_id: str, days_ago: float) -> None:
        at = utc_now() - timedelta(days=days_ago)
        with self.database.write() as session:
            session.execute(update(JobRecord).where(JobRecord.id == job_id).values(finished_at=at))

    def collect(self, dry_run: bool = False, **limits: float | None) -> list[int]:
        """Which of the jobs go; a dry run before it says the same, and nothing but that."""
        limited = Limits(**limits)  # type: ignore[arg-type]  # whichever it is
        told = self.retention.collect(limited, dry_run=True)
        assert len(self.api_queries.jobs(None, None, 100)[0]) == self.there
        if dry_run:
            return [self.ids.index(job.id) for job in told.jobs]
        done = self.retention.collect(limited)
        # A reason names the second in which it was asked for.
        assert without_reasons(done) == without_reasons(told)
        assert [job.size_bytes for job in done.jobs] == [FILE_BYTES] * len(done.jobs)
        return [self.ids.index(job.id) for job in done.jobs]

    @property
    def there(self) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(JobRecord)) or 0


@pytest.fixture
def shelf(database: Database, tmp_path: Path) -> Shelf:
    settings = make_settings(tmp_path)
    settings.make_folders()
    return Shelf(database, settings)


def test_without_limits_nothing_goes(shelf: Shelf) -> None:
    assert shelf.collect() == []
    assert Limits.of(shelf.settings) == Limits()


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({"jobs_max_age_s": 2.5 * DAY_S}, [0, 1, 2]),
        ({"jobs_max_count": 4}, [0]),
        ({"jobs_max_count": 0}, [0, 1, 2, 3, 4]),
        ({"jobs_max_bytes": 3 * FILE_BYTES}, [0, 1]),
        ({"jobs_max_bytes": 3 * FILE_BYTES - 1}, [0, 1, 2]),
        ({"jobs_max_age_s": 4.5 * DAY_S, "jobs_max_count": 3, "jobs_max_bytes": 2 * FILE_BYTES}, [0, 1, 2]),
    ],
)
def test_jobs_go_by_age_number_and_bytes_those_that_ended_first_first(
    shelf: Shelf, limits: dict[str, float], gone: list[int]
) -> None:
    assert shelf.collect(**limits) == gone
    left = [job_id for number, job_id in enumerate(shelf.ids) if number not in gone]
    assert sorted(path.name for path in shelf.settings.jobs_dir.iterdir()) == left
    assert shelf.collect(**limits) == []


def test_pinned_live_and_needed_jobs_stay_and_count(shelf: Shelf) -> None:
    shelf.deletion.pin_job(shelf.ids[0])
    retry, _ = shelf.api_queries.retry_job(shelf.ids[1], lambda: None)
    folder = shelf.settings.jobs_dir / retry.id
    folder.mkdir()
    (folder / "log.jsonl").write_bytes(b"x" * FILE_BYTES)
    # Two that stay and one of the others are three that have ended.
    assert shelf.collect(dry_run=True, jobs_max_count=3) == [2, 3]
    # The live one's files are among those of all.
    assert shelf.collect(dry_run=True, jobs_max_bytes=5 * FILE_BYTES) == [2]
    assert shelf.collect(jobs_max_age_s=0) == [2, 3, 4]
    JobControl(shelf.database).cancel_job(retry.id)
    shelf.ids.append(retry.id)
    assert shelf.collect(jobs_max_age_s=0) == [1, 5]


def test_a_job_that_is_pinned_after_it_was_chosen_stays(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    delete = Deleter.delete_job

    def pinned_meanwhile(self: Deleter, job_id: str) -> int:
        self.pin_job(shelf.ids[1])
        return delete(self, job_id)

    monkeypatch.setattr(Deleter, "delete_job", pinned_meanwhile)
    assert [job.id for job in shelf.retention.collect(Limits(jobs_max_age_s=0)).jobs] == [shelf.ids[0], *shelf.ids[2:]]
    assert shelf.queries.job(shelf.ids[1]).pinned_at is not None


def test_settings_are_limits_in_days_and_0_is_none(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, jobs_max_age_days=0.5, jobs_max_bytes=7, events_max_age_days=1)
    assert Limits.of(settings) == Limits(jobs_max_age_s=DAY_S / 2, jobs_max_bytes=7, events_max_age_s=DAY_S)


# ------------------------------------------------------------------------------------------------------- housekeeping


def test_the_leading_engine_collects_what_the_settings_say_and_another_one_nothing(shelf: Shelf) -> None:
    settings = shelf.settings.model_copy(update={"jobs_max_count": 1})
    with shelf.database.write() as session:
        session.add(DeletedPathRecord(path="jobs/gone"))
    (settings.jobs_dir / "gone").mkdir()
    settings.exports_dir.mkdir()
    export = settings.exports_dir / "old.npz.sha256"
    export.touch()
    os.utime(export, (0, 0))
    other = EngineQueries(shelf.database, "another")
    assert other.acquire_lease()
    keeper = Housekeeper(settings, shelf.queries, period_s=0.01)
    with keeper:
        assert_soon_stays(lambda: shelf.there == 5)
        assert other.release_lease()
        assert shelf.queries.acquire_lease()
        wait_until(lambda: shelf.there == 1)
    assert not (settings.jobs_dir / "gone").exists()
    assert not export.exists()


def test_housekeeping_goes_on_after_a_failure(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(*_: object, **__: object) -> None:
        failed.set()
        raise OSError("the disk fails")

    assert shelf.queries.acquire_lease()
    with monkeypatch.context() as patched:
        patched.setattr(Retention, "collect", fail)
        keeper = Housekeeper(shelf.settings.model_copy(update={"jobs_max_count": 1}), shelf.queries, period_s=0.01)
        with keeper:
            assert failed.wait(30)
            patched.undo()
            wait_until(lambda: shelf.there == 1)


def wait_until(is_so: Callable[[], bool]) -> None:
    polled = threading.Event()
    for _ in range(3000):
        if is_so():
            return
        polled.wait(0.01)
    raise AssertionError("it has not happened within 30 s")


def assert_soon_stays(is_so: Callable[[], bool]) -> None:
    polled = threading.Event()
    for _ in range(20):
        assert is_so()
        polled.wait(0.01)


# ------------------------------------------------------------------------------------------------------- decoded data


@pytest.fixture
def copies(shelf: Shelf) -> list[decoded.Copy]:
    """Three decoded copies of 1 split each, used 3, 2 and 1 hours ago."""
    made = []
    for hours in (3, 2, 1):
        arrays = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"] = np.random.default_rng(hours).integers(0, 256, (8, 8, 8), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(8) % 2
        np.savez(shelf.settings.data_root / f"{hours}.npz", **arrays)
        prepared(shelf, hours)
        (new,) = [
            copy for copy in decoded.copies(shelf.settings.datasets_dir) if copy.used_at > utc_now() - decoded.IDLE
        ]
        used_s = (utc_now() - timedelta(hours=hours)).timestamp()
        os.utime(shelf.settings.datasets_dir / new.name / decoded.META, (used_s, used_s))
        made.append(new)
    return made


def prepared(shelf: Shelf, hours: int) -> Dataset:
    root, work_dir = shelf.settings.data_root, shelf.settings.datasets_dir
    return prepare(NpzDataset(path=f"{hours}.npz"), "train", root, work_dir)


def left(shelf: Shelf) -> list[str]:
    return [copy.fingerprint for copy in decoded.copies(shelf.settings.datasets_dir)]


def test_decoded_copies_go_the_least_recently_used_first_until_they_fit(
    shelf: Shelf, copies: list[decoded.Copy]
) -> None:
    first, second, third = copies
    limits = Limits(decoded_max_bytes=second.size_bytes + third.size_bytes)
    assert [copy.fingerprint for copy in shelf.retention.collect(limits, dry_run=True).decoded] == [first.fingerprint]
    assert left(shelf) == [copy.fingerprint for copy in copies]
    done = shelf.retention.collect(limits)
    assert done.files_bytes == first.size_bytes
    assert left(shelf) == [second.fingerprint, third.fingerprint]
    # It is made again when it is needed, and has just been used.
    assert prepared(shelf, 3).fingerprint == first.fingerprint
    shelf.retention.collect(Limits(decoded_max_bytes=0))
    assert left(shelf) == [first.fingerprint]


def test_decoded_copies_that_a_live_job_was_told_of_or_that_were_just_opened_stay(
    shelf: Shelf, copies: list[decoded.Copy]
) -> None:
    first, second, third = copies
    job = add_job(shelf.api_queries)
    assert shelf.queries.acquire_lease()
    shelf.queries.claim_job()
    told = {"type": "dataset_ready", "split": "train", "fingerprint": first.fingerprint}
    assert shelf.queries.record_events(job.id, None, 1, [(0, told)])
    # As a process of a run does: it maps the copy, and keeps it even if that goes.
    opened = open_prepared(shelf.settings.datasets_dir, second.fingerprint)
    done = shelf.retention.collect(Limits(decoded_max_bytes=0))
    assert [copy.fingerprint for copy in done.decoded] == [third.fingerprint]
    assert shelf.retention.collect(Limits(decoded_max_bytes=0)).decoded == []
    assert decoded.remove(shelf.settings.datasets_dir, second.name, utc_now() + timedelta(days=1)) == second.size_bytes
    assert opened.take(slice(0, 8)).shape == (8, 8, 8, 1)
    JobControl(shelf.database).cancel_job(job.id)
    assert shelf.queries.move_job(job.id, State.CANCELLED)
    assert [copy.fingerprint for copy in shelf.retention.collect(Limits(decoded_max_bytes=0)).decoded] == [
        first.fingerprint
    ]


def test_what_a_killed_decoding_has_left_goes_and_what_is_being_decoded_stays(shelf: Shelf) -> None:
    work_dir = shelf.settings.datasets_dir
    (work_dir / decoded.SOURCES).mkdir()
    names = [f"{digit * 64}.train" for digit in "ab"]
    for name in names:
        (work_dir / f"{decoded.PARTIAL_PREFIX}{name}").mkdir()
    (work_dir / f".deleted-{'c' * 64}-1").mkdir()
    with alone(work_dir / decoded.SOURCES / f"{names[0]}.lock", lambda: True, "decodes it"):
        shelf.retention.collect(Limits())
    assert [path.name for path in work_dir.glob(".*")] == [f"{decoded.PARTIAL_PREFIX}{names[0]}"]


# ------------------------------------------------------------------------------------------------------------- events


def a_told_job(api_queries: ApiQueries, queries: EngineQueries, epochs: int) -> tuple[JobRecord, str]:
    """A job that has ended, with events of every kind; the id of its first run."""
    job = add_job(api_queries)
    assert queries.claim_job() is not None
    progress = {"type": "inference_progress", "split": "train", "rows_done": 1, "rows_total": 3, "rows_inferred": 1}
    told = [(n, {**progress, "cache": key}) for n, key in enumerate("aabab")]
    queries.record_events(job.id, None, 1, told)
    runs = queries.runs(job.id)
    attempts = [start_run(queries, run.id) for run in runs]
    events: list[dict[str, object]] = []
    for epoch in range(1, epochs + 1):
        events += [{"type": "step", "epoch": epoch, "step": 1}]
        events += [{"type": "epoch", "epoch": epoch, "epochs": epochs, "metrics": {"epoch": epoch, "top1": 1 / epoch}}]
    # The runs take turns, so their events lie between each other.
    for start in range(0, len(events), 60):
        for run, attempt in zip(runs, attempts, strict=True):
            some = list(enumerate(events))[start : start + 60]
            assert queries.record_events(job.id, run.id, attempt or 0, some)
    for run, attempt in zip(runs, attempts, strict=True):
        queries.move_run(run.id, attempt or 0, State.SUCCEEDED, result={})
    assert queries.move_job(job.id, State.SUCCEEDED)
    return job, runs[0].id


def every(api_queries: ApiQueries, owner: object, limit: int) -> list[tuple[object, ...]]:
    """All events of a job or run, page by page."""
    found: list[tuple[object, ...]] = []
    after, has_more = 0, True
    while has_more:
        rows, has_more = api_queries.events(owner, after, limit)  # type: ignore[arg-type]  # of either kind
        assert len(rows) <= limit
        after = rows[-1].seq
        found += [(row.seq, row.job_id, row.run_id, row.attempt, row.n, row.type, row.data, row.at) for row in rows]
    return found


@pytest.mark.parametrize("limit", [7, 1000])
def test_compacted_events_are_what_they_were_without_steps_and_superseded_progress(
    api_queries: ApiQueries, queries: EngineQueries, limit: int
) -> None:
    job, run_id = a_told_job(api_queries, queries, epochs=PACK_MAX + 20)
    other, _ = a_told_job(api_queries, queries, epochs=3)
    run = queries.run(run_id)
    owners = (job, run, other)
    before, metrics = [every(api_queries, owner, 1000) for owner in owners], api_queries.metrics(run_id)
    kept = [
        [row for row in rows if row[5] != "step" and not (row[5] == "inference_progress" and row[4] in (0, 1, 2))]
        for rows in before
    ]
    saved = compact(api_queries.database, job.id)
    assert [every(api_queries, owner, limit) for owner in owners] == [kept[0], kept[1], before[2]]
    assert api_queries.metrics(run_id) == metrics
    with api_queries.database.read() as session:
        packs = session.scalar(select(func.count()).select_from(PackedEventsRecord)) or 0
        rest = session.scalar(select(func.count()).where(EventRecord.job_id == job.id))
    assert (rest, saved) == (0, len(before[0]) - packs)
    assert packs == 5
    assert compact(api_queries.database, job.id) == 0


@pytest.mark.parametrize("limit", [7, 1000])
def test_a_job_of_which_one_run_alone_was_compacted_is_read_in_order(
    api_queries: ApiQueries, queries: EngineQueries, limit: int
) -> None:
    """As a kill in the middle leaves it; what the runs told lies between each other."""
    job, run_id = a_told_job(api_queries, queries, epochs=PACK_MAX + 20)
    before = every(api_queries, job, 1000)
    asked = iter([False, False])
    compact(api_queries.database, job.id, lambda: next(asked, True))
    with api_queries.database.read() as session:
        assert session.scalar(select(func.count()).where(EventRecord.run_id == run_id)) == 0
        assert session.scalar(select(func.count()).where(EventRecord.job_id == job.id))
    assert every(api_queries, job, limit) == [row for row in before if row[2] != run_id or row[5] != "step"]
    newest_first = [row[0] for row in reversed(before) if row[5] not in PROGRESS]
    found, number, has_more = list[int](), 2**62, True
    while has_more:
        rows, has_more = api_queries.events(job, 0, limit, before=number)
        number = rows[-1].seq
        found += [row.seq for row in rows]
    assert found == newest_first


def test_events_of_a_live_job_are_not_compacted(api_queries: ApiQueries, queries: EngineQueries) -> None:
    job = add_job(api_queries)
    queries.claim_job()
    assert compact(api_queries.database, job.id) == 0
    assert len(every(api_queries, job, 10)) == 1


def test_an_event_that_is_damaged_stays_where_it_is(
    api_queries: ApiQueries, queries: EngineQueries, database: Database
) -> None:
    job, run_id = a_told_job(api_queries, queries, epochs=3)
    metrics = api_queries.metrics(run_id)
    if not database.is_sqlite:
        pytest.skip("PostgreSQL takes no damaged JSON")
    with database.write() as session:
        broken = text("UPDATE events SET data = '{' WHERE run_id = :run AND n = 3")
        session.execute(broken, {"run": run_id})
    compact(database, job.id)
    assert api_queries.metrics(run_id) == [metrics[0], metrics[2]]
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM events WHERE data = '{'")) == 1


def test_events_go_by_the_age_of_their_job_and_not_while_streams_may_wait_for_its_end(
    api_queries: ApiQueries, queries: EngineQueries, database: Database, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path)
    settings.make_folders()
    retention = Retention(settings, Deleter(database, settings))
    job, _ = a_told_job(api_queries, queries, epochs=3)
    assert retention.collect(Limits(events_max_age_s=0)).compacted_events == 0
    with database.write() as session:
        session.get_one(JobRecord, job.id).finished_at = utc_now() - timedelta(hours=2)
    assert retention.collect(Limits(events_max_age_s=3 * 3600)).compacted_jobs == 0
    count = len(every(api_queries, job, 1000))
    for dry_run in (True, False):
        done = retention.collect(Limits(events_max_age_s=0), dry_run=dry_run)
        assert (done.compacted_jobs, done.compacted_events) == (1, count)
    assert retention.collect(Limits(events_max_age_s=0)).compacted_jobs == 0


def test_a_long_job_is_compacted_before_it_is_deleted(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction that deletes millions of rows would hold up the engine's heartbeat."""
    monkeypatch.setattr("service.db.deletions.deletion.EVENTS_AT_ONCE", 3)
    compacted = []
    monkeypatch.setattr("service.db.deletions.deletion.compact", lambda _, job_id: compacted.append(job_id))
    shelf.deletion.delete_job(shelf.ids[0])
    assert compacted == [shelf.ids[0]]


def test_an_sqlite_file_is_smaller_after_a_collection(tmp_path: Path) -> None:
    from service.db.database import upgrade_to_head

    settings = make_settings(tmp_path)
    settings.make_folders()
    upgrade_to_head(settings.database)
    database = Database(settings.database)
    try:
        api_queries, queries = ApiQueries(database), EngineQueries(database)
        job, _ = a_told_job(api_queries, queries, epochs=400)
        database.checkpoint()
        before, _ = database.size_bytes()
        Retention(settings, Deleter(database, settings)).collect(Limits(jobs_max_count=0))
        database.checkpoint()
        after, free = database.size_bytes()
        assert (tmp_path / "data" / "retort.sqlite3").stat().st_size == after < before / 2
        assert free == 0
        assert job.id not in {row.id for row in api_queries.jobs(None, None, 10)[0]}
    finally:
        database.close()


# ---------------------------------------------------------------------------------------------- over HTTP, as a command


@pytest.fixture
def filled(api: Api) -> list[str]:
    teacher = api.queries.get(TeacherRecord, api.teacher())
    return fill(api.context.database, teacher, make_plan(), [State.SUCCEEDED, State.FAILED, State.RUNNING])


def test_gc_over_http_takes_what_is_asked_for_and_says_what_there_is(api: Api, filled: list[str]) -> None:
    report = api.client.post("/v1/gc", json={"dry_run": True, "jobs_max_count": 1}).json()
    assert [job["id"] for job in report["jobs"]] == filled[:1]
    assert report["jobs"][0]["reason"] == "more than 1 have ended"
    assert (report["usage"]["jobs"], report["usage"]["ended_jobs"]) == (3, 2)
    assert report["usage"]["database_bytes"] > 100_000
    assert api.client.post("/v1/gc", json={}).json()["jobs"] == []
    assert len(api.client.get("/v1/jobs").json()["data"]) == 3
    assert len(api.client.post("/v1/gc", json={"jobs_max_count": 1}).json()["jobs"]) == 1
    assert [job["id"] for job in api.client.get("/v1/jobs").json()["data"]] == filled[:0:-1]
    for wrong in ({"jobs_max_count": -1}, {"older_than": 3}, {"jobs_max_age_s": False}, {"jobs_max_count": "0"}):
        assert api.client.post("/v1/gc", json=wrong).status_code == 422
    assert len(api.client.get("/v1/jobs").json()["data"]) == 2


def test_gc_pin_and_delete_as_commands(api: Api, filled: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def retort(*words: str) -> str:
        assert main(["--url", api.url, *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    retort("pin", filled[0])
    assert "0 jobs and 0 decoded datasets would go: 0 B of files" in retort("gc", "--dry-run")
    told = retort("gc", "--dry-run", "--older-than", "0s", "--max-bytes", "1.5GiB", "--keep", "7")
    assert filled[1] in told
    assert filled[0] not in told
    assert "3, 2 ended, 1 pinned" in told
    assert "1 jobs and 0 decoded datasets have gone" in retort("gc", "--keep", "0", "--compact-events")
    retort("unpin", filled[0])
    retort("delete", api.records.runs(filled[0])[0].id)
    retort("delete", filled[0])
    assert main(["--url", api.url, "delete", filled[0]]) == 1
    assert main(["--url", api.url, "delete", filled[2]]) == 1
    assert "is running: cancel it" in capsys.readouterr().err
    for words in (("--older-than", "soon"), ("--max-bytes", "much")):
        assert main(["--url", api.url, "gc", *words]) == 1
        assert f"{words[0]} {words[1]!r} is no" in capsys.readouterr().err
