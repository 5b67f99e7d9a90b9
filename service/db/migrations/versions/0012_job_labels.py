"""Tags and notes of jobs, and the text that a job is found by.

Revision: 0012, after 0011.
"""

import sqlalchemy as sa
from alembic import op

from service.db.job_labels import search_text

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

JOBS = sa.table(
    "jobs",
    *(sa.column(name, sa.String()) for name in ("id", "name", "teacher_id", "retry_of", "search_text")),
    *(sa.column(name, sa.JSON()) for name in ("teacher", "plan")),
)


def upgrade() -> None:
    """Add the columns, fill in the text of the jobs that there are, and index it with SQLite, see ``job_labels``."""
    op.add_column("jobs", sa.Column("tags", sa.JSON(none_as_null=True), nullable=True))
    for name in ("note", "search_text"):
        op.add_column("jobs", sa.Column(name, sa.Text(), server_default=sa.text("''"), nullable=False))
    connection = op.get_bind()
    # One by one: a plan may be long.
    for id in connection.scalars(sa.select(JOBS.c.id)).all():
        job = connection.execute(sa.select(JOBS).where(JOBS.c.id == id)).mappings().one()
        connection.execute(sa.update(JOBS).where(JOBS.c.id == id).values(search_text=search_text(dict(job))))
    if connection.dialect.name == "sqlite":
        columns = ["id", "state", "created_at", "finished_at", "name", "search_text"]
        op.create_index(f"ix_jobs_{'_'.join(columns)}", "jobs", columns)
