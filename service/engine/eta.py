"""Expected ends of live jobs and runs, kept in their rows while the engine leads.

Looked at every two seconds, and written where they have moved by more than a part of what is left: a row that changes
makes every client that polls it read it anew. Beyond ``JOBS_MAX`` jobs, or ``RUNS_MAX`` runs of them, nothing is
expected of a job. No estimate is worth the engine: what fails here is logged, and the engine goes on.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from service.db.database import DatabaseDiskError
from service.db.models import Json, utc_now
from service.db.queries.eta_queries import EtaQueries, LiveJob, LiveRun
from service.db.states import State
from service.db.transitions import DAMAGED
from service.engine.job_facts import JobFacts
from service.errors import LeaseLost
from service.estimates.forecast import ExpectedEnd, JobNow, RunNow, forecast
from service.estimates.history import read_measured
from service.estimates.measured import MeasuredTimes
from service.estimates.workload import Slots, Workload, rows_of, workload_of
from store import Catalog
from workers.config.job import Plan

JOBS_MAX = 64
RUNS_MAX = 2000
_EVERY_S = 2.0
# Looking takes at most this part of the engine's time.
_SHARE = 0.05
# Of a look on workloads, and at least one: each run that ends makes those of all jobs stale, and the engine waits.
_WORKLOADS_S = 0.1
# An expected end that has moved by less stays as it is stored.
_MOVED_S, _MOVED_SHARE = 1.0, 0.03
log = structlog.get_logger("retort.engine")


class _Epochs:
    """Beginning and ends of the epochs of the newest attempt of a run."""

    def __init__(self, attempt: int, began_at: datetime) -> None:
        self.attempt, self.began_at = attempt, began_at
        self.ends: list[tuple[int, datetime]] = []


class EtaKeeper:
    """Keeps the expected ends of live jobs and runs.

    Args:
        queries: for the holder of the lease.
        catalog: of the caches.
    """

    def __init__(self, queries: EtaQueries, catalog: Catalog) -> None:
        self._queries, self._catalog = queries, catalog
        self._next_s = 0.0
        self._facts: dict[str, JobFacts | None] = {}
        self._epochs: dict[str, _Epochs] = {}
        self._seen = -1
        self._measured, self._ended = MeasuredTimes(), -1
        # Rows that were not looked at may have an end, as after a look at others.
        self._is_cut = True
        self._spent_s = 0.0
        # What was logged of each job, or of a whole look: not again at the next.
        self._told: dict[str, str] = {}

    def look(self, slots: Slots) -> None:
        """Look at all live jobs, if it is time, and store what has moved.

        Raises:
            LeaseLost: another engine leads.
            DatabaseDiskError: the disk of the database fails.
        """
        began_s = time.monotonic()
        if began_s < self._next_s:
            return
        before, self._told = self._told, {}
        try:
            self._look(slots, before)
        except (LeaseLost, DatabaseDiskError):
            raise
        except Exception as error:
            self._tell("", error, before)
        now_s = time.monotonic()
        self._next_s = now_s + max(_EVERY_S, (now_s - began_s) / _SHARE)

    def _look(self, slots: Slots, told: Mapping[str, str]) -> None:
        jobs = self._queries.live_jobs(JOBS_MAX)
        if not jobs:
            self._facts, self._epochs = {}, {}
            return
        runs = self._queries.live_runs([job.id for job in jobs], RUNS_MAX)
        is_cut = len(jobs) == JOBS_MAX or len(runs) == RUNS_MAX
        if len(runs) == RUNS_MAX:
            # Of the last job some may be missing, and its end would be that of the others.
            runs = [run for run in runs if run.job_id != runs[-1].job_id]
        self._read_epochs(runs)
        self._read_measured(slots)
        counts = Counter[str]()
        for run in runs:
            counts[run.job_id] = max(counts[run.job_id], run.index + 1)
        self._facts = {job.id: self._facts_of(job, counts[job.id]) for job in jobs}
        now = utc_now()
        self._spent_s = 0.0
        shown = self._jobs_now(jobs, runs, slots, told)
        expected = forecast(shown, slots, now, failed=lambda id, error: self._tell(id, error, told))
        of_jobs = {job.id: job.eta for job in jobs}
        of_runs = {run.id: run.eta for run in runs}
        changed = _moved(of_jobs, expected, now), _moved(of_runs, expected, now)
        if is_cut or self._is_cut:
            for found, ids in zip(changed, self._queries.with_eta_beside(of_jobs, of_runs), strict=True):
                found |= dict.fromkeys(ids)
        self._queries.record_etas(*changed)
        self._is_cut = is_cut

    def _jobs_now(
        self, jobs: Sequence[LiveJob], runs: Sequence[LiveRun], slots: Slots, told: Mapping[str, str]
    ) -> list[JobNow]:
        """Jobs that have runs to do, as they stand; one of which something cannot be read is left out."""
        of_job: defaultdict[str, list[LiveRun]] = defaultdict(list)
        for run in runs:
            of_job[run.job_id].append(run)
        preparing = [job.id for job in jobs if job.state is State.RUNNING and job.stage != "training"]
        began_at = self._queries.began_at(preparing)
        shown, coming = list[JobNow](), set[str]()
        for job in jobs:
            facts = self._facts[job.id]
            if facts is None or not of_job[job.id]:
                continue
            try:
                known = self._job_now(job, facts, of_job[job.id], slots, coming=coming)
                shown.append(replace(known, began_at=began_at.get(job.id)))
            except (LeaseLost, DatabaseDiskError):
                raise
            except Exception as error:
                self._tell(job.id, error, told)
            coming.add(facts.identity)
        return shown

    def _tell(self, job_id: str, error: Exception, told: Mapping[str, str]) -> None:
        """Log why there are no ends, of one job or of all, unless the last look has."""
        self._told[job_id] = f"{type(error).__name__}: {error}"
        if told.get(job_id) != self._told[job_id]:
            log.error("expected ends cannot be computed", job_id=job_id or None, exc_info=error)

    def _facts_of(self, job: LiveJob, run_count: int) -> JobFacts | None:
        """Facts about a job, read again once runs were added to it."""
        known = self._facts.get(job.id)
        is_known = job.id in self._facts and (known is None or run_count <= known.run_count)
        return known if is_known else self._read(job)

    def _read(self, job: LiveJob) -> JobFacts | None:
        try:
            found = self._queries.plan_and_teacher(job.id)
            return None if found is None else JobFacts(Plan.model_validate(found[0]), *found)
        except (*DAMAGED, LookupError, TypeError, AttributeError):
            # Damaged, or stored by another version: whoever begins it says so.
            return None

    def _read_measured(self, slots: Slots) -> None:
        """Read measured times again, if another run has ended since."""
        ended = self._queries.ended_count()
        if ended == self._ended:
            return
        self._measured, self._ended = read_measured(self._queries.database), ended
        for facts in self._facts.values():
            if facts is not None:
                facts.is_stale = True

    def _read_epochs(self, runs: Sequence[LiveRun]) -> None:
        """Read when attempts began and epochs ended, since the last look or, the first time, from the beginning."""
        running = [run.id for run in runs if run.state is State.RUNNING]
        newest = self._queries.last_event()
        if self._seen < 0:
            events = self._queries.progress_events(0, running)
        else:
            events = self._queries.progress_events(self._seen)
        # Events of other types are not read again. Of those that have come since ``newest`` only these were read.
        self._seen = max(newest, *(event.seq for event in events), self._seen)
        for event in events:
            known = self._epochs.get(event.run_id)
            if event.type == "state":
                if event.data.get("state") == State.RUNNING:
                    self._epochs[event.run_id] = _Epochs(event.attempt, event.at)
            elif known is not None and known.attempt == event.attempt and isinstance(event.data.get("epoch"), int):
                known.ends.append((event.data["epoch"], event.at))
        # One that has begun since its row was read is among them.
        self._epochs = {run.id: self._epochs[run.id] for run in runs if run.id in self._epochs}

    def _job_now(
        self, job: LiveJob, facts: JobFacts, runs: Sequence[LiveRun], slots: Slots, *, coming: set[str]
    ) -> JobNow:
        """A job as it stands; without times where nobody knows yet how many pictures it has."""
        if facts.is_stale and job.samples is not None and self._spent_s <= _WORKLOADS_S:
            began_s = time.monotonic()
            rows = rows_of(facts.plan, job.samples)
            facts.workload = workload_of(facts.plan, rows, self._measured, slots, batches=facts.batches)
            facts.is_stale = False
            self._spent_s += time.monotonic() - began_s
        if job.samples is not None and job.stage != "training":
            self._count_missing(job, facts, rows_of(facts.plan, job.samples).cached)
        inference = facts.inference_left(job, self._measured, utc_now(), is_coming=facts.identity in coming)
        return JobNow(
            id=job.id,
            plan=facts.plan,
            priority=job.priority,
            key_id=job.key_id,
            parallel_runs=job.parallel_runs,
            runs=[self._run_now(run, facts.plan.epochs_before) for run in runs],
            stage=job.stage,
            inference=job.inference,
            workload=facts.workload or Workload(facts.plan.training.epochs, {}, None, ()),
            inference_rate=inference.rate,
            batches=facts.batches,
            rows_to_infer=None if job.samples is None else inference.rows,
            later_s=inference.later_s,
        )

    def _count_missing(self, job: LiveJob, facts: JobFacts, rows: int) -> None:
        """Count the rows that each teacher still has to infer, unless its caches are those of the last time."""
        known = [*(job.caches or {}).values()]
        if len(facts.teachers) > 1 and job.stage == "inference":
            # The column has the key of the cache that is at work, and of others the events alone.
            ready = self._queries.ready_caches(job.id)
            known += ready
            facts.ready_at = max(ready.values(), default=None)
        facts.count_missing(rows, known, stage=job.stage, measured=self._measured, catalog=self._catalog)

    def _run_now(self, run: LiveRun, before: int) -> RunNow:
        epochs = self._epochs.get(run.id)
        return RunNow(
            id=run.id,
            index=run.index,
            state=run.state,
            process=run.actor,
            epoch=max(run.epoch, before),
            began_at=None if epochs is None else epochs.began_at,
            # Those of the run that it extends are told all at once, when it begins.
            epoch_ends=[] if epochs is None else [end for end in epochs.ends if end[0] >= before],
            last_epoch_s=(run.metrics or {}).get("seconds"),
        )


def _moved(
    stored: Mapping[str, Json | None], expected: Mapping[str, ExpectedEnd], now: datetime
) -> dict[str, Json | None]:
    """Expected ends that are to be stored anew, by id."""
    found: dict[str, Json | None] = {}
    for id, known in stored.items():
        eta = expected.get(id)
        if eta is None:
            if known is not None:
                found[id] = None
            continue
        left_s = max(0.0, (eta.expected_at - now).total_seconds())
        if known is None or known["based_on"] != eta.based_on:
            found[id] = eta.json()
            continue
        moved_s = abs((eta.expected_at - datetime.fromisoformat(known["expected_at"])).total_seconds())
        if moved_s > max(_MOVED_S, _MOVED_SHARE * left_s):
            found[id] = eta.json()
    return found
