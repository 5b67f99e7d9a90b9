"""Expected ends of live jobs and runs, kept in their rows while the engine leads.

Looked at every two seconds, and written where they have moved by more than a part of what is left: a row that changes
makes every client that polls it read it anew. Beyond ``JOBS_MAX`` jobs nothing is expected of a job.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from service.db.eta_queries import EtaQueries, LiveJob, LiveRun
from service.db.models import Json, utc_now
from service.db.states import State
from service.estimates.forecast import Eta, JobNow, RunNow, forecast
from service.estimates.history import read_measured
from service.estimates.measured import Measured, cache_identity, pictures_of_plan
from service.estimates.rates import WantedTeacher, inference_rate
from service.estimates.workload import Slots, Workload, batch_numbers, rows_of, workload_of
from store import CacheNotFound, Catalog
from workers.config.job import Plan

JOBS_MAX = 64
RUNS_MAX = 2000
_EVERY_S = 2.0
# Looking takes at most this part of the engine's time.
_SHARE = 0.05
# An expected end that has moved by less stays as it is stored.
_MOVED_S, _MOVED_SHARE = 1.0, 0.03
log = structlog.get_logger("retort.engine")


class _Epochs:
    """Beginning and ends of the epochs of the newest attempt of a run."""

    def __init__(self, attempt: int, began_at: datetime) -> None:
        self.attempt, self.began_at = attempt, began_at
        self.ends: list[tuple[int, datetime]] = []


class _JobFacts:
    """Facts about a job that stay while it lives, or change only when something more was measured."""

    def __init__(self, plan: Plan, document: Json, teacher: Json) -> None:
        self.plan = plan
        self.identity = cache_identity(document, teacher)
        self.teacher = WantedTeacher(
            sha256=teacher["sha256"],
            size_bytes=None,
            input_size=json.dumps(teacher["preprocessing"].get("size")),
            pictures=pictures_of_plan(document),
        )
        self.batches = batch_numbers(plan)
        self.workload: Workload | None = None
        self.rows_to_infer = 0


class EtaKeeper:
    """Keeps the expected ends of live jobs and runs.

    Args:
        queries: for the holder of the lease.
        catalog: of the caches.
    """

    def __init__(self, queries: EtaQueries, catalog: Catalog) -> None:
        self._queries, self._catalog = queries, catalog
        self._next_s = 0.0
        self._facts: dict[str, _JobFacts | None] = {}
        self._epochs: dict[str, _Epochs] = {}
        self._seen = -1
        self._measured, self._ended = Measured(), -1

    def look(self, slots: Slots) -> None:
        """Look at all live jobs, if it is time, and store what has moved.

        Raises:
            LeaseLost: another engine leads.
        """
        began_s = time.monotonic()
        if began_s < self._next_s:
            return
        jobs = self._queries.live_jobs(JOBS_MAX)
        if jobs:
            self._look(jobs, slots)
        else:
            self._facts, self._epochs = {}, {}
        now_s = time.monotonic()
        self._next_s = now_s + max(_EVERY_S, (now_s - began_s) / _SHARE)

    def _look(self, jobs: Sequence[LiveJob], slots: Slots) -> None:
        runs = self._queries.live_runs([job.id for job in jobs], RUNS_MAX)
        self._read_epochs(runs)
        self._read_measured(slots)
        self._facts = {job.id: self._facts[job.id] if job.id in self._facts else self._read(job) for job in jobs}
        of_job: defaultdict[str, list[LiveRun]] = defaultdict(list)
        # The runs of the last job may be cut off.
        for run in runs[: RUNS_MAX - 1] if len(runs) == RUNS_MAX else runs:
            of_job[run.job_id].append(run)
        now, shown, coming = utc_now(), list[JobNow](), set[str]()
        for job in jobs:
            facts = self._facts[job.id]
            if facts is None or not of_job[job.id]:
                continue
            found = self._job_now(job, facts, of_job[job.id], slots, coming=coming)
            if found is not None:
                shown.append(found)
            coming.add(facts.identity)
        try:
            expected = forecast(shown, slots, now)
        except Exception:
            # No estimate is worth the engine, which would end at every look.
            log.exception("expected ends cannot be computed")
            return
        of_jobs = {job.id: job.eta for job in jobs}
        of_runs = {run.id: run.eta for run in runs}
        self._queries.record_etas(_moved(of_jobs, expected, now), _moved(of_runs, expected, now))

    def _read(self, job: LiveJob) -> _JobFacts | None:
        found = self._queries.plan_and_teacher(job.id)
        try:
            return None if found is None else _JobFacts(Plan.model_validate(found[0]), *found)
        except (ValueError, LookupError):
            # Stored by another version, say: whoever begins it says so.
            return None

    def _read_measured(self, slots: Slots) -> None:
        """Read measured times again, if another run has ended since."""
        ended = self._queries.ended_count()
        if ended == self._ended:
            return
        self._measured, self._ended = read_measured(self._queries.database), ended
        for facts in self._facts.values():
            if facts is not None:
                facts.workload = None

    def _read_epochs(self, runs: Sequence[LiveRun]) -> None:
        """Read when attempts began and epochs ended, since the last look or, the first time, from the beginning."""
        running = [run.id for run in runs if run.state is State.RUNNING]
        if self._seen < 0:
            self._seen = self._queries.last_event()
            events = self._queries.progress_events(0, running)
        else:
            events = self._queries.progress_events(self._seen)
        for event in events:
            self._seen = max(self._seen, event.seq)
            known = self._epochs.get(event.run_id)
            if event.type == "state":
                if event.data.get("state") == State.RUNNING:
                    self._epochs[event.run_id] = _Epochs(event.attempt, event.at)
            elif known is not None and known.attempt == event.attempt:
                known.ends.append((event.data["epoch"], event.at))
        # One that has begun since its row was read is among them.
        self._epochs = {run.id: self._epochs[run.id] for run in runs if run.id in self._epochs}

    def _job_now(
        self, job: LiveJob, facts: _JobFacts, runs: Sequence[LiveRun], slots: Slots, *, coming: set[str]
    ) -> JobNow | None:
        """A job as it stands; None where nobody knows how much it is."""
        if job.samples is None:
            return None
        rows = rows_of(facts.plan, job.samples)
        if facts.workload is None:
            facts.workload = workload_of(facts.plan, rows, self._measured, slots)
            known = (job.caches or {}).values() or self._measured.keys.get(facts.identity, ())
            facts.rows_to_infer = max(0, rows.cached - sum(map(self._rows_of, known)))
        to_infer = 0 if facts.identity in coming else facts.rows_to_infer
        return JobNow(
            id=job.id,
            plan=facts.plan,
            priority=job.priority,
            key_id=job.key_id,
            parallel_runs=job.parallel_runs,
            runs=[self._run_now(run) for run in runs],
            stage=job.stage,
            started_at=job.started_at,
            inference=job.inference,
            workload=facts.workload,
            inference_rate=inference_rate(self._measured, facts.teacher, infers=bool(to_infer)),
            batches=facts.batches,
            rows_to_infer=to_infer,
        )

    def _rows_of(self, key: str) -> int:
        try:
            return self._catalog.get(key).rows_committed
        except CacheNotFound:
            return 0

    def _run_now(self, run: LiveRun) -> RunNow:
        epochs = self._epochs.get(run.id)
        return RunNow(
            id=run.id,
            index=run.index,
            state=run.state,
            process=run.actor,
            epoch=run.epoch,
            began_at=None if epochs is None else epochs.began_at,
            epoch_ends=[] if epochs is None else epochs.ends,
            last_epoch_s=(run.metrics or {}).get("seconds"),
        )


def _moved(stored: Mapping[str, Json | None], expected: Mapping[str, Eta], now: datetime) -> dict[str, Json | None]:
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
