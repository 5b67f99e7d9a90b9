"""Metrics of a job's teacher on each split that is measured.

Revision: 0010, after 0009.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of jobs whose caches were completed before, only the columns of accuracies are known."""
    op.add_column("jobs", sa.Column("teacher_metrics", sa.JSON(none_as_null=True), nullable=True))
