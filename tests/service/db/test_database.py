"""Migrations and transactions, on SQLite and on a real PostgreSQL."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import ValidationError
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.schema import SchemaItem

from service.api import job_documents
from service.api.routes import events, runs
from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.ids import new_id
from service.db.job_posting import Idempotency
from service.db.models import Base, JobRecord, TeacherRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.queries.packed_events import pack
from service.db.revisions import MIGRATIONS
from service.db.scheduling.job_control import JobControl
from service.db.states import State
from service.settings import Settings
from tests.support.service_helpers import PostgresServer, add_job, make_plan, start_run, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]


def differences(database: Database) -> list[Any]:
    """What autogeneration would write into another migration."""

    def is_made(thing: SchemaItem, *_: object) -> bool:
        """Whether this database has it: autogeneration does not heed ``Index.ddl_if``."""
        rule = getattr(thing, "_ddl_if", None)
        return rule is None or rule.dialect == ("sqlite" if database.is_sqlite else "postgresql")

    options = {"compare_type": True, "compare_server_default": True, "include_object": is_made}
    with database.read() as session:
        context = MigrationContext.configure(session.connection(), opts=options)
        found: list[Any] = compare_metadata(context, Base.metadata)
    return found


def test_the_migrations_make_the_tables_that_the_code_expects(database: Database) -> None:
    """Nothing is missing, left over, or of another type."""
    assert differences(database) == []
    assert database.is_at_head()


# ---------------------------------------------------------------------------------------- upgrades with data in place

CONFIG = Config()
CONFIG.set_main_option("script_location", str(MIGRATIONS))
REVISIONS = [script.revision for script in reversed(list(ScriptDirectory.from_config(CONFIG).walk_revisions()))]
AT = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)
PLAN = make_plan()
TEACHER = {
    name: value
    for name, value in vars(teacher_row()).items()
    if name in TeacherRecord.__table__.columns and name != "created_at"
}
JOB_ID, RETRIED_ID, RUN_IDS = new_id("job"), new_id("job"), [new_id("run"), new_id("run")]
ERROR = {"type": "NotFinite", "message": "loss is nan"}


def _run(index: int, **values: object) -> dict[str, object]:
    run = PLAN.runs()[index]
    described = {"name": run.name, "student": "cnn_s", "method": run.method.label, "seed": 0, "epochs": 3}
    spec = run.method.model_dump(mode="json")
    return {"id": RUN_IDS[index], "job_id": JOB_ID, "index": index, **described, "method_spec": spec, **values}


# Every column that any version has had, but for those that the database counts up. A value that a version has no column
# for is left out there.
ROWS: Mapping[str, list[dict[str, object]]] = {
    "teachers": [
        {**TEACHER, "reading": {"output_kind": "sigmoid"}, "file_class_names": ["cat", "dog"], "created_at": AT},
    ],
    "student_files": [
        {
            **{"id": new_id("stf"), "name": "begun", "sha256": "b" * 64, "size_bytes": 100, "created_at": AT},
            **{"tensors": 2, "parameters": 20, "dtypes": ["F32"]},
            **{"kind": "program", "program": {"shape": [3, None, None], "classes": 10}},
        },
    ],
    "datasets": [
        {
            "id": new_id("ds"),
            "name": "flowers",
            "spec": {"kind": "folder", "path": "flowers"},
            "classes": 5,
            "samples": {"train": 10, "test": 5},
            "created_at": AT,
        }
    ],
    "api_keys": [
        {
            "id": "key_1",
            "name": "ci",
            "digest": "d" * 64,
            "scope": "write",
            "created_at": AT,
            "last_used_at": AT,
            "revoked_at": AT,
        }
    ],
    "jobs": [
        {
            "id": JOB_ID,
            "name": "first",
            "state": "failed",
            "attempt": 2,
            "holder": "host:1",
            "stage": "training",
            "teacher_id": TEACHER["id"],
            "teacher": {name: TEACHER[name] for name in ("id", "name", "sha256", "output", "preprocessing")},
            "plan": PLAN.model_dump(mode="json"),
            "inference": {"rows_done": 5, "rows_total": 5, "rows_per_s": 1.5, "eta_s": 0.0},
            "caches": {"train": "a" * 64, "test": "b" * 64},
            "teacher_forwards": {"run": 10, "avoided": 20},
            "teacher_accuracy": 0.75,
            "teacher_views_accuracy": 0.5,
            "teacher_metrics": {"test": {"top1": 0.75}},
            "error": ERROR,
            "set_aside": None,
            "priority": 3,
            "parallel_runs": 2,
            "key_id": "key_1",
            "retry_of": None,
            "backoff": {"losses": 1, "faults": 0, "last": "so", "until": "2026-01-01T00:00:00Z"},
            "pinned_at": AT,
            "tags": ["baseline"],
            "note": "the first one",
            "search_text": "as it was",
            "samples": {"train": 10, "test": 5},
            "eta": {"expected_at": "2026-01-01T00:00:00Z", "as_of": "2026-01-01T00:00:00Z", "based_on": "its epochs"},
            "created_at": AT,
            "started_at": AT,
            "finished_at": AT,
        }
    ],
    "runs": [
        _run(
            0,
            state="succeeded",
            attempt=2,
            epoch=3,
            progress=None,
            metrics={"top1": 0.5},
            result={"last": {"top1": 0.5}},
            error=None,
            set_aside=None,
            losses=1,
            actor="run-x-a2",
            piece=0,
            share={"processes": 1, "cpus": 2.0, "gpu_share": 0.5},
            whole_gpu=True,
            waits_for=None,
            backoff=None,
            eta=None,
            retry_of=None,
            created_at=AT,
            started_at=AT,
            finished_at=AT,
        ),
        _run(
            1,
            state="failed",
            attempt=1,
            epoch=1,
            progress={"step": 1},
            metrics=None,
            result=None,
            error=ERROR,
            set_aside=None,
            losses=0,
            actor=None,
            piece=None,
            share=None,
            whole_gpu=False,
            waits_for="waits for a whole GPU",
            backoff={"losses": 1, "faults": 1, "last": "so", "until": "2026-01-01T00:00:00Z"},
            eta={"expected_at": "2026-01-01T00:00:00Z", "as_of": "2026-01-01T00:00:00Z", "based_on": "its epochs"},
            retry_of=None,
            created_at=AT,
            started_at=AT,
            finished_at=AT,
        ),
    ],
    "events": [
        {
            "job_id": JOB_ID,
            "run_id": RUN_IDS[0],
            "attempt": 2,
            "n": 1,
            "type": "epoch",
            "data": {"epoch": 1, "metrics": {"top1": 0.5}},
            "at": AT,
        }
    ],
    "artifacts": [
        {
            "run_id": RUN_IDS[0],
            "attempt": 2,
            "name": "student.onnx",
            "path": "jobs/x/student.onnx",
            "size_bytes": 2**40,
            "sha256": "c" * 64,
            "media_type": "application/octet-stream",
        }
    ],
    "packed_events": [
        {"id": 1, "job_id": JOB_ID, "run_id": "", "first_seq": 0, "last_seq": 0, "content": pack([])},
    ],
    "webhook_deliveries": [
        {
            "id": new_id("msg"),
            "job_id": JOB_ID,
            "url": "https://hooks.example.org/x",
            "host": "https://hooks.example.org",
            "status": "pending",
            "body": "{}",
            "attempts": 1,
            "last_attempt_at": AT,
            "last_status_code": 503,
            "last_error": "the receiver answered 503",
            "next_at": AT,
        }
    ],
    "deleted_paths": [{"path": "jobs/gone", "deleted_at": AT}],
    "deleted_sums": [{"name": "run_attempts", "value": 2.0}],
    "idempotency_keys": [{"key_id": "", "key": "mine", "digest": "e" * 64, "job_id": JOB_ID, "created_at": AT}],
}


def make_as_of(url: str, revision: str) -> dict[str, list[dict[str, object]]]:
    """A database as an older version has left it, with a row in every table; returns what was put into it."""
    engine = create_engine(Database(url).url)
    kept: dict[str, list[dict[str, object]]] = {}
    try:
        with engine.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        tables = MetaData()
        tables.reflect(engine)
        with engine.begin() as connection:
            for table in tables.sorted_tables:
                # The revisions of jobs are counted by triggers.
                if table.name in {"alembic_version", "engine", "job_revisions"}:
                    continue
                columns = set(table.columns.keys()) - {"seq"}
                rows = [{name: row[name] for name in columns} for row in ROWS[table.name]]
                connection.execute(table.insert(), rows)
                kept[table.name] = rows
    finally:
        engine.dispose()
    return kept


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_database_of_any_earlier_version_is_upgraded_with_its_data(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, revision: str
) -> None:
    """The same tables as a new one, every row as it was, and today's code reads it and goes on with it."""
    url = f"sqlite:///{tmp_path / 'db'}"
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create(f"as_of_{revision}")
    kept = make_as_of(url, revision)
    upgrade_to_head(url)
    with closing(Database(url)) as database:
        assert database.is_at_head()
        assert differences(database) == []
        check_rows(database, kept)
        check_use(database, kept)


