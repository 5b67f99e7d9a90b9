"""Outbox of webhooks: a row for each job that asked for one, which is due from the transaction on that ends the job.

A row is claimed for a while (``LEASE_S``) by one process, which counts its attempt; whoever was killed meanwhile leaves
a row that is due again. What became of an attempt lands only while no newer one was claimed. So a message is delivered
at least once, by one process at a time, and always under the same id, by which receivers know what came twice.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, cast
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, CursorResult, ForeignKey, Index, Select, String, Text, and_, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.db.database import Database, now_of
from service.db.ids import new_id
from service.db.models import Base, JobRecord, Json, RunRecord
from service.db.states import TERMINAL
from workers.backoff import Schedule

RETRIES = Schedule(base_s=5.0, factor=4.0, cap_s=6 * 3600.0, jitter=0.25)
"""Tries after the first: about 5, 20, 80 s, 5, 21, 85 minutes later, then every 6 hours."""
ATTEMPTS_MAX = 13  # over 28 hours at least, 37 as a rule
ATTEMPT_S = 20.0
# Longer than an attempt and what is written after it.
LEASE_S = 60.0
# Of one host at once: one that does not answer keeps no other waiting.
HOST_MAX = 4
CLAIMS_MAX = 64
_GONE = 410


class DeliveryStatus(StrEnum):
    """Status of a delivery: its job has not ended, it is due now or later, and its two ends."""

    WAITING = "waiting"
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class WebhookDeliveryRecord(Base):
    """The webhook of a job, and how far its delivery is: see ``DeliveryStatus``.

    ``host`` is scheme, host and port of ``url``. ``body`` is written when the job ends. ``next_at`` is when it is tried
    next, and of a claimed one until when it is; NULL where it is not.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "status", "next_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    url: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(String(300))
    status: Mapped[str] = mapped_column(String(16), default=DeliveryStatus.WAITING)
    body: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=0)
    last_attempt_at: Mapped[datetime | None] = mapped_column()
    last_status_code: Mapped[int | None] = mapped_column()
    last_error: Mapped[str | None] = mapped_column(Text)
    next_at: Mapped[datetime | None] = mapped_column()


@dataclass(frozen=True)
class Claim:
    """A message that is due, for one attempt of this process.

    Attributes:
        id: of the message, the same in every attempt.
        attempt: counted from 1; fences what is written of it.
    """

    id: str
    job_id: str
    attempt: int
    url: str
    host: str
    body: str


def register(session: Session, job_id: str, url: str | None) -> None:
    """Add the webhook of a new job; None is none."""
    if url is not None:
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc}"
        session.add(WebhookDeliveryRecord(id=new_id("msg"), job_id=job_id, url=url, host=host))


def copy_to_retry(session: Session, job_id: str, retry_id: str) -> None:
    """Give a retry the webhook of the job that it tries again."""
    for row in session.scalars(_of(job_id)):
        register(session, retry_id, row.url)


def renew(session: Session, job_id: str) -> None:
    """Have the next end of a job that has ended told as well: as another message, in place of the last one.

    That is dropped if it was not delivered yet.
    """
    for row in list(session.scalars(_of(job_id))):
        session.delete(row)
        session.flush()
        register(session, job_id, row.url)


def make_due(session: Session, job: JobRecord) -> None:
    """Write the message of a job that has ended; called in the transaction that ends it, after its last run's end."""
    if job.state not in TERMINAL:
        return
    for row in session.scalars(_of(job.id)):
        # By the clock that what is due is claimed by; the job's end is of this process's, which may be ahead.
        row.status, row.body, row.next_at = DeliveryStatus.PENDING, _message(session, job), now_of(session)


def _of(job_id: str) -> Select[WebhookDeliveryRecord]:
    return select(WebhookDeliveryRecord).where(WebhookDeliveryRecord.job_id == job_id)


def _message(session: Session, job: JobRecord) -> str:
    """JSON of a message, in ASCII; it is stored, and so the same in every attempt."""
    states = select(RunRecord.state, func.count()).where(RunRecord.job_id == job.id).group_by(RunRecord.state)
    counts = {row[0]: row[1] for row in session.execute(states)}
    assert job.finished_at is not None
    at = job.finished_at.isoformat().replace("+00:00", "Z")
    data: Json = {name: getattr(job, name) for name in ("id", "name", "state", "error")}
    data["runs"] = {state.value: counts.get(state, 0) for state in sorted(TERMINAL)}
    data["finished_at"] = at
    data["links"] = {"job": f"/v1/jobs/{job.id}", "report": f"/v1/jobs/{job.id}/report"}
    return json.dumps({"type": f"job.{job.state}", "timestamp": at, "data": data}, separators=(",", ":"))


