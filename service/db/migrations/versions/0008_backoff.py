"""Losses in a row of runs and of jobs' caches, and when they start again.

Revision: 0008, after 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``backoff`` to jobs and runs: NULL of losses before this version, which were not counted."""
    for table in ("jobs", "runs"):
        op.add_column(table, sa.Column("backoff", sa.JSON(none_as_null=True), nullable=True))
