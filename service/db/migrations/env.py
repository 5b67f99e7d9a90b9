"""Environment of Alembic: it uses the connection to the database that ``Database.upgrade_to_head`` hands in.

That connection already holds the write lock and a transaction, so all missing migrations land together or not at all
(SQLite's DDL is transactional, too, once the driver leaves BEGIN to us).
"""

from alembic import context

from service.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