def check_rows(database: Database, kept: Mapping[str, list[dict[str, object]]]) -> None:
    """Nothing that was stored is gone or changed; SQLite's foreign keys still lead somewhere."""
    with database.read() as session:
        for name, rows in kept.items():
            table = Base.metadata.tables[name]
            found = [dict(row._mapping) for row in session.execute(table.select().order_by(*table.primary_key))]
            assert [{column: row[column] for column in rows[0]} for row in found] == rows, name
        if database.is_sqlite:
            assert session.execute(text("PRAGMA foreign_key_check")).all() == []


def check_use(database: Database, kept: Mapping[str, list[dict[str, object]]]) -> None:
    """Documents, a retry, a new job and its claim, the lease."""
    api_queries, queries = ApiQueries(database), EngineQueries(database, "engine")
    teacher = api_queries.get(TeacherRecord, str(TEACHER["id"]))
    job = api_queries.get(JobRecord, JOB_ID)
    shown = job_documents.show_one(job, api_queries)
    assert (shown.state, shown.created_at, shown.run_ids) == (State.FAILED, AT, RUN_IDS)
    assert (shown.priority, shown.parallel_runs) == ((3, 2) if "priority" in kept["jobs"][0] else (0, None))
    assert [runs.show(run).state for run in api_queries.runs(JOB_ID)[0]] == [State.SUCCEEDED, State.FAILED]
    (event,) = api_queries.events(job, 0, 10)[0]
    assert events.show(event).data == {"epoch": 1, "metrics": {"top1": 0.5}}
    assert api_queries.metrics(RUN_IDS[0]) == [{"top1": 0.5}]
    assert [file.size_bytes for file in api_queries.artifacts(RUN_IDS[0])] == [2**40]
    replayed = api_queries.replay(Idempotency(key_id="", key="mine", digest="e" * 64))
    assert replayed is not None
    assert replayed.id == JOB_ID

    again, is_new = api_queries.retry_job(JOB_ID, lambda: None)
    assert is_new
    assert queries.acquire_lease()
    claimed = queries.claim_job()
    assert claimed is not None
    assert claimed.id == again.id
    (retried,) = queries.runs(again.id)
    assert retried.retry_of == RUN_IDS[1]
    assert start_run(queries, retried.id) == 1
    assert queries.record_events(again.id, retried.id, 1, [(0, {"type": "log"})]) == 1
    assert api_queries.events(again, event.seq, 10)[0][-1].run_id == retried.id
    assert JobControl(database).pause_run(retried.id).state is State.PAUSING
    assert api_queries.add_job(PLAN, teacher, None)[1]


