"""The life of a job and of a run: one enum, one table, one pure function. No database here.

::

    queued ─────> running ─────> cancelling
      ^            ^  │             │
      │            │  v             │
      └─────────── lost <───────────┘

    queued, lost ──────────> failed, cancelled
    running, cancelling ───> failed, cancelled, succeeded        (these three are final)

    from \\ to    queued  running  cancelling  lost  succeeded  failed  cancelled
    queued          .       x         .         .       .         x        x
    running         .       .         x         x       x         x        x
    cancelling      .       .         .         x       x         x        x
    lost            x       x         .         .       .         x        x
    succeeded       .       .         .         .       .         .        .
    failed          .       .         .         .       .         .        .
    cancelled       .       .         .         .       .         .        .

*failed* is not *lost*: failed means that it raised, and the same request would raise again; lost means that it
vanished (its process died), and it is tried again a bounded number of times. The stage of a job (inference,
training) is progress, not a state. Workers only emit events; the runner alone moves states, except that a client
may cancel.
"""

from collections.abc import Mapping
from enum import StrEnum

from service.errors import IllegalMove


class State(StrEnum):
    """Where a job or a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    LOST = "lost"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - TERMINAL
WORKING = frozenset({State.RUNNING, State.CANCELLING})
"""States in which somebody works on it, and in which its writes land."""

TABLE: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.CANCELLING, State.LOST}) | TERMINAL,
    State.CANCELLING: frozenset({State.LOST}) | TERMINAL,
    State.LOST: frozenset({State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def move(current: State, wanted: State) -> State:
    """The state after the move, which is ``wanted``.

    Raises:
        IllegalMove: the table has no such move; the message lists those it has.
    """
    if wanted not in TABLE[current]:
        allowed = ", ".join(sorted(TABLE[current])) or "nothing, it is final"
        raise IllegalMove(f"cannot move from {current} to {wanted}; after {current} comes {allowed}")
    return wanted
