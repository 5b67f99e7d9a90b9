"""Versions of what a document is made of: of a job by its revision, of the whole database by its commits.

Triggers count the changes of each job and its runs (``JobRevisionRecord``), whoever makes them. SQLite counts the
commits that one connection sees of all others (``PRAGMA data_version``); PostgreSQL names the transactions that a
statement sees (``pg_current_snapshot``): two statements that name the same see the same rows. Asking costs no look into
any large row: some 10 us with SQLite, a round trip with PostgreSQL.
"""

import asyncio
import contextlib
import json
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from service.db.database import Database
from service.db.shared_read import BatchRead

_SQLITE = "PRAGMA data_version"
_POSTGRES = "SELECT pg_current_snapshot()::text"
# The document of a job whose inference starts again later says so until then: it depends on the clock, too.
_BY_CLOCK = "jobs.state = 'running' AND jobs.backoff IS NOT NULL"
_ANY_BY_CLOCK = f"SELECT EXISTS (SELECT 1 FROM jobs WHERE {_BY_CLOCK})"
_JOBS = (
    "SELECT jobs.id, revision FROM job_revisions JOIN jobs ON jobs.id = job_revisions.job_id "
    f"WHERE jobs.id {{among}} AND NOT ({_BY_CLOCK})"
)
_RUNS = (
    "SELECT runs.id, revision FROM job_revisions JOIN runs ON runs.job_id = job_revisions.job_id WHERE runs.id {among}"
)
_AMONG_SQLITE = "IN (SELECT value FROM json_each(?))"
_AMONG_POSTGRES = "= ANY(%s)"
# The number of the connection, for SQLite counts commits anew on each, and what the database says on it; of a revision,
# which is the database's own, 0 and that.
Version = tuple[int, object]


class SourceKind(StrEnum):
    """Kinds of what a document is made of."""

    DATABASE = "database"
    JOBS = "jobs"
    JOB = "job"
    RUN = "run"


class DocumentSource(NamedTuple):
    """Rows that a document is made of.

    Attributes:
        kind: ``job`` is a job with its runs, ``run`` one of its runs; ``jobs`` are the summaries of all, ``database``
            any rows, of neither of which the clock is a part.
        id: of the job or run.
    """

    kind: SourceKind = SourceKind.DATABASE
    id: str = ""


DATABASE = DocumentSource()


class DatabaseVersion:
    """Reads versions on a connection of its own. Its coroutine belongs to one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: PoolProxiedConnection | None = None
        self._number = 0
        self._asked: set[DocumentSource] = set()
        self._next: asyncio.Task[dict[DocumentSource, Version]] | None = None
        self._in_thread = BatchRead(self._read)

    async def read(self, source: DocumentSource = DATABASE) -> Version | None:
        """The version of a source at a moment after this call: equal ones are of the same rows.

        None if there is no such row, if a document of it depends on the clock, or if the database cannot be read.
        """
        if not self._database.is_sqlite or self._connection is None:
            # A round trip, or a connection to open.
            return (await self._in_thread.read(source)).get(source)
        # Once for all who ask in this turn of the event loop: each time the threads at work may take the interpreter.
        self._asked.add(source)
        if self._next is None:
            self._next = asyncio.create_task(self._read_now())
        return (await asyncio.shield(self._next)).get(source)

    def close(self) -> None:
        """Close the connection; the object can be used again and then opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(self._database.driver_error):
                connection.close()

    async def _read_now(self) -> dict[DocumentSource, Version]:
        self._next = None
        asked, self._asked = self._asked, set()
        return self._read(asked)

    def _read(self, asked: Collection[DocumentSource]) -> dict[DocumentSource, Version]:
        """Versions of what there is."""
        found: dict[DocumentSource, Version] = {}
        kinds = {source.kind for source in asked}
        try:
            if self._connection is None:
                fresh = self._database.connect_alone()
                # First, for another thread may use the connection as soon as it is there.
                self._number += 1
                self._connection = fresh
            if kinds & {SourceKind.DATABASE, SourceKind.JOBS}:
                # Before the clock's part is looked at: a commit between the two makes another version.
                version = self._number, self._query(_SQLITE if self._database.is_sqlite else _POSTGRES)[0][0]
                found[DATABASE] = version
                if SourceKind.JOBS in kinds and not self._query(_ANY_BY_CLOCK)[0][0]:
                    found[DocumentSource(SourceKind.JOBS)] = version
            for kind, query in ((SourceKind.JOB, _JOBS), (SourceKind.RUN, _RUNS)):
                if kind in kinds:
                    rows = self._query_ids(query, [source.id for source in asked if source.kind is kind])
                    found |= {DocumentSource(kind, id): (0, revision) for id, revision in rows}
        except (SQLAlchemyError, self._database.driver_error):
            self.close()
            return {}
        return found

    def _query_ids(self, query: str, ids: list[str]) -> Iterable[tuple[str, int]]:
        if self._database.is_sqlite:
            return self._query(query.format(among=_AMONG_SQLITE), json.dumps(ids))
        return self._query(query.format(among=_AMONG_POSTGRES), ids)

    def _query(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        cursor = self._connection.cursor()
        cursor.execute(query, parameters)
        rows: list[tuple[Any, ...]] = list(cursor.fetchall())
        cursor.close()
        return rows