def test_upgrading_again_keeps_the_rows(database_url: str, api_queries: ApiQueries, queries: EngineQueries) -> None:
    """As every start of the service does."""
    job = add_job(api_queries)
    upgrade_to_head(database_url)
    assert queries.job(job.id).state is State.QUEUED


def test_several_processes_may_upgrade_a_new_file_at_once(tmp_path: Path) -> None:
    """API and engine start together; the folder need not be there yet."""
    url = f"sqlite:///{tmp_path / 'new' / 'db'}"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_to_head, [url] * 4))
    with closing(Database(url)) as database:
        assert database.is_at_head()


def test_several_may_upgrade_a_new_postgresql_database_at_once(postgres: PostgresServer) -> None:
    """API and engine start together."""
    url = postgres.create("fresh")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_to_head, [url] * 4))
    with closing(Database(url)) as database:
        assert database.is_at_head()


def test_a_database_without_tables_is_not_at_head(tmp_path: Path) -> None:
    """readyz asks."""
    with closing(Database(f"sqlite:///{tmp_path / 'db'}")) as database:
        assert not database.is_at_head()


def test_a_transaction_that_raises_leaves_nothing(database: Database, api_queries: ApiQueries) -> None:
    """All or nothing."""
    job = add_job(api_queries)

    def write() -> None:
        with database.write() as session:
            session.get_one(JobRecord, job.id).stage = "training"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert EngineQueries(database).job(job.id).stage is None


