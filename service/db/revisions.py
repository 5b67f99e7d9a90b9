"""Revisions of the tables: the Alembic migrations that this version knows, and the one that a database is at."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from service.errors import NewerDatabase

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, in the transaction of this connection. Raises NewerDatabase."""
    check_revision(connection)
    config = _alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def why_not_at_head(connection: Connection) -> str | None:
    """The reason why the tables are not those that this version expects, with the next step; None if they are."""
    try:
        found = check_revision(connection)
    except NewerDatabase as error:
        return str(error)
    is_head = found == set(_migrations().get_heads())
    return None if is_head else "the database is not at the newest migration: start `retort serve` once"


def known_revisions() -> set[str]:
    """Ids of the migrations that this version has."""
    return {script.revision for script in _migrations().walk_revisions()}


def check_revision(connection: Connection) -> set[str]:
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
def newest_revision() -> str:
    """Id of the migration that this version's tables are at."""
    [head] = _migrations().get_heads()
    return head


@cache
def _migrations() -> ScriptDirectory:
    """Read once: every readiness check asks for them, and they are part of the program."""
    return ScriptDirectory.from_config(_alembic_config())


def _alembic_config() -> Config:
    config = Config()
    # Alembic interpolates "%" in its options.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
