"""Connections to SQLite and PostgreSQL: the database URL, the SQLAlchemy engine and its pool, a lost SQLite log."""

import time
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from service.db.connection.json_text import dump_json, load_json
from service.errors import InvalidSettings, ServiceError

BUSY_TIMEOUT_MS = 10_000
IMMEDIATE = "retort_immediate"
"""Execution option of a connection whose transactions take SQLite's write lock when they begin."""

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


def read_url(text: str) -> URL:
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


def engine_of(url: URL) -> Engine:
    """The SQLAlchemy engine of a URL of ``read_url``. Connecting raises LogGone."""
    return _sqlite_engine(url) if url.get_backend_name() == "sqlite" else _server_engine(url)


def _server_engine(url: URL) -> Engine:
    # A writer that hangs must not hold up the others for longer than SQLite's busy timeout would.
    options = f"-c lock_timeout={BUSY_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            connect_args={"options": options},
            json_serializer=dump_json,
            json_deserializer=load_json,
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
    engine = create_engine(url, connect_args=timeout, json_serializer=dump_json, json_deserializer=load_json, **_POOL)

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
        immediate = connection.get_execution_options().get(IMMEDIATE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _check_log(path: Path) -> None:
    """Refuse an SQLite database whose write-ahead log was taken away: SQLite would open it as if it had had none.

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
