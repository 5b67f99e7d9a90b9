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
        size: slots that each of them takes, of cores.
        gpu_size: of GPUs; 0 trains on the CPU.
    """

    job_id: str
    key_id: str | None
    priority: int
    has: int
    wants: int
    size: int
    gpu_size: int = 0

    @property
    def weight(self) -> int:
        """What one of its runs counts for in sharing."""
        return max(self.size, self.gpu_size)


def allot(claims: Sequence[Claim], free: int, gpu_free: int = 0) -> Counter[str]:
    """How many runs of ``size`` and ``gpu_size`` slots each job may start now, by job id; no more than what is free."""
    of_job = Counter({claim.job_id: claim.has for claim in claims})
    of_key: Counter[str | None] = Counter()
    for claim in claims:
        of_key[claim.key_id] += claim.has
    given: Counter[str] = Counter()
    takes_gpus = True
    while True:
        waiting = [c for c in claims if given[c.job_id] < c.wants and (takes_gpus or not c.gpu_size)]
        if not waiting:
            return given
        turn = min(waiting, key=lambda c: (-c.priority, of_key[c.key_id], of_job[c.job_id], c.job_id))
        if turn.size > free:
            # What is free is kept for it: smaller runs would take every slot before there are enough.
            return given
        if turn.gpu_size > gpu_free:
            # Likewise; who needs no GPU does not take it from it.
            takes_gpus = False
            continue
        given[turn.job_id] += 1
        of_job[turn.job_id] += turn.weight
        of_key[turn.key_id] += turn.weight
        free -= turn.size
        gpu_free -= turn.gpu_size
