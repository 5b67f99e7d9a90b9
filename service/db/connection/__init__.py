"""Connections to SQLite and PostgreSQL: URL, pool, JSON text, disk errors."""
