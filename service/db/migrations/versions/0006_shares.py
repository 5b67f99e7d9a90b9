"""What each process of a run was given, which runs need a whole GPU, and what a run waits for.

Revision: 0006, after 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What an engine of an earlier version has started has told nobody what it was given: NULL."""
    op.add_column("runs", sa.Column("share", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("runs", sa.Column("whole_gpu", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("runs", sa.Column("waits_for", sa.Text(), nullable=True))
