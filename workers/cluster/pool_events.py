"""Events of an inference pool: progress of a cache by its committed blocks, and why no actor has begun yet."""

import time
from typing import Self

from store import CacheWriter
from workers.cluster import ray_api
from workers.config.task import InferenceTask
from workers.events import Emit, InferenceProgress, Log

_WAITING_S = 5.0


class PoolProgress:
    """One progress event for all actors of a pool together, whenever another block of the cache is committed.

    A context, which reports at its end what was committed since.
    """

    def __init__(self, task: InferenceTask, emit: Emit) -> None:
        self._spec, self._emit = task.spec, emit
        self._writer = CacheWriter(task.folders.caches, task.spec)
        self._total = task.spec.views * task.spec.samples
        # Not by the blocks that are to be inferred: those may be some of the missing ones.
        self._before = self._reported = self._done()
        self._started = self._look_again = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.report(now=True)

    def _done(self) -> int:
        return self._total - self._spec.rows_in(self._writer.pending_blocks())

    def report(self, now: bool = False) -> None:
        """Emit an event if rows were committed since the last one; looks at most twice a second.

        Args:
            now: look, even if that was just done.
        """
        looked = time.monotonic()
        if looked < self._look_again and not now:
            return
        done = self._done()
        # Looking reads a record for every block: of very many blocks, less often.
        self._look_again = looked + max(0.5, 20 * (time.monotonic() - looked))
        if done == self._reported:
            return
        self._reported = done
        rate = (done - self._before) / (time.monotonic() - self._started)
        self._emit(
            InferenceProgress(
                cache=self._spec.key,
                split=self._spec.split,
                rows_done=done,
                rows_total=self._total,
                rows_inferred=done - self._before,
                rows_per_s=rate,
                eta_s=(self._total - done) / rate if rate > 0 else None,
            )
        )


class WaitingLog:
    """Log of why no inference actor has begun, as Ray says: its process is starting, or others hold what it asks for.

    Args:
        gpu_share: that it asks for; 0 is a core.
    """

    def __init__(self, gpu_share: float, emit: Emit) -> None:
        self._kind: ray_api.Resource = "GPU" if gpu_share else "CPU"
        self._asked = gpu_share or 1.0
        self._emit = emit
        self._was_free = ray_api.free(self._kind)
        self._look_again = time.monotonic() + _WAITING_S
        self._reported = ""

    def report(self) -> bool:
        """Emit the reason, once for each.

        Returns:
            Whether the wait has lasted for so long that there is a reason to give.
        """
        if time.monotonic() < self._look_again:
            return False
        self._look_again = time.monotonic() + _WAITING_S
        total, free = ray_api.total(self._kind), ray_api.free(self._kind)
        others = max(0, len(ray_api.actor_names()) - 1)
        names = {"GPU": "GPUs", "CPU": "CPU cores"}[self._kind]
        # A share has to be free on one GPU, and only the sum over all is known.
        enough = self._asked * (total if self._kind == "GPU" and total > 1 else 1)
        if free >= enough or (self._was_free >= enough and not others):
            # Resources count as taken from the moment on at which Ray begins to start the process.
            reason, message = "starting", "inference has its share of the machine: Ray is starting its processes"
        else:
            reason = "taken"
            message = (
                f"inference waits for {self._asked:g} of the {total:g} {names}, of which {free:g} are free; "
                f"{others} other processes of training or inference have the rest, or wait as well"
            )
        if reason != self._reported:
            self._reported = reason
            self._emit(Log(message=message))
        return True
