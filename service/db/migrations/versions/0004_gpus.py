"""What the leading engine has found out about its GPUs.

Revision: 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An engine that leads already has not tried them: NULL."""
    op.add_column("engine", sa.Column("gpus", sa.JSON(none_as_null=True), nullable=True))
