"""Versions of a database and of a job in it; one read for all who wait for it."""

import asyncio
import threading
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from sqlalchemy import Executable, text, update
from sqlalchemy.exc import SQLAlchemyError

from service.db.database import Database
from service.db.engine_queries import EngineQueries
from service.db.models import EngineRecord, JobRecord, RunRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.queries.version import DATABASE, DatabaseVersion, DocumentSource, SourceKind, Version
from service.db.shared_read import BatchRead, SharedRead
from service.db.states import State
from tests.support.service_helpers import add_job

pytest_plugins = ["tests.support.service_fixtures"]


def test_database_version_changes_with_every_commit_and_with_nothing_else(database_url: str) -> None:
    with closing(Database(database_url)) as reader, closing(Database(database_url)) as writer:
        version = DatabaseVersion(reader)

        def read() -> Version:
            found = asyncio.run(version.read())
            assert found is not None
            return found

        seen = [read()]
        assert read() == seen[0]
        with reader.read() as session:
            session.execute(text("SELECT * FROM jobs")).all()
        assert read() == seen[0]
        for database in (writer, reader):
            for _ in range(3):
                with database.write() as session:
                    session.execute(update(EngineRecord).values(heartbeat_at=utc_now()))
                    # Not committed yet: whoever reads now sees what was there before.
                    uncommitted = read()
                seen.append(read())
                assert seen[-1] != uncommitted
        assert len({*seen}) == 7
        version.close()
        # SQLite counts anew on a new connection.
        assert read() not in seen
        version.close()


def test_database_version_of_a_job_changes_with_it_alone(database_url: str) -> None:
    """A run has the version of its job; of what there is not, and of a clock that counts, there is none."""
    with closing(Database(database_url)) as database:
        ids = [add_job(ApiQueries(database)).id for _ in range(2)]
        run_id = EngineQueries(database).runs(ids[0])[0].id
        sources = [DocumentSource(SourceKind.JOB, id) for id in (*ids, f"job_{'0' * 26}")]
        sources += [DocumentSource(SourceKind.RUN, run_id), DocumentSource(SourceKind.JOBS), DATABASE]
        version = DatabaseVersion(database)

        async def read() -> list[Version | None]:
            # All at once, then one after the other.
            together = await asyncio.gather(*(version.read(source) for source in sources))
            assert [await version.read(source) for source in sources] == together
            return list(together)

        def differ_after(change: Executable) -> list[bool]:
            nonlocal seen
            with database.write() as session:
                session.execute(change)
            before, seen = seen, asyncio.run(read())
            return [old != new for old, new in zip(before, seen, strict=True)]

        seen = asyncio.run(read())
        assert [found is None for found in seen] == [False, False, True, False, False, False]
        of_job = update(JobRecord).where(JobRecord.id == ids[0])
        assert differ_after(of_job.values(name="x")) == [True, False, False, True, True, True]
        assert differ_after(update(RunRecord).where(RunRecord.id == run_id).values(epoch=1))[:4] == [
            True,
            False,
            False,
            True,
        ]
        assert differ_after(update(EngineRecord).values(heartbeat_at=utc_now()))[:4] == [False] * 4
        differ_after(of_job.values(state=State.RUNNING, backoff={"losses": 1}))
        assert [found is None for found in seen] == [True, False, True, False, True, False]
        version.close()


def test_database_version_is_none_while_there_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "away" / "retort.sqlite3"
    database = Database(f"sqlite:///{path}")
    version = DatabaseVersion(database)
    assert asyncio.run(version.read()) is None
    path.parent.mkdir()
    assert asyncio.run(version.read()) is not None
    version.close()
    database.close()


def test_shared_read_wakes_all_who_wait_after_two_calls_that_began_after_them() -> None:
    calls: list[int] = []
    begun, may_end = threading.Event(), threading.Event()

    def read() -> int:
        calls.append(len(calls))
        begun.set()
        may_end.wait(30)
        return calls[-1]

    async def run() -> None:
        shared = SharedRead(read)
        early = [asyncio.create_task(shared()) for _ in range(100)]
        await asyncio.to_thread(begun.wait, 30)
        late = [asyncio.create_task(shared()) for _ in range(100)]
        early[0].cancel()
        late[0].cancel()
        await asyncio.sleep(0)
        may_end.set()
        assert {*await asyncio.gather(*early[1:])} == {0}
        assert {*await asyncio.gather(*late[1:])} == {1}
        assert calls == [0, 1]

    asyncio.run(run())


def test_batch_read_asks_for_all_keys_of_those_who_wait_and_for_no_others() -> None:
    calls: list[set[int]] = []
    begun, may_end = threading.Event(), threading.Event()

    def read(keys: Collection[int]) -> int:
        calls.append({*keys})
        begun.set()
        may_end.wait(30)
        return len(calls)

    async def run() -> None:
        batch = BatchRead(read)
        early = [asyncio.create_task(batch.read(number)) for number in (1, 2, 1)]
        await asyncio.to_thread(begun.wait, 30)
        late = [asyncio.create_task(batch.read(number)) for number in (1, 3)]
        await asyncio.sleep(0)
        may_end.set()
        assert await asyncio.gather(*early, *late) == [1, 1, 1, 2, 2]
        assert calls == [{1, 2}, {1, 3}]

    asyncio.run(run())


def test_shared_read_raises_for_all_who_wait() -> None:
    def fail() -> None:
        raise SQLAlchemyError("away")

    async def run() -> list[BaseException | None]:
        shared = SharedRead(fail)
        return await asyncio.gather(*(shared() for _ in range(3)), return_exceptions=True)

    assert [type(found) for found in asyncio.run(run())] == [SQLAlchemyError] * 3
