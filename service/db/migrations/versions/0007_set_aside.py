"""Reason why a job or run was set aside, and what the leading engine says of the parts of its readiness.

Revision: 0007, after 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``set_aside`` to jobs and runs, and ``parts`` to the engine: NULL in rows that exist.

    What is paused was paused by a client, and an engine that leads already says nothing of its parts.
    """
    for table in ("jobs", "runs"):
        op.add_column(table, sa.Column("set_aside", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("engine", sa.Column("parts", sa.JSON(none_as_null=True), nullable=True))
