"""Reports of a run's steps: an event now and then, with the mean loss since the last one."""

import time

from workers.events import Emit, Step
from workers.training.metrics.epoch_sums import EpochSums, Reading

# A person watches; an event is a row in the database.
INTERVAL_S = 2.0


class StepReports:
    """Reports of the steps of one run, at most one in ``INTERVAL_S`` seconds."""

    def __init__(self) -> None:
        self._reported_at = time.monotonic()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begin anew, with the sums that the losses are taken from."""
        self._rows, self._loss = 0, 0.0

    def report(self, sums: EpochSums, *, epoch: int, epochs: int, steps: int, emit: Emit) -> Reading | None:
        """Emit a ``Step`` unless that was just now; return what was read for it.

        Args:
            sums: of the epoch that is under way; no event comes of sums with a step that was not finite.
            epoch: counted from 1.
            steps: of an epoch.
        """
        now = time.monotonic()
        if now - self._reported_at <= INTERVAL_S:
            return None
        self._reported_at = now
        reading = sums.read()
        rows, loss = (self._rows, self._loss) if self._rows < reading.rows else (0, 0.0)
        self._rows, self._loss = reading.rows, reading.loss
        if not reading.bad_steps:
            emit(
                Step(
                    epoch=epoch,
                    epochs=epochs,
                    step=sums.steps,
                    steps=steps,
                    loss=(reading.loss - loss) / (reading.rows - rows),
                    images_per_s=sums.rows / sums.seconds if sums.seconds else 0.0,
                )
            )
        return reading
