"""Scopes of API keys, and callers.

Apart from ``api_keys``, for the command line names the scopes when it starts: SQLAlchemy would take it longer than all
the rest, 0.9 s after 0.5 s.
"""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Scope of an API key; each includes those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def covers(self, needed: "Scope") -> bool:
        """Whether a key with this scope may do what ``needed`` is asked for."""
        order = tuple(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Caller:
    """Caller: who has sent a request.

    Attributes:
        key_id: of the key that came with it; None for the key of ``RETORT_API_KEY_FILE``, and for this machine's own
            programs where there are no keys. Both are the operator, so their jobs and Idempotency-Keys are shared.
        name: the key's, for people; None without a key.
        scope: what the caller may do.
    """

    key_id: str | None
    name: str | None
    scope: Scope


OPERATOR = Caller(None, "key file", Scope.ADMIN)
"""The caller who brings the key of ``RETORT_API_KEY_FILE``."""

THIS_MACHINE = Caller(None, None, Scope.ADMIN)
"""The caller of a service that has no keys: it can be reached from its own machine only."""
