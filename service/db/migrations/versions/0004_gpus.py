"""GPUs of the leading engine: what it has found out about them.

Revision: 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``gpus`` to the engine: NULL of one that leads already, which has not tried them."""
    op.add_column("engine", sa.Column("gpus", sa.JSON(none_as_null=True), nullable=True))
