"""Exponential backoff with jitter between two losses of a process: the first restart is immediate, later ones wait."""

import random

BASE_S = 2.0
FACTOR = 4.0
CAP_S = 300.0
# Either way, so that what was lost in one moment does not start again in one moment.
JITTER = 0.25
# Whatever the cause, the end of Ray and a full machine included: who takes everything down must end some time.
LOST_ATTEMPTS_EVER_MAX = 100

_DICE = random.Random()


def delay_s(lost_attempts: int, dice: random.Random = _DICE) -> float:
    """Seconds before the next start after ``lost_attempts`` losses in a row: 0, then about 2, 8, 32, 128, then 300."""
    if lost_attempts < 2:
        return 0.0
    # The exponent is bounded, too: a float has an end.
    return min(CAP_S, BASE_S * FACTOR ** min(lost_attempts - 2, 16)) * dice.uniform(1.0 - JITTER, 1.0 + JITTER)
