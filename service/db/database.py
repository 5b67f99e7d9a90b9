"""The database: one engine, two kinds of transaction, migrations. SQLite and PostgreSQL by the same code.

Writes are serial in both databases: SQLite by ``BEGIN IMMEDIATE``, PostgreSQL by one advisory lock that every write
takes first. The service writes some dozens of rows a second at most, so this costs nothing, and it makes three things
simple: what a transaction has read stays true until it commits, two claimers cannot meet, and the numbers of events
rise in the order of commits (a sequence alone does not promise that, and a stream that resumes would lose events).
Reads never wait for writes.
"""

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, DateTime, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from service.db import database_errors
from service.errors import InvalidSettings, NewerDatabase, ServiceError
from workers.texts import storable

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
WRITE_LOCK = 0x5245544F5254  # "RETORT": any constant that no other user of the database takes
_IMMEDIATE = "retort_immediate"
# SQLite's name for it as a number, and the pages that are freed in one transaction: 4 MB.
_INCREMENTAL = 2
_VACUUM_PAGES = 1000
log = structlog.get_logger("retort.database")
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


class LogGone(ServiceError, SQLAlchemyError):
    """SQLite's write-ahead log was removed after a kill, and with it what was committed last.

    Whoever lives through a database that cannot be read lives through this as well.
    """


class DatabaseDiskError(ServiceError, SQLAlchemyError):
    """The disk of the database gives an I/O error, or lets nobody write; what was to be written is not."""


class DatabaseFull(DatabaseDiskError):
    """The disk of the database has no room for what was to be written; it is not."""


