"""Expected ends of jobs and runs, what a job's dataset held when it was posted, and the engine's capacity.

Revision: 0014, after 0013.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is expected of earlier rows until an engine has looked at them."""
    for table, column in (("jobs", "eta"), ("jobs", "samples"), ("runs", "eta"), ("engine", "capacity")):
        op.add_column(table, sa.Column(column, sa.JSON(none_as_null=True), nullable=True))
