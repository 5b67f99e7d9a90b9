"""Column types of the tables: UTC times and states, the same in SQLite and PostgreSQL."""

from datetime import UTC, datetime

from sqlalchemy import DateTime as SqlDateTime
from sqlalchemy import Dialect
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.types import TypeDecorator

from service.db.states import State


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time in every database; SQLite has no such type and keeps it without the zone."""

    impl = SqlDateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time for the database. Raises ValueError for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time from the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Plain text: PostgreSQL's ENUM type, or a check, would make every new state a migration of its own.
STATE = SqlEnum(
    State,
    native_enum=False,
    length=16,
    values_callable=lambda states: [state.value for state in states],
)
