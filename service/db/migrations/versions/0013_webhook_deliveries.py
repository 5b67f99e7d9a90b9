"""Outbox of webhooks, whose changes count as changes of their job.

Revision: 0013, after 0012.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
COUNT = "UPDATE job_revisions SET revision = revision + 1 WHERE job_id = NEW.job_id"


def upgrade() -> None:
    """The triggers are as those of ``runs`` in 0011; PostgreSQL's call the function that was made there."""
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.String(300), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_attempt_at", TIME, nullable=True),
        sa.Column("last_status_code", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("next_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], "fk_webhook_deliveries_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.UniqueConstraint("job_id", name="uq_webhook_deliveries_job_id"),
    )
    op.create_index("ix_webhook_deliveries_status_next_at", "webhook_deliveries", ["status", "next_at"])
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for event in ("INSERT", "UPDATE"):
        trigger = f"CREATE TRIGGER webhook_deliveries_revision_{event.lower()} AFTER {event} ON webhook_deliveries "
        body = (
            f"BEGIN {COUNT}; END"
            if is_sqlite
            else "REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION run_revision_count()"
        )
        op.get_bind().exec_driver_sql(trigger + body)