class Database:
    """Connections to one database.

    Args:
        url: SQLAlchemy URL; ``postgresql://`` (or ``postgres://``) is served by psycopg 3.

    Raises:
        InvalidSettings: the URL cannot be read, is of another kind of database, or of PostgreSQL where the extra
            ``postgres`` is not installed.

    Whatever connects raises LogGone where SQLite's write-ahead log was removed after a kill. Transactions raise
    DatabaseDiskError where the disk of the database is full, read-only or fails.

    Attributes:
        write_error: why nothing could be written when that was tried last, and when (``time.monotonic``); None if it
            could.
    """

    def __init__(self, url: str) -> None:
        self.url = _read_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._reading = _sqlite_engine(self.url) if self.is_sqlite else _server_engine(self.url)
        self._writing = self._reading.execution_options(**{_IMMEDIATE: True})
        self.write_error: tuple[str, float] | None = None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; what it returns stays readable afterwards."""
        with self._disk_errors(), Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection to read a row or two without the objects of a session, which take longer than the query."""
        with self._disk_errors(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end and rolls back on an exception; one at a time in all processes.

        Raises:
            sqlalchemy.exc.OperationalError: another writer held on for longer than the busy timeout (10 s).
        """
        try:
            with self._disk_errors(), Session(self._writing, expire_on_commit=False) as session, session.begin():
                self._wait_for_turn(session.connection())
                yield session
        except DatabaseDiskError as error:
            self.write_error = str(error), time.monotonic()
            raise
        self.write_error = None

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn the errors of a full, read-only or failing disk, of either database, into DatabaseDiskError."""
        try:
            yield
        except DBAPIError as error:
            if (found := database_errors.disk_error(error.orig, self.url)) is None:
                raise
            is_full, message = found
            raise (DatabaseFull if is_full else DatabaseDiskError)(message) from error

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
        """Runs the migrations that are missing; two processes may do so at once. Raises NewerDatabase."""
        with self._writing.begin() as connection:
            self._wait_for_turn(connection)
            _check_version(connection)
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_at_head(self) -> bool:
        """Whether the tables are those that this version expects."""
        return self.why_not_at_head() is None

    def why_not_at_head(self) -> str | None:
        """Why the tables are not those that this version expects, with the next step; None if they are."""
        with self._reading.connect() as connection:
            try:
                found = _check_version(connection)
            except NewerDatabase as error:
                return str(error)
        is_head = found == set(_migrations().get_heads())
        return None if is_head else "the database is not at the newest migration: start `retort serve` once"

    def check_version(self) -> set[str]:
        """The migrations that the database is at, none if it is new; of a newer version it raises NewerDatabase."""
        with self._reading.connect() as connection:
            return _check_version(connection)

    def newest_migration(self) -> str:
        """The migration that this version's tables are at."""
        return _newest_migration()

    def checkpoint(self) -> None:
        """Writes SQLite's write-ahead log into the database file and empties it; nothing with PostgreSQL.

        SQLite does so by itself only once the log has grown to 4 MB, or when the last process ends in order. It waits
        for nobody: what others read or write at this moment stays in the log.
        """
        if not self.is_sqlite:
            return
        with contextlib.closing(self._reading.raw_connection()) as connection:
            cursor = connection.cursor()
            try:
                # A checkpoint that waits for a reader makes every writer wait.
                cursor.execute("PRAGMA busy_timeout=0")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                # It was no more than tidying; whoever writes next hears of a real fault.
                log.warning("the write-ahead log cannot be emptied", error=str(error))
            finally:
                cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")

    def size_bytes(self) -> tuple[int, int]:
        """Bytes of the database, and how many of these hold nothing and are used next; 0 with PostgreSQL."""
        with self._reading.connect() as connection:
            if not self.is_sqlite:
                return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0), 0
            page, pages, free = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_size", "page_count", "freelist_count")
            )
            return page * pages, page * free

    def release_space(self) -> None:
        """Gives pages that deletions have emptied back to the file system, in short transactions.

        Of SQLite alone, and of a file that was made so (``auto_vacuum``): to change an older one takes a VACUUM, which
        writes the whole file anew while nobody else may write. PostgreSQL's autovacuum uses the space again.
        """
        if not self.is_sqlite:
            return
        names = ("auto_vacuum", "freelist_count")
        with contextlib.closing(self._reading.raw_connection()) as connection:
            cursor = connection.cursor()
            try:
                mode, free = (cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
                for _ in range(0, free if mode == _INCREMENTAL else 0, _VACUUM_PAGES):
                    # A transaction of its own. SQLite frees a page at each step, of which ``execute`` makes one.
                    cursor.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            except sqlite3.Error as error:
                # It was no more than tidying; whoever writes next hears of a real fault.
                log.warning("space of the database cannot be released", error=str(error))

    @property
    def driver_error(self) -> type[Exception]:
        """Base of what a connection of ``connect_alone`` raises."""
        found: type[Exception] = self._reading.dialect.loaded_dbapi.Error
        return found

    def connect_alone(self) -> PoolProxiedConnection:
        """A new connection of the driver, in no pool and in no transaction: each statement is one, and waits for none.

        Whoever has it closes it, and uses it from one thread at a time.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: there is no database.
        """
        connection = self._reading.raw_connection()
        driver = connection.driver_connection
        assert driver is not None, "it is in the pool still"
        if self.is_sqlite:
            driver.execute("PRAGMA busy_timeout=0")
        else:
            driver.autocommit = True
        connection.detach()
        return connection

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


def known_revisions() -> set[str]:
    """The migrations of this version."""
    return {script.revision for script in _migrations().walk_revisions()}


def _check_version(connection: Connection) -> set[str]:
    """The migrations that the database is at, none if it is new. Raises NewerDatabase."""
    found = set(MigrationContext.configure(connection).get_current_heads())
    if unknown := found - known_revisions():
        newest = ", ".join(_migrations().get_heads())
        raise NewerDatabase(
            f"the database {connection.engine.url} is at migration {', '.join(sorted(unknown))}, and the newest that "
            f"this version knows is {newest}: a newer Retort has used it. Start that one again, or stop it and "
            "`retort restore` the backup that was made before the upgrade"
        )
    return found


@cache
def _newest_migration() -> str:
    [head] = _migrations().get_heads()
    return head


@cache
def _migrations() -> ScriptDirectory:
    """Read once: every question about readiness asks for them, and they are part of the program."""
    return ScriptDirectory.from_config(_alembic_config())


def _alembic_config() -> Config:
    config = Config()
    # Alembic interpolates "%" in its options.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _check_log(path: Path) -> None:
    """Refuses an SQLite database whose write-ahead log was taken away: SQLite would open it as if it had had none.

    SQLite makes the index of the log (``-shm``) after the log and removes it before the log, so an index alone is what
    remains when somebody has removed the log of a service that was killed.

    Raises:
        LogGone: that is so.
    """
    log, index = (Path(f"{path}{suffix}") for suffix in ("-wal", "-shm"))

    def is_gone() -> bool:
        return path.is_file() and index.exists() and not log.exists()

    if not is_gone():
        return
    # Another process may have removed both in order, between the two looks.
    time.sleep(0.1)
    if is_gone():
        raise LogGone(
            f"{log} is gone, which held what was committed last: put it back, or `retort restore` the newest backup; "
            f"to go on without what is lost, remove {index}"
        )


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
    text = found.decode() if isinstance(found, bytes) else found
    value = json.loads(text)
    return storable(value) if _is_suspect(text) else value


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
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            connect_args={"options": options},
            json_serializer=_dump_json,
            json_deserializer=_load_json,
            **_POOL,
        )
    except ImportError as error:
        raise InvalidSettings(
            f"RETORT_DATABASE_URL is of PostgreSQL, and psycopg, which speaks to it, cannot be imported ({error}): "
            "install Retort with its extra `postgres` (pip install 'retort[server,postgres]'), or leave the variable "
            "out for an SQLite file in RETORT_DATA_DIR"
        ) from None


def _sqlite_engine(url: URL) -> Engine:
    timeout = {"timeout": BUSY_TIMEOUT_MS / 1000}
    engine = create_engine(url, connect_args=timeout, json_serializer=_dump_json, json_deserializer=_load_json, **_POOL)

    @event.listens_for(engine, "do_connect")
    def check(*_: object) -> None:
        _check_log(Path(url.database or ""))

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # None hands BEGIN over to us; the driver's own would be a deferred one before the first write.
        connection.isolation_level = None
        if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
            # Before anything else is written. Of a file that is there it would change nothing, and wait for its writer.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that turns to writing fails at once when another has written meanwhile.
        immediate = connection.get_execution_options().get(_IMMEDIATE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
