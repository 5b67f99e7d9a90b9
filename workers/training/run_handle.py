"""Handle of one run of a group, and the signals that it may get while it trains."""

from dataclasses import dataclass
from enum import IntEnum

from workers.config.task import TrainingTask
from workers.events import Emit, ShouldStop, never


class Signal(IntEnum):
    """What somebody wants of a run; of several, the greatest counts."""

    GO_ON = 0
    PAUSE = 1
    STOP = 2


@dataclass(frozen=True)
class RunHandle:
    """One run of a group: what to train, who is told, who may stop or pause it."""

    task: TrainingTask
    emit: Emit
    should_stop: ShouldStop
    should_pause: ShouldStop = never
