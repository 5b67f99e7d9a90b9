"""The life of a job and of a run: one enum, one table, one pure function. No database here.

::

    queued ──> running ──> pausing ──> paused ──> queued     a client pauses it, and resumes it
    pausing ──> running                                      resumed before it had stopped
    running ──> queued                                       put down in good order: the engine ends, say
    queued, lost ──> paused                                  there is nothing to stop
    running ──> pausing ──> paused                           set aside because of the disk; resumed by the engine
    running, pausing ──> cancelling
    running, pausing, cancelling ──> lost                    its process vanished
    lost ──> queued, running
    queued, paused, lost ──> failed, cancelled
    running, pausing, cancelling ──> failed, cancelled, succeeded

*failed*, *cancelled* and *succeeded* are final: nothing follows them, and a retry is a job of its own. *failed* is not
*lost*: failed means that it raised, and the same request would raise again; lost means that it vanished (its process
died), and it is tried again a bounded number of times. Only runs are lost, or queued when they are put down: a job
stays what it is when its engine ends, until the next one takes it up. The stage of a job (inference, training) is
progress, not a state. Workers only emit events; the engine alone moves states, except that a client may cancel, pause
and resume.
"""

from collections.abc import Mapping
from enum import StrEnum

from service.errors import IllegalMove


class State(StrEnum):
    """Where a job or a run is in its life."""

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
    State.QUEUED: frozenset({State.RUNNING, State.PAUSED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.PAUSING, State.CANCELLING, State.LOST}) | TERMINAL,
    State.PAUSING: frozenset({State.RUNNING, State.PAUSED, State.CANCELLING, State.LOST}) | TERMINAL,
    State.PAUSED: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.CANCELLING: frozenset({State.LOST}) | TERMINAL,
    State.LOST: frozenset({State.QUEUED, State.RUNNING, State.PAUSED, State.FAILED, State.CANCELLED}),
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
