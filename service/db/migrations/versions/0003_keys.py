"""API keys, and an Idempotency-Key per API key.

Revision: 0003, after 0002.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """The Idempotency-Keys that there are stay with the operator, who was the only caller until now."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    # SQLite cannot change a primary key in place; nothing refers to this table, so a copy loses no rows.
    with op.batch_alter_table("idempotency_keys") as table:
        table.add_column(sa.Column("key_id", sa.String(40), server_default="", nullable=False))
        table.drop_constraint("pk_idempotency_keys", type_="primary")
        table.create_primary_key("pk_idempotency_keys", ["key_id", "key"])
    with op.batch_alter_table("idempotency_keys") as table:
        table.alter_column("key_id", server_default=None)
