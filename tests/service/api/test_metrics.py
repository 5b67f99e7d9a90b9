"""What Prometheus reads: every family against rows and requests of known number, and labels that no client chooses."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, select, text, update

from service.api.dependencies import Context
from service.api.metrics import METHODS, Metrics
from service.db.database import Database
from service.db.models import EngineRecord, JobRecord, RunRecord, utc_now
from service.db.states import State
from tests.service.api.test_routes import problem
from tests.support.filled import fill
from tests.support.service_helpers import Api, make_plan, make_settings, running_api, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(content: bytes) -> Samples:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(content.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"retort_{name}", frozenset(labels.items())]


def scrape(client: httpx2.Client) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse(response.content)


@contextmanager
def context_of(folder: Path, url: str) -> Iterator[Context]:
    """What an API process on this database has, and another one beside it would have."""
    settings = make_settings(folder, database_url=url, disk_floor_bytes=12345)
    settings.make_folders()
    context = Context.of(settings)
    with closing(context.database):
        yield context


# ------------------------------------------------------------------------------------------------- from the database


def test_every_sum_of_the_database_is_told_alike_by_every_process(tmp_path: Path, database_url: str) -> None:
    with context_of(tmp_path, database_url) as context:
        states = [State.QUEUED, State.QUEUED, *[State.SUCCEEDED] * 3, State.RUNNING, State.LOST]
        jobs = fill(context.database, teacher_row(), make_plan(seeds=(0, 1)), states)
        with context.database.write() as session:
            # All of these have finished their caches: five jobs had rows inferred, one found all, one is at it.
            session.execute(update(JobRecord).where(JobRecord.id.in_(jobs[:2])).values(teacher_accuracy=None))
            session.execute(update(JobRecord).where(JobRecord.id.in_(jobs[:2])).values(teacher_forwards=None))
            found = {"run": 0, "avoided": 5_000_000_000}
            session.execute(update(JobRecord).where(JobRecord.id == jobs[2]).values(teacher_forwards=found))
            costs = {"run": 4_000_000_000, "avoided": -700}
            session.execute(update(JobRecord).where(JobRecord.id == jobs[3]).values(teacher_forwards=costs))
            rest = {"run": 10, "avoided": 20}
            session.execute(update(JobRecord).where(JobRecord.id.in_(jobs[4:])).values(teacher_forwards=rest))
            begun = {"stage": "inference", "teacher_accuracy": None, "inference": {"rows_per_s": 750.5}}
            session.execute(update(JobRecord).where(JobRecord.id == jobs[5]).values(begun))
            posted = utc_now() - timedelta(hours=2)
            session.execute(update(JobRecord).where(JobRecord.id == jobs[0]).values(created_at=posted))
            runs = session.scalars(select(RunRecord.id).where(RunRecord.job_id == jobs[5])).all()
            told: list[dict[str, object]] = [
                {"progress": {"images_per_s": 100.0}, "metrics": {"images_per_s": 1.0}},
                {"progress": None, "metrics": {"images_per_s": 20.0}},
                {"progress": None, "metrics": None, "attempt": 4, "lost_attempts": 3},
                {"progress": None, "metrics": {"images_per_s": None}},
            ]
            for run_id, values in zip(runs, told, strict=True):
                session.execute(update(RunRecord).where(RunRecord.id == run_id).values(values))
        lead(context.database, age_s=7.0)

        samples = parse(Metrics(context, "1.2.3").text())
        assert value(samples, "build_info", version="1.2.3") == 1
        assert value(samples, "database_up") == 1
        jobs_by_state = {State.QUEUED: 2, State.SUCCEEDED: 3, State.RUNNING: 1, State.LOST: 1}
        for state in State:
            assert value(samples, "jobs", state=state) == jobs_by_state.get(state, 0)
            assert value(samples, "runs", state=state) == 4 * jobs_by_state.get(state, 0)
        assert value(samples, "queue_age_seconds") == pytest.approx(7200, abs=60)
        assert value(samples, "engine_up") == 1
        assert value(samples, "engine_heartbeat_age_seconds") == pytest.approx(7, abs=5)
        assert value(samples, "cache_hits_total") == 1
        assert value(samples, "cache_misses_total") == 3
        assert value(samples, "teacher_forwards_total") == 4_000_000_030
        assert value(samples, "teacher_forwards_avoided") == 5_000_000_000 + 60
        assert value(samples, "inference_rows_per_second") == 750.5
        assert value(samples, "training_rows_per_second") == 120
        assert value(samples, "run_attempts_total") == 4 * 5 + 3
        assert value(samples, "run_attempts_lost_total") == 3
        assert value(samples, "disk_floor_bytes") == 12345
        assert value(samples, "disk_free_bytes") > 0
        assert value(samples, "process_resident_memory_bytes") > 1e6
        with context_of(tmp_path, database_url) as other:
            theirs = parse(Metrics(other, "1.2.3").text())
        for name in ("jobs", "runs", "cache_hits_total", "teacher_forwards_total", "run_attempts_total"):
            mine = {key: number for key, number in samples.items() if key[0] == f"retort_{name}"}
            assert mine == {key: number for key, number in theirs.items() if key[0] == f"retort_{name}"}


def lead(database: Database, age_s: float | None) -> None:
    """An engine leads, and was last heard of so long ago; None: nobody leads."""
    with database.write() as session:
        beat = None if age_s is None else database.now(session) - timedelta(seconds=age_s)
        holder = None if age_s is None else "engine"
        session.execute(update(EngineRecord).values(holder=holder, heartbeat_at=beat))


def test_without_an_engine_nothing_is_said_to_go_on(tmp_path: Path, database_url: str) -> None:
    """An empty queue has no age, and what a dead engine last told is no rate of today."""
    with context_of(tmp_path, database_url) as context:
        fill(context.database, teacher_row(), make_plan(), [State.RUNNING])
        with context.database.write() as session:
            session.execute(update(JobRecord).values(stage="inference"))
            session.execute(update(RunRecord).values(progress={"images_per_s": 100.0}))
        metrics = Metrics(context, "1")
        for age_s, up in ((1.0, 1), (3600.0, 0), (-3600.0, 0), (None, 0)):
            lead(context.database, age_s)
            samples = parse(metrics.text())
            assert value(samples, "engine_up") == up
            assert value(samples, "inference_rows_per_second") == 9000 * up
            assert value(samples, "training_rows_per_second") == 200 * up
            assert (("retort_engine_heartbeat_age_seconds", frozenset()) in samples) == (age_s is not None)
        assert value(samples, "queue_age_seconds") == 0
        assert value(samples, "jobs", state="running") == 1


def test_a_lost_attempt_counts_as_one(api: Api) -> None:
    run = api.post_job(methods=["kd"])["run_ids"][0]
    api.records.claim_job()
    for attempt in (1, 2):
        [started] = api.records.start_attempts([run])
        assert api.records.move_run(run, attempt, State.LOST)
    samples = scrape(api.client)
    assert value(samples, "run_attempts_total") == 2
    assert value(samples, "run_attempts_lost_total") == 2
    assert started.lost_attempts == 1


def test_a_database_that_cannot_be_read_is_told_and_does_not_fail_the_scrape(tmp_path: Path) -> None:
    """For whoever has the key of the file, which is known without a database."""
    with api_with_key(tmp_path, migrate=False) as api:
        samples = scrape(api.client)
        assert value(samples, "database_up") == 0
        assert value(samples, "disk_free_bytes") > 0
        assert not any(name == "retort_jobs" for name, _ in samples)
        assert any(line["event"] == "the database cannot be read for /metrics" for line in api.logs)


@contextmanager
def rows_of_statements(context: Context) -> Iterator[list[int]]:
    """How many rows each SELECT of what is read within has answered, filled in at the end."""
    asked: list[tuple[str, Any]] = []
    counts: list[int] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            asked.append((statement, parameters))

    event.listen(context.database._reading, "before_cursor_execute", note)
    try:
        yield counts
    finally:
        event.remove(context.database._reading, "before_cursor_execute", note)
    with context.database.read() as session:
        for statement, parameters in asked:
            count = f"SELECT count(*) FROM ({statement}) AS told"
            counts.append(session.connection().exec_driver_sql(count, parameters).scalar_one())


def test_a_scrape_reads_no_more_statements_and_rows_of_ten_thousand_jobs_than_of_one(
    tmp_path: Path, database_url: str
) -> None:
    """The database sums up. What a scrape takes is measured by ``tests.benchmarks.load``."""
    with context_of(tmp_path, database_url) as context:
        fill(context.database, teacher_row(), make_plan(seeds=(0, 1, 2)), [State.SUCCEEDED])
        metrics = Metrics(context, "1")
        with rows_of_statements(context) as of_one:
            metrics.text()
        numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 9999)"
        with context.database.write() as session:
            for table, keys in ((JobRecord, ("id",)), (RunRecord, ("id", "job_id"))):
                names = [column.name for column in table.__table__.columns]
                copied = [f"\"{name}\" || '-' || n" if name in keys else f'"{name}"' for name in names]
                into = ", ".join(f'"{name}"' for name in names)
                select_all = f"SELECT {', '.join(copied)} FROM {table.__tablename__}, numbers"
                head = f"INSERT INTO {table.__tablename__} ({into})"
                statement = f"{numbers} {head} {select_all}" if context.database.is_sqlite else None
                session.execute(text(statement or f"{head} {numbers} {select_all}"))
        with rows_of_statements(context) as of_many:
            samples = parse(metrics.text())
        assert value(samples, "jobs", state="succeeded") == 10_000
        assert value(samples, "runs", state="succeeded") == 60_000
        assert value(samples, "cache_misses_total") == 10_000
        assert of_many == of_one
        assert 0 < sum(of_one) < 30


# ---------------------------------------------------------------------------------------------------------- requests


def test_requests_are_counted_by_method_route_and_class_of_status(api: Api) -> None:
    job = api.post_job()
    for _ in range(3):
        api.client.get(f"/v1/jobs/{job['id']}")
    api.client.get("/v1/jobs/job_nowhere")
    api.client.post("/healthz")
    samples = scrape(api.client)
    route = "/v1/jobs/{job_id}"
    count = "http_response_seconds_count"
    assert value(samples, count, method="GET", route=route, status="2xx") == 3
    assert value(samples, count, method="GET", route=route, status="4xx") == 1
    assert value(samples, count, method="POST", route="/v1/jobs", status="2xx") == 1
    assert value(samples, count, method="POST", route="/healthz", status="4xx") == 1
    bucket = value(samples, "http_response_seconds_bucket", method="GET", route=route, status="2xx", le="+Inf")
    assert bucket == 3
    assert 0 < value(samples, "http_response_seconds_sum", method="GET", route=route, status="2xx") < 10
    # The scrape itself.
    assert value(samples, "http_requests_in_flight") == 1
    assert value(scrape(api.client), count, method="GET", route="/metrics", status="2xx") == 1


def test_an_open_stream_is_counted_while_it_is_open_and_timed_to_its_first_byte(api: Api) -> None:
    job = api.post_job()["id"]
    route = "/v1/jobs/{job_id}/events"
    with api.client.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as stream:
        assert stream.status_code == 200
        samples = scrape(api.client)
        assert value(samples, "event_streams") == 1
        assert value(samples, "http_requests_in_flight") == 2
        assert value(samples, "http_response_seconds_count", method="GET", route=route, status="2xx") == 1
    while value(scrape(api.client), "event_streams"):
        time.sleep(0.01)
    assert value(scrape(api.client), "http_requests_in_flight") == 1


def test_no_label_value_comes_from_a_client(api: Api) -> None:
    """However many paths, methods, ids and headers it thinks of; what is no route is one label."""
    mark = "zzqx"
    before = {dict(labels).get("route") for _, labels in scrape(api.client)}
    for path in (
        f"/{mark}",
        f"/v1/{mark}/1",
        f"/v1/jobs/{mark}",
        f"/v1/jobs/job_{mark}/runs",
        "/docs",
        f"/metrics/{mark}",
    ):
        for method in ("GET", "POST", mark.upper(), "PROPFIND"):
            headers = {"User-Agent": mark, "X-Request-Id": mark, "Accept": f"text/{mark}"}
            api.client.request(method, path, headers=headers, params={mark: mark})
    content = api.client.get("/metrics").content
    assert mark.encode() not in content.lower()
    samples = parse(content)
    labels = [dict(labels) for name, labels in samples if name == "retort_http_response_seconds_count"]
    assert {label["method"] for label in labels} <= METHODS | {"other"}
    assert {label["status"] for label in labels} <= {"2xx", "3xx", "4xx", "5xx", "none"}
    described = api.client.get("/openapi.json").json()["paths"]
    assert {label["route"] for label in labels} - before <= {*described, "/docs", "other"}
    assert value(samples, "http_response_seconds_count", method="other", route="other", status="4xx") > 0


def test_with_a_key_it_is_asked_for_and_a_host_name_that_is_not_ours_is_refused_without(tmp_path: Path) -> None:
    with api_with_key(tmp_path) as api:
        assert api.client.get("/metrics").status_code == 200
        problem(api.client.get("/metrics", headers={"Authorization": ""}), 401, "unauthorized")
    with running_api(make_settings(tmp_path)) as api:
        problem(api.client.get("/metrics", headers={"Host": "evil.example"}), 403, "foreign-origin")


@contextmanager
def api_with_key(folder: Path, *, migrate: bool = True) -> Iterator[Api]:
    """An API with a key file, and a client that brings the key."""
    key = "0123456789abcdef0123456789abcdef"
    (folder / "key").write_text(key)
    with running_api(make_settings(folder, api_key_file=folder / "key"), migrate=migrate) as api:
        api.client.headers["Authorization"] = f"Bearer {key}"
        yield api