def test_sqlites_file_lies_in_the_data_directory_whatever_its_name(tmp_path: Path) -> None:
    """No character of a folder's name ends the name of the file or changes it; beside the folder nothing is made."""
    names = [
        "what?",
        "what",
        "a?b=c",
        "a",
        "c#1",
        "50% off",
        "50%20off",
        "50 off",
        "-dash",
        "new\nline",
        "x'y\"z",
        "ü 名",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        with closing(Database(Settings(data_dir=tmp_path / name).database)) as database, database.read() as session:
            assert Path(session.scalars(text("SELECT file FROM pragma_database_list")).one()).parent == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_data_directory_whose_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"not valid UTF-8: use another folder"):
        Settings(data_dir=tmp_path / "f\udcfcr")


@pytest.mark.parametrize("url", ["sqlite:////srv/what?/db", "sqlite:////srv/a?b=c/db"])
def test_a_url_whose_file_ends_at_a_question_mark_is_refused(url: str) -> None:
    with pytest.raises(
        ValidationError, match=r"the file would be '/srv/(what|a)': write a '\?' of a file's name as %3F"
    ):
        Settings(database_url=url)


def test_a_url_may_hold_parameters_and_a_question_mark_that_is_written_out() -> None:
    for url in ("sqlite:////srv/what%3F/db", "sqlite:////srv/db?timeout=3", "postgresql://u@/db?host=/run", "nonsense"):
        assert Settings(database_url=url).database == url


def test_sqlite_runs_with_wal_foreign_keys_and_patience(tmp_path: Path) -> None:
    """Readers do not wait for the writer, deletions cascade, writers wait for each other."""
    url = f"sqlite:///{tmp_path / 'db'}"
    upgrade_to_head(url)
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 10_000, "synchronous": 2}
    with closing(Database(url)) as database, database.read() as session:
        assert {name: session.scalar(text(f"PRAGMA {name}")) for name in wanted} == wanted


def test_checkpoint_empties_the_log_and_waits_for_no_reader(tmp_path: Path) -> None:
    """Without it what was committed last stays in the log for as long as the service is idle."""
    path = tmp_path / "db"
    upgrade_to_head(f"sqlite:///{path}")
    database = Database(f"sqlite:///{path}")
    log = Path(f"{path}-wal")
    reading = ExitStack()
    reading.enter_context(database.read()).execute(text("SELECT count(*) FROM jobs")).all()
    add_job(ApiQueries(database))
    size = log.stat().st_size
    assert size > 0
    database.checkpoint()
    assert log.stat().st_size == size
    reading.close()
    database.checkpoint()
    assert log.stat().st_size == 0
    # Its connection goes on with the patience of the others.
    with database.read() as session:
        assert session.scalar(text("PRAGMA busy_timeout")) == 10_000
    database.close()


def test_a_reader_does_not_wait_for_a_writer(database_url: str, database: Database, api_queries: ApiQueries) -> None:
    """And sees what was before."""
    job = add_job(api_queries)
    with closing(Database(database_url)) as other:
        with database.write() as session:
            session.get_one(JobRecord, job.id).stage = "training"
            session.flush()
            assert EngineQueries(other).job(job.id).stage is None
        assert EngineQueries(other).job(job.id).stage == "training"


def test_reads_that_follow_each_other_share_a_connection(database: Database) -> None:
    """Though others are open: else the cache of every one would fill in turn, and memory grow for hours."""
    with ExitStack() as open_reads:
        for _ in range(5):
            open_reads.enter_context(database.read()).execute(text("SELECT 1"))
    used = set()
    for _ in range(10):
        with database.read() as session:
            used.add(id(session.connection().connection.driver_connection))
    assert len(used) == 1


def test_a_transaction_that_a_failed_test_leaves_open_does_not_hold_up_the_next_one(postgres: PostgresServer) -> None:
    """Its traceback may keep it for as long as the tests go on."""
    with closing(Database(postgres.url("retort"))) as database:
        left = Session(database._reading)
        left.execute(text("SELECT * FROM jobs"))
        postgres.empty("retort")
        left.invalidate()


def test_times_keep_their_zone(database: Database, api_queries: ApiQueries) -> None:
    """SQLite has no type for them."""
    before = utc_now()
    job = EngineQueries(database).job(add_job(api_queries).id)
    assert before <= job.created_at <= utc_now()


def test_ids_sort_by_the_time_they_were_made() -> None:
    """Lists are paged by them; a thousand are made within a few milliseconds."""
    ids = [new_id("job") for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert all(len(id) == len("job_") + 26 and id == id.lower() for id in ids)
