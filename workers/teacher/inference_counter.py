"""Counter of the rows that a call of ``infer_blocks`` has inferred and committed, and their events."""

import time

from store import CacheWriter
from workers.events import Emit, InferenceProgress

PROGRESS_INTERVAL_S = 0.25


class InferenceCounter:
    """Counter of the rows of one call, which reports them, not too often.

    Attributes:
        inferred: rows of this call that went through the teacher.
        committed: rows of this call that are in the cache.
    """

    def __init__(self, writer: CacheWriter, blocks: list[int], emit: Emit) -> None:
        spec = writer.spec
        self.inferred = 0
        self.committed = 0
        self._emit = emit
        self._spec = spec
        self._wanted = spec.rows_in(blocks)
        self._total = spec.views * spec.samples
        self._before = self._total - spec.rows_in({*writer.pending_blocks(), *blocks})
        self._started = self._reported = time.monotonic()

    def report(self, *, at_end: bool = False) -> None:
        """Emit progress, unless that was just done."""
        now = time.monotonic()
        if not at_end and now - self._reported < PROGRESS_INTERVAL_S:
            return
        self._reported = now
        rate = self.inferred / max(now - self._started, 1e-9)
        self._emit(
            InferenceProgress(
                cache=self._spec.key,
                split=self._spec.split,
                rows_done=self._before + self.committed,
                rows_total=self._total,
                rows_inferred=self.committed,
                rows_per_s=rate,
                eta_s=(self._wanted - self.inferred) / rate if rate else None,
            )
        )
