"""The teacher's accuracy on a job's training views.

Revision: 0005, after 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of jobs whose caches were completed before, it is not known: NULL."""
    op.add_column("jobs", sa.Column("teacher_views_accuracy", sa.Double(), nullable=True))
