"""The database: one engine, two kinds of transaction, migrations. SQLite and PostgreSQL by the same code.

Writes are serial in both databases: SQLite by ``BEGIN IMMEDIATE``, PostgreSQL by one advisory lock that every write
takes first. The service writes some dozens of rows a second at most, so this costs nothing, and it makes three things
simple: what a transaction has read stays true until it commits, two claimers cannot meet, and the numbers of events
rise in the order of commits (a sequence alone does not promise that, and a stream that resumes would lose events).
Reads never wait for writes.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, DateTime, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from service.errors import InvalidSettings
from workers.texts import storable

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
WRITE_LOCK = 0x5245544F5254  # "RETORT": any constant that no other user of the database takes
_IMMEDIATE = "retort_immediate"
_PSYCOPG = "postgresql+psycopg"
# libpq and hosts of databases say postgres, which SQLAlchemy does not know.
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": _PSYCOPG,
    "postgresql": _PSYCOPG,
    _PSYCOPG: _PSYCOPG,
}
_URL_ADVICE = (
    "postgresql://USER:PASSWORD@HOST:5432/NAME and sqlite:////FOLDER/FILE are allowed; without it there is an SQLite "
    "file in RETORT_DATA_DIR"
)
# One for each of the API's threads (anyio's 40), so that none waits for a connection; half of them stay open. The one
# that was used last comes first: each has a cache of pages (of 2 MB in SQLite), and those of the others stay small.
_POOL = {"pool_size": 20, "max_overflow": 20, "pool_use_lifo": True}


class Database:
    """Connections to one database.

    Args:
        url: SQLAlchemy URL; ``postgresql://`` (or ``postgres://``) is served by psycopg 3.

    Raises:
        InvalidSettings: the URL cannot be read, or is of another kind of database.
    """

    def __init__(self, url: str) -> None:
        self.url = _read_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._reading = _sqlite_engine(self.url) if self.is_sqlite else _server_engine(self.url)
        self._writing = self._reading.execution_options(**{_IMMEDIATE: True})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; what it returns stays readable afterwards."""
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end and rolls back on an exception; one at a time in all processes.

        Raises:
            sqlalchemy.exc.OperationalError: another writer held on for longer than the busy timeout (10 s).
        """
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            self._wait_for_turn(session.connection())
            yield session

    def exists(self) -> bool:
        """Whether there is anything to open: an SQLite file may not have been made yet. Of a server it is taken."""
        return not self.is_sqlite or Path(self.url.database or "").is_file()

    @property
    def clock(self) -> str:
        """Whose clock ``now`` is, in words."""
        return "this machine's clock" if self.is_sqlite else "the database's clock"

    def now(self, session: Session) -> datetime:
        """The time by which leases run: PostgreSQL's own, since its clients' may differ; else this machine's."""
        if self.is_sqlite:
            return datetime.now(UTC)
        return session.scalars(select(func.clock_timestamp(type_=DateTime(timezone=True)))).one()

    def upgrade_to_head(self) -> None:
        """Runs the migrations that are missing; two processes may do so at once."""
        with self._writing.begin() as connection:
            self._wait_for_turn(connection)
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_at_head(self) -> bool:
        """Whether the tables are those that this version expects."""
        with self._reading.connect() as connection:
            found = MigrationContext.configure(connection).get_current_heads()
        return set(found) == set(ScriptDirectory.from_config(_alembic_config()).get_heads())

    def close(self) -> None:
        """Closes every connection; the object can be used again and then opens new ones."""
        self._reading.dispose()

    def _wait_for_turn(self, connection: Connection) -> None:
        if not self.is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(WRITE_LOCK)))


def upgrade_to_head(url: str) -> None:
    """Brings the database behind ``url`` to the newest migration, creating it if it is an SQLite file."""
    database = Database(url)
    try:
        if database.is_sqlite and database.url.database:
            Path(database.url.database).parent.mkdir(parents=True, exist_ok=True)
        database.upgrade_to_head()
    finally:
        database.close()


def _alembic_config() -> Config:
    config = Config()
    # Alembic interpolates "%" in its options.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _dump_json(value: object) -> str:
    """JSON text; what JSON cannot spell (NaN, infinity) becomes null, so a diverged metric is not a crash.

    What nobody could be sent, or PostgreSQL not keep, is written out (``texts.storable``).
    """
    try:
        found = json.dumps(value, allow_nan=False)
    except ValueError:
        found = json.dumps(_finite(value), allow_nan=False)
    return json.dumps(storable(json.loads(found))) if _is_suspect(found) else found


def _load_json(found: str | bytes) -> object:
    """A value from JSON text; rows of earlier versions may hold what can be sent to nobody, which is written out."""
    told = found.decode() if isinstance(found, bytes) else found
    value = json.loads(told)
    return storable(value) if _is_suspect(told) else value


def _is_suspect(found: str) -> bool:
    # ASCII, as ``json.dumps`` has written it: every surrogate, half of a pair or not, is spelt so.
    return "\\ud" in found or "\\u0000" in found


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_url(text: str) -> URL:
    """The URL with its driver. No message shows it, because it may hold a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise InvalidSettings(f"RETORT_DATABASE_URL cannot be read as a URL: {_URL_ADVICE}") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise InvalidSettings(f"RETORT_DATABASE_URL begins with {url.drivername!r}: {_URL_ADVICE}")
    if "@" in (url.host or ""):
        raise InvalidSettings(
            "RETORT_DATABASE_URL has more than one @: write those of the user or password as %40 (and : as %3A, / as "
            "%2F, % as %25)"
        )
    return url.set(drivername=driver)


def _server_engine(url: URL) -> Engine:
    # A writer that hangs must not hold up the others for longer than SQLite's busy timeout would.
    options = f"-c lock_timeout={BUSY_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={"options": options},
        json_serializer=_dump_json,
        json_deserializer=_load_json,
        **_POOL,
    )


def _sqlite_engine(url: URL) -> Engine:
    timeout = {"timeout": BUSY_TIMEOUT_MS / 1000}
    engine = create_engine(url, connect_args=timeout, json_serializer=_dump_json, json_deserializer=_load_json, **_POOL)

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # None hands BEGIN over to us; the driver's own would be a deferred one before the first write.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that turns to writing fails at once when another has written meanwhile.
        immediate = connection.get_execution_options().get(_IMMEDIATE, False)
        connection.execute(text("BEGIN IMMEDIATE" if immediate else "BEGIN"))

    return engine
