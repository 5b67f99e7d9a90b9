"""The life of a job: the table alone, without a database."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.db.states import JOB_TABLE, LIVE, TABLE, TERMINAL, WORKING, State, move
from service.errors import IllegalMove

states = st.sampled_from(State)


@given(st.lists(states, max_size=30))
def test_no_path_leaves_a_terminal_state_and_every_step_is_in_the_table(wanted: list[State]) -> None:
    """Asked for anything, a job only moves as the table says."""
    state = State.QUEUED
    for target in wanted:
        try:
            after = move(state, target)
        except IllegalMove:
            continue
        assert after is target
        assert state not in TERMINAL
        assert target in TABLE[state]
        state = after


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_nothing_follows_a_terminal_state(state: State) -> None:
    """Not even itself."""
    for wanted in State:
        with pytest.raises(IllegalMove, match="it is final"):
            move(state, wanted)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_job_that_has_ended_is_queued_again_and_nothing_else(state: State) -> None:
    """Runs are added to it."""
    assert move(state, State.QUEUED, JOB_TABLE) is State.QUEUED
    assert JOB_TABLE[state] == {State.QUEUED}
    assert {live: JOB_TABLE[live] for live in LIVE} == {live: TABLE[live] for live in LIVE}


def test_every_live_state_can_still_end_and_nothing_else_is_live() -> None:
    """A job that can never end would be held for ever."""
    assert set(TABLE) == set(State)
    assert set(State) == LIVE | TERMINAL
    for state in LIVE:
        assert {State.FAILED, State.CANCELLED} <= TABLE[state]


def test_only_what_is_put_down_is_paused_and_only_queued_work_follows_a_pause() -> None:
    """What works goes through pausing, so that its worker saves its state; what is paused waits for its turn again."""
    assert {state for state in State if State.PAUSED in TABLE[state]} == {State.QUEUED, State.LOST, State.PAUSING}
    assert TABLE[State.PAUSED] & LIVE == {State.QUEUED}


def test_only_what_is_being_worked_on_can_succeed() -> None:
    """A queued or lost run has no result."""
    assert {state for state in State if State.SUCCEEDED in TABLE[state]} == WORKING


def test_a_cancelled_job_does_not_run_again() -> None:
    """Cancelling is not undone."""
    with pytest.raises(IllegalMove, match="cannot move from cancelling to running; after cancelling comes"):
        move(State.CANCELLING, State.RUNNING)
