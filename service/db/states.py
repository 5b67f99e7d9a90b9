"""States of jobs and runs: one enum, one table of moves, one pure function. No database here.

*failed* is not *lost*: failed means that it raised, and the same request would raise again; lost means that it vanished
(its process died), and it is tried again a bounded number of times. Only runs are lost, or queued when they are put
down: a job stays what it is when its engine ends, until the next one adopts it. The stage of a job (inference,
training) is progress, not a state. Workers only emit events; the engine alone moves states, except that a client may
cancel, pause and resume, and queue a job that has ended by adding runs to it. ``transitions.transition`` makes every
move in the database.
"""

from collections.abc import Mapping
from enum import StrEnum

from service.errors import IllegalMove


class State(StrEnum):
    """State of a job or a run."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    LOST = "lost"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - TERMINAL
WORKING = frozenset({State.RUNNING, State.PAUSING, State.CANCELLING})
"""States in which somebody works on it, and in which its writes land."""

TABLE: Mapping[State, frozenset[State]] = {
    # There is nothing to stop: a client pauses it at once.
    State.QUEUED: frozenset({State.RUNNING, State.PAUSED, State.FAILED, State.CANCELLED}),
    # To queued it is put down in good order: the engine ends, say. Set aside because of the disk, it pauses as well.
    State.RUNNING: frozenset({State.QUEUED, State.PAUSING, State.CANCELLING, State.LOST}) | TERMINAL,
    # To running it is resumed before it has stopped.
    State.PAUSING: frozenset({State.RUNNING, State.PAUSED, State.CANCELLING, State.LOST}) | TERMINAL,
    # A client resumes it, or the engine what it has set aside.
    State.PAUSED: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.CANCELLING: frozenset({State.LOST}) | TERMINAL,
    State.LOST: frozenset({State.QUEUED, State.RUNNING, State.PAUSED, State.FAILED, State.CANCELLED}),
    # Final: a retry is a run of its own.
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""The states that may follow each state of a run; of a job while it lives, too."""

JOB_TABLE: Mapping[State, frozenset[State]] = {
    # A client adds runs to it.
    **{state: frozenset({State.QUEUED}) if state in TERMINAL else following for state, following in TABLE.items()}
}
"""The states that may follow each state of a job."""


def move(current: State, wanted: State, table: Mapping[State, frozenset[State]] = TABLE) -> State:
    """The state after the move, which is ``wanted``.

    Args:
        table: ``JOB_TABLE`` of a job.

    Raises:
        IllegalMove: the table has no such move; the message lists those it has.
    """
    if wanted not in table[current]:
        allowed = ", ".join(sorted(table[current])) or "nothing, it is final"
        raise IllegalMove(f"cannot move from {current} to {wanted}; after {current} comes {allowed}")
    return wanted
