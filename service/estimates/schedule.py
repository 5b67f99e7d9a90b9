"""Schedule: who gets which slot when, played through with the engine's rules, and so when each run and job ends. Pure.

As ``engine.run_start`` shares slots: the highest priority first, then the API key with the fewest runs at work, its
job with the fewest, the oldest; and as ``workers.training.share_out`` puts runs into processes. Times are seconds
from now.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from workers.training.share_out import share_out


@dataclass(frozen=True)
class WaitingRun:
    """Run that waits for a slot.

    Attributes:
        index: in the plan of its job.
        epochs_s: of all of its epochs, its share of its process's time.
    """

    id: str
    index: int
    epochs_s: float


@dataclass(frozen=True)
class Load:
    """Work of one job that is left.

    Attributes:
        ready_s: when its caches are complete.
        processes: slots of each of its groups.
        at_once: runs that may be at work at once; None for as many as fit.
        start_s, end_s, tail_s: of a process, as ``rates.ProcessRate``.
        waiting: runs without a slot, in the order of the plan.
        under_way: ends of the runs of each process that is at work, by run id.
        batches_of: by index; equal for runs that can share a process.
    """

    id: str
    priority: int = 0
    key_id: str | None = None
    ready_s: float = 0.0
    processes: int = 1
    at_once: int | None = None
    largest_group: int = 1
    start_s: float = 0.0
    end_s: float = 0.0
    tail_s: float = 0.0
    waiting: Sequence[WaitingRun] = ()
    under_way: Sequence[Mapping[str, float]] = ()
    batches_of: Callable[[WaitingRun], Hashable] = lambda _: None


@dataclass
class _State:
    """State of a job while its work is played through."""

    load: Load
    waiting: list[WaitingRun]
    at_work: int = 0
    ends: dict[str, float] = field(default_factory=dict)


def expected_ends(loads: Sequence[Load], slots: int) -> dict[str, float]:
    """Seconds until each job and each run of it ends, by id.

    Of a job whose processes need more slots than there are, the runs that wait have no end, and it has none.
    """
    states = [_State(load, list(load.waiting)) for load in loads]
    free = slots
    # When slots are free again, or caches complete: (time, slots, number of the job, runs).
    moments: list[tuple[float, int, int, int]] = []
    for number, state in enumerate(states):
        for ends in state.load.under_way:
            state.ends |= ends
            state.at_work += len(ends)
            free -= state.load.processes
            heapq.heappush(moments, (max(ends.values()), state.load.processes, number, len(ends)))
        if state.waiting:
            heapq.heappush(moments, (state.load.ready_s, 0, number, 0))
    while moments:
        now = moments[0][0]
        while moments and moments[0][0] <= now:
            _, given_back, number, runs = heapq.heappop(moments)
            free += given_back
            states[number].at_work -= runs
        for number, processes in _allot(states, free, now).items():
            state = states[number]
            free -= processes * state.load.processes
            for end_s, runs in _begin(state, processes, now):
                heapq.heappush(moments, (end_s, state.load.processes, number, runs))
    return _gathered(states)


def _gathered(states: Sequence[_State]) -> dict[str, float]:
    found: dict[str, float] = {}
    for state in states:
        found |= state.ends
        if not state.waiting:
            found[state.load.id] = max((state.load.ready_s, *state.ends.values()))
    return found


def _allot(states: Sequence[_State], free: int, now: float) -> Counter[int]:
    """Processes that each job may start now, by its number."""
    of_key: Counter[str | None] = Counter()
    for state in states:
        of_key[state.load.key_id] += state.at_work
    given: Counter[int] = Counter()
    while True:
        wanting = [n for n, s in enumerate(states) if s.load.ready_s <= now and given[n] < _wants(s)]
        if not wanting:
            return given

        def turn(number: int) -> tuple[int, int, int, str]:
            load = states[number].load
            return -load.priority, of_key[load.key_id], states[number].at_work + given[number], load.id

        first = min(wanting, key=turn)
        load = states[first].load
        if load.processes > free:
            return given
        free -= load.processes
        given[first] += 1
        of_key[load.key_id] += 1


def _wants(state: _State) -> int:
    """Runs that may start."""
    room = len(state.waiting) if state.load.at_once is None else max(0, state.load.at_once - state.at_work)
    return min(len(state.waiting), room)


def _begin(state: _State, processes: int, now: float) -> list[tuple[float, int]]:
    """Start groups of a job; the end of each, and its runs."""
    load, begun, started = state.load, [], set[str]()
    startable = state.waiting[: _wants(state)]
    for group in share_out(startable, processes, load.largest_group, batches_of=load.batches_of):
        ended_s = now + load.start_s + sum(run.epochs_s for run in group) + load.end_s
        state.ends |= {run.id: ended_s + load.tail_s * place for place, run in enumerate(group)}
        state.at_work += len(group)
        begun.append((ended_s + load.tail_s * (len(group) - 1), len(group)))
        started |= {run.id for run in group}
    state.waiting = [run for run in state.waiting if run.id not in started]
    return begun
