"""Structured logs of the service's processes; what a line looks like is ``workers.logs``'s."""

import os

import structlog

from service.settings import Settings, unknown_variables
from workers import logs

# They log every migration step and every request, which the service says itself.
_QUIET = ("alembic", "uvicorn.access")


def configure_logging(level: str) -> None:
    """Has this process log as JSON, a line each; safe to repeat.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    logs.configure(level, _QUIET)


def begin_log(settings: Settings) -> None:
    """``configure_logging`` of a process of the service, which warns of variables that have no effect."""
    configure_logging(settings.log_level)
    for sentence in unknown_variables(os.environ):
        structlog.get_logger("service.settings").warning(sentence)
