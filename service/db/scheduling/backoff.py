"""Backoff of a run, or of a job's caches: after losses of its process, and after tries on a bad disk.

A loss that is the node's fault (others have used up its memory, Ray has ended) is not counted as one of the work, but
waits like one. An epoch, or a row inferred, ends the backoff. That of losses is stored; that of tries is not.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from service.db.models import Json, utc_now
from workers.backoff import LOSSES, Schedule, delay_s

DISK_TRIES = Schedule(base_s=5.0, factor=2.0, cap_s=600.0)
"""Tries of work that was set aside because of the disk."""


class Backoff(BaseModel):
    """Losses in a row, and the time of the next start; JSON in the column ``backoff``.

    Attributes:
        lost_attempts: since it last came on, whatever the cause.
        faults: of these, those that may be the work's own fault.
        last: how its process died.
        until: no start before that.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    # The column's JSON keeps its key.
    lost_attempts: int = Field(validation_alias="losses", serialization_alias="losses")
    faults: int
    last: str
    until: datetime

    @property
    def waits_for(self) -> str:
        """The reason why it waits, as a part of a sentence."""
        if self.lost_attempts == 1:
            return f"lost: {self.last}; starts again at once"
        return f"lost {self.lost_attempts} times in a row, last: {self.last}; starts again at {self.until:%H:%M:%S} UTC"

    @property
    def is_over(self) -> bool:
        """Whether it may start; a clock that was set back meanwhile keeps nobody waiting for longer than ever."""
        left = self.until - utc_now()
        return not timedelta(0) < left <= timedelta(seconds=LOSSES.longest_s)


def after_loss(earlier: Backoff | None, last: str, *, is_node_fault: bool) -> Backoff:
    """The backoff after one more loss."""
    lost_attempts = 1 + (earlier.lost_attempts if earlier else 0)
    return Backoff(
        lost_attempts=lost_attempts,
        faults=(0 if is_node_fault else 1) + (earlier.faults if earlier else 0),
        last=last,
        until=utc_now() + timedelta(seconds=delay_s(lost_attempts)),
    )


def read_backoff(stored: Json | None) -> Backoff | None:
    """Read a backoff from its column; None if there is none."""
    return None if stored is None else Backoff.model_validate(stored)


def why_set_back(backoffs: Iterable[tuple[str, Backoff]]) -> dict[str, str]:
    """Reasons of those that may not start yet, by id."""
    return {id: backoff.waits_for for id, backoff in backoffs if not backoff.is_over}


@dataclass
class TryBackoff:
    """Time of the next try of what was set aside: later each time, until it has got somewhere in between.

    Kept in memory alone: a new engine tries everything at once.
    """

    _tries: dict[str, int] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def count(self, id: str) -> None:
        """Note that a run, or a job with its caches, was set aside just now."""
        self._tries[id] = tries = self._tries.get(id, 0) + 1
        self._due[id] = time.monotonic() + DISK_TRIES.delay_s(tries)

    def reset(self, id: str) -> None:
        """Note that it has got somewhere, or is gone."""
        self._tries.pop(id, None)
        self._due.pop(id, None)

    def is_due(self, id: str) -> bool:
        """Whether to try it now."""
        return time.monotonic() >= self._due.get(id, 0.0)
