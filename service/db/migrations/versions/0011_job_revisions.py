"""Revisions of jobs: counts of the changes of a job and its runs, made by triggers, whoever writes and however.

Revision: 0011, after 0010.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ADD = "INSERT INTO job_revisions (job_id, revision) {source} ON CONFLICT (job_id) DO NOTHING"
COUNT = "UPDATE job_revisions SET revision = revision + 1 WHERE job_id {which}"
FORGET = "DELETE FROM job_revisions WHERE job_id {which}"


def upgrade() -> None:
    """Every job begins with revision 1. A batch operation on ``jobs`` or ``runs`` would drop SQLite's triggers."""
    op.create_table(
        "job_revisions",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_revisions"),
    )
    op.execute("INSERT INTO job_revisions (job_id, revision) SELECT id, 1 FROM jobs")
    statements = _sqlite() if op.get_bind().dialect.name == "sqlite" else _postgresql()
    for statement in statements:
        op.get_bind().exec_driver_sql(statement)


def _sqlite() -> list[str]:
    """A trigger for each row."""
    bodies = {
        ("jobs", "INSERT"): ADD.format(source="VALUES (NEW.id, 1)"),
        ("jobs", "UPDATE"): COUNT.format(which="= NEW.id"),
        ("jobs", "DELETE"): FORGET.format(which="= OLD.id"),
        ("runs", "INSERT"): COUNT.format(which="= NEW.job_id"),
        ("runs", "UPDATE"): COUNT.format(which="= NEW.job_id"),
        ("runs", "DELETE"): COUNT.format(which="= OLD.job_id"),
    }
    return [
        f"CREATE TRIGGER {table}_revision_{event.lower()} AFTER {event} ON {table} BEGIN {body}; END"
        for (table, event), body in bodies.items()
    ]


def _postgresql() -> list[str]:
    """A trigger for each statement: one that changes 10,000 runs would leave as many dead rows of one revision."""
    jobs, runs = "IN (SELECT id FROM changed)", "IN (SELECT job_id FROM changed)"
    functions = {
        "job_revision_add": ADD.format(source="SELECT id, 1 FROM changed"),
        "job_revision_count": COUNT.format(which=jobs),
        "job_revision_forget": FORGET.format(which=jobs),
        "run_revision_count": COUNT.format(which=runs),
    }
    triggers = {
        ("jobs", "INSERT"): "job_revision_add",
        ("jobs", "UPDATE"): "job_revision_count",
        ("jobs", "DELETE"): "job_revision_forget",
        **{("runs", event): "run_revision_count" for event in ("INSERT", "UPDATE", "DELETE")},
    }
    made = [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$"
        for name, body in functions.items()
    ]
    return made + [
        f"CREATE TRIGGER {table}_revision_{event.lower()} AFTER {event} ON {table} "
        f"REFERENCING {'OLD' if event == 'DELETE' else 'NEW'} TABLE AS changed "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        for (table, event), function in triggers.items()
    ]
