"""Fixtures of the service's tests: a database of either kind, the API, and API and engine as processes.

Used by naming this module in ``pytest_plugins``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.queries.api_queries import ApiQueries
from tests.support.service_helpers import (
    Api,
    PostgresServer,
    make_settings,
    new_database,
    postgres_binaries,
    running_api,
    running_postgres,
)

if TYPE_CHECKING:
    from tests.support.digits import Digits
    from tests.support.processes import Processes


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server without a TCP port; skips where its binaries are not installed."""
    if postgres_binaries() is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    with running_postgres() as server:
        upgrade_to_head(server.create("retort"))
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database, once of each kind."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.empty("retort")
    url = f"sqlite:///{tmp_path / 'retort.sqlite3'}"
    new_database(url)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Connections to ``database_url``."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def queries(database: Database) -> EngineQueries:
    """The engine's half of the repository."""
    return EngineQueries(database)


@pytest.fixture
def api_queries(database: Database) -> ApiQueries:
    """The API's half of the repository."""
    return ApiQueries(database)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API of its own, on SQLite."""
    with running_api(make_settings(tmp_path)) as running:
        yield running


@pytest.fixture(scope="module")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API for the tests of a module that look at nothing but their own answers."""
    with running_api(make_settings(tmp_path_factory.mktemp("api"))) as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Processes"]:
    """API and engine, ready, for the tests of a module. What they need (torch) is not imported before."""
    from tests.support.processes import running_service

    with running_service(tmp_path_factory.mktemp("service") / "data") as processes:
        yield processes


@pytest.fixture(scope="module")
def teacher_id(service: "Processes", digits: "Digits") -> str:
    """The digits' teacher, uploaded."""
    from tests.support.processes import uploaded

    return uploaded(service, digits)
