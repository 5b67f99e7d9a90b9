"""Structured logs of the service's processes; what a line looks like is ``workers.logs``'s."""

from workers import logs

# They log every migration step and every request, which the service says itself.
_QUIET = ("alembic", "uvicorn.access")


def configure_logging(level: str) -> None:
    """Has this process log as JSON, a line each; safe to repeat.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    logs.configure(level, _QUIET)
