"""Whose turn it is: how the free slots of the engine are shared among the jobs that want some. Pure.

The highest priority takes all it can use. Among equals a slot goes to the API key that has the fewest, among its jobs
to the one that has the fewest, and then to the oldest: ten jobs of one user do not keep another user's waiting.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """What a job has and wants.

    Attributes:
        job_id: ids rise with time.
        key_id: of the API key that posted it; None is a key of its own.
        has: slots that its runs have.
        wants: runs that wait and may start.
        size: slots that each of them takes.
    """

    job_id: str
    key_id: str | None
    priority: int
    has: int
    wants: int
    size: int


def allot(claims: Sequence[Claim], free: int) -> Counter[str]:
    """How many processes of ``size`` slots each job may start now, by job id; together no more than ``free`` slots."""
    of_job = Counter({claim.job_id: claim.has for claim in claims})
    of_key: Counter[str | None] = Counter()
    for claim in claims:
        of_key[claim.key_id] += claim.has
    given: Counter[str] = Counter()
    while True:
        waiting = [claim for claim in claims if given[claim.job_id] < claim.wants]
        if not waiting:
            return given
        turn = min(waiting, key=lambda c: (-c.priority, of_key[c.key_id], of_job[c.job_id], c.job_id))
        if turn.size > free:
            # What is free is kept for it: smaller runs would take every slot before there are enough.
            return given
        given[turn.job_id] += 1
        of_job[turn.job_id] += turn.size
        of_key[turn.key_id] += turn.size
        free -= turn.size
