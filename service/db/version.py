"""Version of the database: a value that changes with every commit, of any process.

SQLite counts the commits that one connection sees of all others (``PRAGMA data_version``). PostgreSQL names the
transactions that a statement sees (``pg_current_snapshot``): two statements that name the same see the same rows.
Asking costs no look into any table: some 10 us with SQLite, a round trip with PostgreSQL.
"""

import asyncio
import contextlib

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from service.db.database import Database
from service.db.shared_read import SharedRead

_SQLITE = "PRAGMA data_version"
_POSTGRES = "SELECT pg_current_snapshot()::text"
# The number of the connection, for SQLite counts anew on each, and what the database says on it.
Version = tuple[int, object]


class DatabaseVersion:
    """Reads the version of a database on a connection of its own. Its coroutine belongs to one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: PoolProxiedConnection | None = None
        self._number = 0
        self._next: asyncio.Task[Version | None] | None = None
        self._read_for_all = SharedRead(self._read)

    async def read(self) -> Version | None:
        """The version at a moment after this call; None if the database cannot be read."""
        if not self._database.is_sqlite or self._connection is None:
            # A round trip, or a connection to open.
            return await self._read_for_all()
        # Once for all who ask in this turn of the event loop: each time the threads at work may take the interpreter.
        if self._next is None:
            self._next = asyncio.create_task(self._read_now())
        return await asyncio.shield(self._next)

    def close(self) -> None:
        """Close the connection; the object can be used again and then opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(self._database.driver_error):
                connection.close()

    async def _read_now(self) -> Version | None:
        self._next = None
        return self._read()

    def _read(self) -> Version | None:
        try:
            if self._connection is None:
                fresh = self._database.connect_alone()
                # First, for another thread may use the connection as soon as it is there.
                self._number += 1
                self._connection = fresh
            cursor = self._connection.cursor()
            cursor.execute(_SQLITE if self._database.is_sqlite else _POSTGRES)
            rows = cursor.fetchall()
            cursor.close()
        except (SQLAlchemyError, self._database.driver_error):
            self.close()
            return None
        return self._number, rows[0][0]
