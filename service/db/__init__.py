"""The database: models, states and transitions, queries, migrations."""
