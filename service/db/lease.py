"""The engine's lease: taken, renewed and read; and the transactions that only its holder may write."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import EngineRecord, Json
from service.errors import LeaseLost

ENGINE_ROW = 1
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
        """The reason why no engine is known to work; None if one was heard of within ``max_age_s`` seconds."""
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


class LeaseQueries:
    """The lease of one engine, and what that engine says of itself.

    Args:
        database: migrated to head.
        holder: this engine's name in the lease; None writes without asking for the lease, as the API and tests do.
    """

    def __init__(self, database: Database, holder: str | None = None) -> None:
        self.database = database
        self.holder = holder
        # The heartbeat of another engine that was read last, and when it was new here (monotonic seconds).
        self._heard: tuple[str | None, datetime | None] = (None, None)
        self._heard_s = 0.0

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Transaction that commits only while this holder has the lease. Raises LeaseLost."""
        with self.database.write() as session:
            if self.holder is not None:
                leader = session.get_one(EngineRecord, ENGINE_ROW).holder
                if leader != self.holder:
                    raise LeaseLost(f"{self.holder} writes, but {leader or 'no engine'} has the lease: end this engine")
            yield session

    def acquire_lease(
        self,
        ttl_s: float = 30.0,
        gone: str | None = None,
        begin: Callable[[Json | None], Json | None] = lambda parts: None,
        *,
        renews: bool = False,
    ) -> bool:
        """Take the lease, or renew it: call it as the heartbeat, several times per ``ttl_s``.

        Clocks may be wrong, or be set while an engine leads. So another engine counts as alive only while both its
        heartbeat is younger than ``ttl_s`` and it was not the same for so long by this process's monotonic clock: one
        from the future delays a takeover by ``ttl_s``, and no longer. An engine that is alive after all cannot write
        any more, see ``LeaseLost``.

        Args:
            gone: a holder that is known to have died; nobody waits for its lease to run out.
            begin: what this holder says of its parts when it takes the lease, from what the last one said.
            renews: only keep what this holder has: another engine may have led meanwhile, and what this one knows of
                the jobs is of before.

        Returns:
            Whether this holder leads: False while another one is alive.
        """
        assert self.holder is not None, "a lease has a holder"
        with self.database.write() as session:
            now = self.database.now(session)
            lease = session.get_one(EngineRecord, ENGINE_ROW)
            if renews and lease.holder != self.holder:
                return False
            if lease.holder not in (None, self.holder, gone) and self._is_alive(lease, now, ttl_s):
                return False
            if lease.holder != self.holder:
                lease.gpus, lease.parts = None, begin(lease.parts)
            lease.holder, lease.heartbeat_at = self.holder, now
            return True

    def _is_alive(self, lease: EngineRecord, now: datetime, ttl_s: float) -> bool:
        if lease.heartbeat_at is None or (now - lease.heartbeat_at).total_seconds() >= ttl_s:
            return False
        heard = (lease.holder, lease.heartbeat_at)
        if heard != self._heard:
            self._heard, self._heard_s = heard, time.monotonic()
        return time.monotonic() - self._heard_s < ttl_s

    def release_lease(self) -> bool:
        """Give the lease back, so that the next engine need not wait; False if this holder did not have it."""
        mine = (EngineRecord.id == ENGINE_ROW) & (EngineRecord.holder == self.holder)
        with self.database.write() as session:
            released = session.execute(update(EngineRecord).where(mine).values(holder=None))
            return cast("CursorResult[Any]", released).rowcount == 1

    def lease(self) -> Lease:
        """The lease, of an engine that was heard of lately or not."""
        with self.database.read() as session:
            row = session.get_one(EngineRecord, ENGINE_ROW)
            beat = None if row.holder is None else row.heartbeat_at
            age_s = None if beat is None else (self.database.now(session) - beat).total_seconds()
        return Lease(row.holder, beat, age_s, self.database.clock)

    def record_gpus(self, report: Json) -> None:
        """Set what the leading engine has found out about its GPUs. Raises LeaseLost."""
        with self.write() as session:
            session.get_one(EngineRecord, ENGINE_ROW).gpus = report

    def record_parts(self, parts: Json) -> None:
        """Set what the leading engine says of the parts of its readiness. Raises LeaseLost."""
        with self.write() as session:
            session.get_one(EngineRecord, ENGINE_ROW).parts = parts

    def record_capacity(self, capacity: Json) -> None:
        """Set the capacity of the leading engine, ``estimates.workload.Slots``. Raises LeaseLost."""
        with self.write() as session:
            session.get_one(EngineRecord, ENGINE_ROW).capacity = capacity

    def capacity(self) -> Json | None:
        """Capacity of the engine that led last, ``estimates.workload.Slots``; None where none ever has."""
        with self.database.read() as session:
            return session.get_one(EngineRecord, ENGINE_ROW).capacity

    def gpus(self) -> Json | None:
        """GPU report of the leading engine; None where it has none, or not yet."""
        with self.database.read() as session:
            return session.get_one(EngineRecord, ENGINE_ROW).gpus
