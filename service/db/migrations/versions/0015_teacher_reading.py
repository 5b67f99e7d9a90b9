"""Statements of a client about a teacher's output, classes and inputs, and the class names in its file.

Revision: 0015, after 0014.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Teachers that were uploaded before have neither: their files are read again by every job."""
    for name in ("reading", "file_class_names"):
        op.add_column("teachers", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))
