"""Pins of jobs, packed events, tombstones of deleted files, and what deleted rows had added to counters.

Revision: 0009, after 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds columns in place, as 0002; the two new indexes are of columns that a deletion looks through."""
    op.add_column("jobs", sa.Column("pinned_at", TIME, nullable=True))
    op.create_index("ix_jobs_retry_of", "jobs", ["retry_of"])
    op.create_index("ix_idempotency_keys_job_id", "idempotency_keys", ["job_id"])
    op.create_table(
        "packed_events",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], "fk_packed_events_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_packed_events"),
    )
    op.create_index("ix_packed_events_job_id_last_seq", "packed_events", ["job_id", "last_seq"])
    op.create_index("ix_packed_events_run_id_last_seq", "packed_events", ["run_id", "last_seq"])
    op.create_table(
        "deleted_paths",
        sa.Column("path", sa.String(1024), nullable=False),
        sa.Column("deleted_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_deleted_paths"),
    )
    op.create_table(
        "deleted_sums",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_deleted_sums"),
    )
