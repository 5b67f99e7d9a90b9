"""Shares that the processes of a run were given, runs that need a whole GPU, and what a run waits for.

Revision: 0006, after 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``share``, ``whole_gpu`` and ``waits_for`` to runs.

    The share is NULL of a run that an engine of an earlier version has started, for that was not recorded.
    """
    op.add_column("runs", sa.Column("share", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("runs", sa.Column("whole_gpu", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("runs", sa.Column("waits_for", sa.Text(), nullable=True))
