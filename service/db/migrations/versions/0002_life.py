"""Jobs with a priority, a key and a limit of their own; runs that can be found again; retries of both.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds columns in place: a copy of the table would, on SQLite, delete the rows that refer to it."""
    op.add_column("jobs", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("parallel_runs", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("key_id", sa.String(40), nullable=True))
    op.create_index("ix_jobs_key_id_state", "jobs", ["key_id", "state"])
    op.add_column("runs", sa.Column("losses", sa.Integer(), server_default="0", nullable=False))
    op.create_index("ix_runs_state_attempt_losses", "runs", ["state", "attempt", "losses"])
    op.add_column("runs", sa.Column("actor", sa.String(80), nullable=True))
    op.add_column("runs", sa.Column("piece", sa.Integer(), nullable=True))
    for table in ("jobs", "runs"):
        _add_retry_of(table)
    op.create_index("ix_runs_retry_of", "runs", ["retry_of"], unique=True)


def _add_retry_of(table: str) -> None:
    # Only as part of the column can SQLite add a constraint.
    op.execute(
        f"ALTER TABLE {table} ADD COLUMN retry_of VARCHAR(40) "
        f"CONSTRAINT fk_{table}_retry_of_{table} REFERENCES {table} (id)"
    )
