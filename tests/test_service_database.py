"""Migrations and transactions, on SQLite and on a real PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from service.db import Database, upgrade_to_head
from service.jobs import State
from service.records import Records
from service.registry import Registry
from service.tables import Base, JobRecord, new_id, utc_now
from tests.service_helpers import PostgresServer, add_job

pytest_plugins = ["tests.service_fixtures"]


def test_the_migrations_make_the_tables_that_the_code_expects(database: Database) -> None:
    """Nothing is missing, left over, or of another type."""
    engine = create_engine(database.url)
    options = {"compare_type": True, "compare_server_default": True}
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    engine.dispose()
    assert differences == []
    assert database.is_at_head()


def test_upgrading_again_keeps_the_rows(database_url: str, registry: Registry, records: Records) -> None:
    """As every start of the service does."""
    job = add_job(registry)
    upgrade_to_head(database_url)
    assert records.job(job.id).state is State.QUEUED


def test_several_processes_may_upgrade_a_new_file_at_once(tmp_path: Path) -> None:
    """API and engine start together; the folder need not be there yet."""
    url = f"sqlite:///{tmp_path / 'new' / 'db'}"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_to_head, [url] * 4))
    database = Database(url)
    assert database.is_at_head()
    database.close()


def test_several_may_upgrade_a_new_postgresql_database_at_once(postgres: PostgresServer) -> None:
    """API and engine start together."""
    url = postgres.create("fresh")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_to_head, [url] * 4))
    database = Database(url)
    assert database.is_at_head()
    database.close()


def test_a_database_without_tables_is_not_at_head(tmp_path: Path) -> None:
    """readyz asks."""
    database = Database(f"sqlite:///{tmp_path / 'db'}")
    assert not database.is_at_head()
    database.close()


def test_a_transaction_that_raises_leaves_nothing(database: Database, registry: Registry) -> None:
    """All or nothing."""
    job = add_job(registry)

    def write() -> None:
        with database.write() as session:
            session.get_one(JobRecord, job.id).stage = "training"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert Records(database).job(job.id).stage is None


def test_sqlite_runs_with_wal_foreign_keys_and_patience(tmp_path: Path) -> None:
    """Readers do not wait for the writer, deletions cascade, writers wait for each other."""
    url = f"sqlite:///{tmp_path / 'db'}"
    upgrade_to_head(url)
    database = Database(url)
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 10_000, "synchronous": 2}
    with database.read() as session:
        assert {name: session.scalar(text(f"PRAGMA {name}")) for name in wanted} == wanted
    database.close()


def test_a_reader_does_not_wait_for_a_writer(database_url: str, database: Database, registry: Registry) -> None:
    """And sees what was before."""
    job = add_job(registry)
    other = Database(database_url)
    with database.write() as session:
        session.get_one(JobRecord, job.id).stage = "training"
        session.flush()
        assert Records(other).job(job.id).stage is None
    assert Records(other).job(job.id).stage == "training"
    other.close()


def test_times_keep_their_zone(database: Database, registry: Registry) -> None:
    """SQLite has no type for them."""
    before = utc_now()
    job = Records(database).job(add_job(registry).id)
    assert before <= job.created_at <= utc_now()


def test_ids_sort_by_the_time_they_were_made() -> None:
    """Lists are paged by them; a thousand are made within a few milliseconds."""
    ids = [new_id("job") for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert all(len(id) == len("job_") + 26 and id == id.lower() for id in ids)
