"""Retention: limits by age, number and bytes of ended jobs, decoded datasets and events, and their collection.

Nothing goes unless a limit asks for it. Of jobs the one that has ended first goes first; what is pinned, has not ended,
or is needed by a live retry stays, and counts. The engine collects now and then what the settings say
(``housekeeping``), ``POST /v1/gc`` what a caller asks for. A dry run chooses in the same way and changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from service.db.deletions.deletion import Deleter, decoded_in_use
from service.db.deletions.first_weights import first_weights_in_use
from service.db.deletions.usage import size_of
from service.db.models import EventRecord, JobRecord, RunRecord, utc_now
from service.db.queries.packed_events import compact
from service.db.states import LIVE, TERMINAL, State
from service.errors import Conflict, NotFound
from service.settings import Settings
from workers.data.preparation.decoded import IDLE, Copy, copies, excess, remove, sweep

DAY_S = 86400.0
# Streams have sent the end of a job by then.
_QUIET = timedelta(minutes=1)
log = structlog.get_logger("retort.retention")


@dataclass(frozen=True)
class Limits:
    """Limits of what may stay; None is no limit.

    Attributes:
        jobs_max_age_s: seconds since a job has ended.
        jobs_max_count: of jobs that have ended.
        jobs_max_bytes: of the files of all jobs.
        decoded_max_bytes: of all decoded datasets.
        events_max_age_s: seconds since the end of a job, until its events are compacted.
    """

    jobs_max_age_s: float | None = None
    jobs_max_count: int | None = None
    jobs_max_bytes: int | None = None
    decoded_max_bytes: int | None = None
    events_max_age_s: float | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Limits of the settings, in which 0 is no limit."""
        return cls(
            jobs_max_age_s=settings.jobs_max_age_days * DAY_S or None,
            jobs_max_count=settings.jobs_max_count or None,
            jobs_max_bytes=settings.jobs_max_bytes or None,
            decoded_max_bytes=settings.decoded_max_bytes or None,
            events_max_age_s=settings.events_max_age_days * DAY_S or None,
        )


@dataclass(frozen=True)
class EndedJob:
    """A job that goes, and why.

    Attributes:
        size_bytes: of its files.
    """

    id: str
    name: str
    state: State
    ended_at: datetime
    size_bytes: int
    reason: str


@dataclass
class Collected:
    """Result of a collection: what it has removed, or what a dry run would remove.

    Attributes:
        compacted_jobs, compacted_events: jobs whose events were compacted, and events that were in rows of their own.
        rests_bytes: of files that deletions before it had left.
    """

    jobs: list[EndedJob] = field(default_factory=list)
    decoded: list[Copy] = field(default_factory=list)
    compacted_jobs: int = 0
    compacted_events: int = 0
    rests_bytes: int = 0

    @property
    def files_bytes(self) -> int:
        """Bytes of the file system that are free again; the database's are not among them."""
        of_jobs = sum(job.size_bytes for job in self.jobs)
        return of_jobs + sum(copy.size_bytes for copy in self.decoded) + self.rests_bytes


@dataclass(frozen=True)
class _Candidate:
    """A job that has ended."""

    id: str
    name: str
    state: State
    ended_at: datetime
    is_kept: bool


