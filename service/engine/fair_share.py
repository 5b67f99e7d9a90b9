"""Whose turn it is: how the free slots of the engine are shared among the jobs that want some. Pure.

The highest priority takes all it can use. Among equals a slot goes to the API key that has the fewest, among its jobs
to the one that has the fewest, and then to the oldest: ten jobs of one user do not keep another user's waiting.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.engine.allocation import FreeResources, Need


@dataclass(frozen=True)
class Claim:
    """What a job has and wants.

    Attributes:
        job_id: ids rise with time.
        key_id: of the API key that posted it; None is a key of its own.
        has: what its runs have, in the unit of ``weight``.
        wants: runs that wait and may start.
        need: of each of them.
        weight: what each of them counts for in sharing.
    """

    job_id: str
    key_id: str | None
    priority: int
    has: float
    wants: int
    need: Need
    weight: float = 1.0


class Allotment(NamedTuple):
    """How many runs each job may start now, by job id, and the job for whose next run GPUs are kept free."""

    given: Counter[str]
    kept_for: str | None


def allot(claims: Sequence[Claim], free: FreeResources) -> Allotment:
    """Share out what is free among the jobs, one run after the other; ``free`` is less by that afterwards.

    Whose turn it is and who finds too few cores, keeps all others waiting. Who finds too little of a GPU has the
    emptiest GPUs kept free, and others get what the remaining ones have, and the CPU: runs that need little never keep
    one that needs a whole GPU waiting for ever.
    """
    of_job = {claim.job_id: claim.has for claim in claims}
    of_key: defaultdict[str | None, float] = defaultdict(float)
    for claim in claims:
        of_key[claim.key_id] += claim.has
    given: Counter[str] = Counter()
    kept_for: str | None = None
    set_aside: set[str] = set()
    while True:
        waiting = [c for c in claims if given[c.job_id] < c.wants and c.job_id not in set_aside]
        if not waiting:
            return Allotment(given, kept_for)
        turn = min(waiting, key=lambda c: (-c.priority, of_key[c.key_id], of_job[c.job_id], c.job_id))
        if not free.has_cores(turn.need):
            # What is free is kept for it: smaller runs would take every core before there are enough.
            return Allotment(given, kept_for)
        if not free.fits(turn.need):
            set_aside.add(turn.job_id)
            # One at a time: whoever comes next has its turn when this one has started.
            if kept_for is None:
                kept_for = turn.job_id
                free.keep(turn.need)
            continue
        free.take(turn.need)
        given[turn.job_id] += 1
        of_job[turn.job_id] += turn.weight
        of_key[turn.key_id] += turn.weight
