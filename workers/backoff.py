"""Exponential backoff with jitter: how long to wait before the next try, by the number of tries so far."""

import random
from dataclasses import dataclass

# Whatever the cause, the end of Ray and a full machine included: who takes everything down must end some time.
LOST_ATTEMPTS_EVER_MAX = 100

_DICE = random.Random()


@dataclass(frozen=True)
class Schedule:
    """Delays before one try after the other.

    Attributes:
        base_s: the first delay that is none of the immediate ones.
        factor: of each further delay to the one before.
        cap_s: no delay is longer.
        jitter: the part of a delay by which it is longer or shorter by chance, so that what was lost in one moment does
            not start again in one moment.
        immediate: how many tries come without any delay.
    """

    base_s: float
    factor: float
    cap_s: float
    jitter: float = 0.0
    immediate: int = 0

    @property
    def longest_s(self) -> float:
        """The longest delay that there may be."""
        return self.cap_s * (1.0 + self.jitter)

    def delay_s(self, failures: int, dice: random.Random = _DICE) -> float:
        """Seconds to wait after so many failures in a row, counted from 1."""
        delays = failures - self.immediate
        if delays < 1:
            return 0.0
        # The exponent is bounded, too: a float has an end.
        delay_s = min(self.cap_s, self.base_s * self.factor ** min(delays - 1, 16))
        return delay_s * dice.uniform(1.0 - self.jitter, 1.0 + self.jitter)


LOSSES = Schedule(base_s=2.0, factor=4.0, cap_s=300.0, jitter=0.25, immediate=1)
"""Restarts of lost processes: 0 s, then about 2, 8, 32, 128, then 300."""


def delay_s(lost_attempts: int, dice: random.Random = _DICE) -> float:
    """Seconds before the next start after ``lost_attempts`` losses in a row, see ``LOSSES``."""
    return LOSSES.delay_s(lost_attempts, dice)
