"""Queue of the blocks of one cache that no inference actor has, with a limit on deaths by the same blocks."""

from collections import Counter, deque
from collections.abc import Sequence

from workers.cluster.deaths import Death
from workers.errors import WorkerError

ACTOR_DEATHS_MAX = 3


class WorkerLost(WorkerError):
    """Inference actors died again and again; what they had committed stays."""


class BlockQueue:
    """Blocks that no worker has, as batches of one call each.

    Args:
        blocks: numbers of blocks, in the order in which they are wanted.
        size: blocks of a batch, one call.
    """

    def __init__(self, blocks: Sequence[int], size: int) -> None:
        self._batches = deque(list(blocks[start : start + size]) for start in range(0, len(blocks), size))
        self._deaths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._batches)

    def take(self) -> list[int]:
        """Take the next batch of blocks."""
        return self._batches.popleft()

    def give_back(self, blocks: list[int], death: Death) -> None:
        """Take back the blocks of a worker that died. They are the next again: where all die, that shows soon.

        Raises:
            WorkerLost: too many have died of these very blocks. Those of others do not count: a cache may take hours.
        """
        self._batches.appendleft(blocks)
        if death.is_node_fault:
            return
        self._deaths[blocks[0]] += 1
        if self._deaths[blocks[0]] > ACTOR_DEATHS_MAX:
            raise WorkerLost(
                f"{self._deaths[blocks[0]]} inference actors died with the same blocks, the last one: {death.text}. "
                "Committed blocks are kept; look for a full memory or a failing GPU and submit the job again"
            )