class WebhookOutbox:
    """Deliveries of all jobs.

    Args:
        database: migrated to head.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, in_flight: Mapping[str, int]) -> list[Claim]:
        """Claim what is due, the longest due first; at most ``HOST_MAX`` of a host.

        Args:
            in_flight: attempts of this process that have not ended, by host.
        """
        hosts = Counter(in_flight)
        busy = [host for host, count in hosts.items() if count >= HOST_MAX]
        with self.database.read() as session:
            # Asked all the time: only an answer is worth the lock.
            if session.scalar(select(WebhookDeliveryRecord.id).where(self._is_due(session, busy)).limit(1)) is None:
                return []
        claims = []
        with self.database.write() as session:
            now = self.database.now(session)
            due = select(WebhookDeliveryRecord).where(self._is_due(session, busy))
            for row in session.scalars(due.order_by(WebhookDeliveryRecord.next_at).limit(CLAIMS_MAX)):
                if hosts[row.host] >= HOST_MAX:
                    continue
                hosts[row.host] += 1
                row.attempts, row.last_attempt_at = row.attempts + 1, now
                row.next_at = now + timedelta(seconds=LEASE_S)
                known = {"id": row.id, "job_id": row.job_id, "url": row.url, "host": row.host}
                claims.append(Claim(**known, attempt=row.attempts, body=row.body or ""))
        return claims

    def _is_due(self, session: Session, busy: list[str]) -> ColumnElement[bool]:
        now = self.database.now(session)
        row = WebhookDeliveryRecord
        return and_(row.status == DeliveryStatus.PENDING, row.next_at <= now, row.host.not_in(busy))

    def record(self, claim: Claim, status_code: int | None, error: str | None) -> DeliveryStatus | None:
        """Record what became of an attempt: delivered, given up, or due again later.

        Args:
            status_code: of the answer; None without one.
            error: why it was not delivered.

        Returns:
            The status; None where it did not land: a newer attempt was claimed, or the job was deleted.
        """
        status = _status_after(claim.attempt, status_code)
        with self.database.write() as session:
            now = self.database.now(session)
            later = now + timedelta(seconds=RETRIES.delay_s(claim.attempt))
            values = {
                "status": status,
                "last_status_code": status_code,
                "last_error": None if status is DeliveryStatus.DELIVERED else error,
                "next_at": later if status is DeliveryStatus.PENDING else None,
            }
            row = WebhookDeliveryRecord
            is_newest = (row.id == claim.id) & (row.attempts == claim.attempt) & (row.status == DeliveryStatus.PENDING)
            result = session.execute(update(row).where(is_newest).values(values))
            return status if cast("CursorResult[Any]", result).rowcount == 1 else None

    def list(
        self, status: DeliveryStatus | None, after: str | None, limit: int
    ) -> tuple[Sequence[WebhookDeliveryRecord], bool]:
        """Deliveries of a status, or of any, before the id ``after``, newest first; and whether there are more."""
        query = select(WebhookDeliveryRecord).order_by(WebhookDeliveryRecord.id.desc())
        if status is not None:
            query = query.where(WebhookDeliveryRecord.status == status)
        if after is not None:
            query = query.where(WebhookDeliveryRecord.id < after)
        with self.database.read() as session:
            rows = session.scalars(query.limit(limit + 1)).all()
        return rows[:limit], len(rows) > limit

    def of_job(self, job_id: str) -> WebhookDeliveryRecord | None:
        """The delivery of a job; None if it asked for none."""
        with self.database.read() as session:
            return session.scalars(_of(job_id)).one_or_none()


def _status_after(attempt: int, status_code: int | None) -> DeliveryStatus:
    if status_code is not None and 200 <= status_code < 300:
        return DeliveryStatus.DELIVERED
    # Gone: the receiver wants no more.
    is_last = status_code == _GONE or attempt >= ATTEMPTS_MAX
    return DeliveryStatus.GIVEN_UP if is_last else DeliveryStatus.PENDING
