"""Database: its transactions, clock, migrations, size and upkeep. SQLite and PostgreSQL by the same code.

Writes are serial in both databases: SQLite by ``BEGIN IMMEDIATE``, PostgreSQL by one advisory lock that every write
takes first. The service writes some dozens of rows a second at most, so this costs nothing, and it makes three things
simple: what a transaction has read stays true until it commits, two claimers cannot meet, and the numbers of events
rise in the order of commits (a sequence alone does not promise that, and a stream that resumes would lose events).
Reads never wait for writes.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy import Connection, DateTime, func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from service.db import revisions
from service.db.connection import database_errors
from service.db.connection.connections import BUSY_TIMEOUT_MS, IMMEDIATE, engine_of, read_url
from service.errors import ServiceError

WRITE_LOCK = 0x5245544F5254  # "RETORT": any constant that no other user of the database takes
# SQLite's name for it as a number, and the pages that are freed in one transaction: 4 MB.
_INCREMENTAL = 2
_VACUUM_PAGES = 1000
log = structlog.get_logger("retort.database")


class DatabaseDiskError(ServiceError, SQLAlchemyError):
    """The disk of the database gives an I/O error, or lets nobody write; what was to be written is not."""


class DatabaseFull(DatabaseDiskError):
    """The disk of the database has no room for what was to be written; it is not."""


def now_of(session: Session) -> datetime:
    """The time by ``Database.now``, of a session alone."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    return session.scalars(select(func.clock_timestamp(type_=DateTime(timezone=True)))).one()


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
        self.url = read_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._reading = engine_of(self.url)
        self._writing = self._reading.execution_options(**{IMMEDIATE: True})
        self.write_error: tuple[str, float] | None = None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Transaction that only reads; the rows it returns stay readable afterwards."""
        with self._disk_errors(), Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection to read a row or two without the objects of a session, which take longer than the query."""
        with self._disk_errors(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Transaction that commits at the end and rolls back on an exception; one at a time in all processes.

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
        """The clock behind ``now``, in words."""
        return "this machine's clock" if self.is_sqlite else "the database's clock"

    def now(self, session: Session) -> datetime:
        """The time by which leases run: PostgreSQL's own, since its clients' may differ; else this machine's."""
        return now_of(session)

    def upgrade_to_head(self) -> None:
        """Run the migrations that are missing; two processes may do so at once. Raises NewerDatabase."""
        with self._writing.begin() as connection:
            self._wait_for_turn(connection)
            revisions.upgrade(connection)

    def is_at_head(self) -> bool:
        """Whether the tables are those that this version expects."""
        return self.why_not_at_head() is None

    def why_not_at_head(self) -> str | None:
        """The reason why the tables are not those that this version expects, with the next step; None if they are."""
        with self._reading.connect() as connection:
            return revisions.why_not_at_head(connection)

    def check_version(self) -> set[str]:
        """The migrations that the database is at, none if it is new; of a newer version it raises NewerDatabase."""
        with self._reading.connect() as connection:
            return revisions.check_revision(connection)

    def newest_migration(self) -> str:
        """The migration that this version's tables are at."""
        return revisions.newest_revision()

    def checkpoint(self) -> None:
        """Write SQLite's write-ahead log into the database file and empty it; nothing with PostgreSQL.

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
        """Give pages that deletions have emptied back to the file system, in short transactions.

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
        """Close every connection; the object can be used again and then opens new ones."""
        self._reading.dispose()

    def _wait_for_turn(self, connection: Connection) -> None:
        if not self.is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(WRITE_LOCK)))


def upgrade_to_head(url: str) -> None:
    """Bring the database behind ``url`` to the newest migration, creating it if it is an SQLite file."""
    database = Database(url)
    try:
        if database.is_sqlite and database.url.database:
            Path(database.url.database).parent.mkdir(parents=True, exist_ok=True)
        database.upgrade_to_head()
    finally:
        database.close()
