"""The engine's lease as it was read: who holds it, and whether an engine is known to work, in words."""

from dataclasses import dataclass
from datetime import datetime

# Further ahead than this no heartbeat is of now: its clock was ahead, or this one was set back.
AHEAD_MAX_S = 5.0


@dataclass(frozen=True)
class Lease:
    """The lease of the one engine that may lead.

    Attributes:
        holder: name of the engine that has it; None if none has.
        heartbeat_at: when that was last heard of, UTC.
        age_s: seconds since then, by ``clock``; below 0 if that is still to come. None without a holder.
        clock: whose clock that is, in words.
    """

    holder: str | None
    heartbeat_at: datetime | None
    age_s: float | None
    clock: str

    def silence(self, max_age_s: float) -> str | None:
        """Why no engine is known to work; None if one was heard of within ``max_age_s`` seconds."""
        if self.age_s is None or self.heartbeat_at is None:
            return "no engine leads: start `retort engine`"
        if self.age_s > max_age_s:
            return f"the engine was last heard of {self.age_s:.0f} s ago, more than {max_age_s:g} s"
        if self.age_s < -AHEAD_MAX_S:
            return (
                f"no engine is known to work: the last heartbeat is of {self.heartbeat_at.isoformat()}, "
                f"{-self.age_s:.0f} s ahead of {self.clock}, which was set back since, or the engine's was wrong: set "
                "the clocks, and start `retort engine`, which takes over from an engine that stays silent"
            )
        return None
