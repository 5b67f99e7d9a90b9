"""Base of the models, and the types that their columns share."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, MetaData
from sqlalchemy.orm import DeclarativeBase

from service.db.columns import UtcDateTime

Json = dict[str, Any]


def utc_now() -> datetime:
    """This machine's clock, timezone-aware."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of the models; every constraint has a name, so that a later migration can refer to it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, Json: JSON, list[Json]: JSON}
