"""Handle of one run of a group, and the signals that it may get while it trains."""

from dataclasses import dataclass
from enum import IntEnum

from workers.config.task import TrainingTask
from workers.events import Emit, ShouldStop, never


class Signal(IntEnum):
    """Signal to a run: go on, pause or stop; of several, the greatest counts."""

    GO_ON = 0
    PAUSE = 1
    STOP = 2


@dataclass(frozen=True)
class RunHandle:
    """Handle of one run of a group: its task, the receiver of its events, and whether it is to stop or to pause."""

    task: TrainingTask
    emit: Emit
    should_stop: ShouldStop
    should_pause: ShouldStop = never

    @property
    def signal(self) -> Signal:
        """Signal that the run is to obey now."""
        if self.should_stop():
            return Signal.STOP
        return Signal.PAUSE if self.should_pause() else Signal.GO_ON