class Retention:
    """Collects in any process of the service.

    Args:
        settings: where the files are.
        deletion: deletes.
    """

    def __init__(self, settings: Settings, deletion: Deleter) -> None:
        self._settings = settings
        self._deletion = deletion
        self._database = deletion.database

    def collect(
        self, limits: Limits, *, dry_run: bool = False, should_stop: Callable[[], bool] = lambda: False
    ) -> Collected:
        """Delete what the limits do not let stay, and compact events.

        Args:
            should_stop: asked between two deletions; what was collected by then is collected.
        """
        now, done = utc_now(), Collected()
        if not dry_run:
            done.rests_bytes = self._deletion.tombstones.sweep()
            sweep(self._settings.datasets_dir)
        for job in self._choose_jobs(limits, now):
            if should_stop():
                return done
            if dry_run or self._delete(job):
                done.jobs.append(job)
        if limits.decoded_max_bytes is not None:
            self._collect_decoded(limits.decoded_max_bytes, now, done, dry_run=dry_run)
        if limits.events_max_age_s is not None:
            before = now - max(timedelta(seconds=limits.events_max_age_s), _QUIET)
            self._compact(before, done, dry_run, should_stop)
        if (done.jobs or done.compacted_events) and not dry_run:
            self._database.release_space()
        return done

    # --------------------------------------------------------------------------------------------------------- jobs

    def _choose_jobs(self, limits: Limits, now: datetime) -> list[EndedJob]:
        """The jobs that go, the one that has ended first first."""
        if (limits.jobs_max_age_s, limits.jobs_max_count, limits.jobs_max_bytes) == (None, None, None):
            return []
        with self._database.read() as session:
            candidates = _ended_jobs(session)
            live = session.scalars(select(JobRecord.id).where(JobRecord.state.in_(LIVE))).all()
        going: dict[str, str] = {}
        if limits.jobs_max_age_s is not None:
            going |= _too_old(candidates, now - timedelta(seconds=limits.jobs_max_age_s))
        if limits.jobs_max_count is not None:
            going |= _too_many(candidates, going, limits.jobs_max_count)
        sizes = {
            job.id: self._size(job.id) for job in candidates if job.id in going or limits.jobs_max_bytes is not None
        }
        if limits.jobs_max_bytes is not None:
            total = sum(sizes.values()) + sum(map(self._size, live))
            going |= _too_large(candidates, going, sizes, total, max_bytes=limits.jobs_max_bytes)
        return [
            EndedJob(job.id, job.name, job.state, job.ended_at, size_bytes=sizes[job.id], reason=going[job.id])
            for job in candidates
            if job.id in going
        ]

    def _size(self, job_id: str) -> int:
        return size_of(self._settings.jobs_dir / job_id)

    def _delete(self, job: EndedJob) -> bool:
        """Whether it was deleted: it may have been pinned or retried since it was chosen."""
        try:
            self._deletion.delete_job(job.id)
        except (Conflict, NotFound) as error:
            log.info("job stays", job_id=job.id, reason=str(error))
            return False
        log.info("job deleted", job_id=job.id, reason=job.reason, size_bytes=job.size_bytes)
        return True

    # ---------------------------------------------------------------------------------------------------- decoded data

    def _collect_decoded(self, max_bytes: int, now: datetime, done: Collected, *, dry_run: bool) -> None:
        work_dir = self._settings.datasets_dir
        found = copies(work_dir)
        with self._database.read() as session:
            in_use = decoded_in_use(session)
        for copy in excess(found, max_bytes, in_use, now):
            if dry_run or remove(work_dir, copy.name, now - IDLE):
                log.info("decoded dataset goes", name=copy.name, size_bytes=copy.size_bytes, dry_run=dry_run)
                done.decoded.append(copy)

    # ---------------------------------------------------------------------------------------------------------- events

    def _compact(self, before: datetime, done: Collected, dry_run: bool, should_stop: Callable[[], bool]) -> None:
        for job_id, events in self._not_compacted(before):
            if should_stop():
                return
            if not dry_run:
                compact(self._database, job_id, should_stop)
            done.compacted_jobs += 1
            done.compacted_events += events

    def _not_compacted(self, before: datetime) -> Sequence[tuple[str, int]]:
        """Jobs that ended before and have events in rows of their own, and how many."""
        of_job = EventRecord.job_id == JobRecord.id
        count = select(func.count()).select_from(EventRecord).where(of_job).correlate(JobRecord).scalar_subquery()
        query = select(JobRecord.id, count).where(JobRecord.state.in_(TERMINAL), JobRecord.finished_at < before)
        query = query.where(exists().where(of_job).correlate(JobRecord)).order_by(JobRecord.id)
        with self._database.read() as session:
            return [(job_id, events) for job_id, events in session.execute(query)]


def _ended_jobs(session: Session) -> list[_Candidate]:
    """Every job that has ended, the one that ended first first."""
    ended_at = func.coalesce(JobRecord.finished_at, JobRecord.created_at)
    query = select(JobRecord.id, JobRecord.name, JobRecord.state, JobRecord.pinned_at, ended_at.label("ended_at"))
    rows = session.execute(query.where(JobRecord.state.in_(TERMINAL)).order_by("ended_at", JobRecord.id)).all()
    needed = _needed(session)
    return [
        _Candidate(row.id, row.name, row.state, row.ended_at, is_kept=row.pinned_at is not None or row.id in needed)
        for row in rows
    ]


def _needed(session: Session) -> set[str]:
    """Jobs whose checkpoints a live retry may go on from, or with whose weights a live job begins."""
    first = select(RunRecord.job_id).where(RunRecord.id.in_(first_weights_in_use(session)))
    found = set(session.scalars(first))
    live = select(RunRecord.retry_of).where(RunRecord.state.in_(LIVE), RunRecord.retry_of.is_not(None))
    wanted = set(session.scalars(live))
    while wanted:
        rows = session.execute(select(RunRecord.job_id, RunRecord.retry_of).where(RunRecord.id.in_(wanted))).all()
        found |= {row.job_id for row in rows}
        wanted = {row.retry_of for row in rows} - {None}
    return found


def _too_old(candidates: Sequence[_Candidate], before: datetime) -> dict[str, str]:
    return {
        job.id: f"ended before {before:%Y-%m-%d %H:%M:%S} UTC"
        for job in candidates
        if job.ended_at < before and not job.is_kept
    }


def _too_many(candidates: Sequence[_Candidate], going: dict[str, str], count: int) -> dict[str, str]:
    left = [job for job in candidates if job.id not in going]
    excess = max(0, len(left) - count)
    return {job.id: f"more than {count} have ended" for job in [job for job in left if not job.is_kept][:excess]}


def _too_large(
    candidates: Sequence[_Candidate], going: dict[str, str], sizes: dict[str, int], total: int, max_bytes: int
) -> dict[str, str]:
    total -= sum(sizes[job_id] for job_id in going)
    chosen = {}
    for job in candidates:
        if total <= max_bytes:
            break
        if job.id not in going and not job.is_kept and sizes[job.id]:
            chosen[job.id] = f"the files of all jobs are more than {max_bytes:,} bytes"
            total -= sizes[job.id]
    return chosen
