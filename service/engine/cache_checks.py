"""Checks of a job by the process that builds its caches: of which runs, and what follows where it does not end well."""

from bisect import bisect_right
from collections.abc import Set
from itertools import accumulate

import structlog

from service.db.models import Json, RunRecord
from service.db.states import State
from service.engine.active_jobs import CACHES, LOST_ATTEMPTS_MAX, ActiveJob, Work
from service.engine.context import EngineContext
from service.engine.endings import Endings
from service.engine.failures import error_of_work, is_worth_a_whole_gpu, is_worth_another_device
from workers.backoff import LOST_ATTEMPTS_EVER_MAX
from workers.cluster.outcomes import TaskOutcome
from workers.config.job import JobSpec

log = structlog.get_logger("retort.engine")


class CacheChecks:
    """Choice of the runs that the process building a job's caches checks, and judgement of caches that it cannot build.

    Args:
        context: of the engine.
        endings: ends jobs whose caches cannot be built.
    """

    def __init__(self, context: EngineContext, endings: Endings) -> None:
        self._context, self._endings = context, endings
        self._queries, self._disk = context.queries, context.disk

    def spec_to_check(self, job: ActiveJob) -> JobSpec:
        """The job, or, once runs were added to it, those of its runs that wait; block by block if that has failed."""
        if not job.spec.added:
            job.checking = frozenset(job.states)
            return job.spec
        blocks = self._blocks_of(job, set(job.unchecked))
        runs = blocks[0] if job.checks_apart else [run for block in blocks for run in block]
        job.checking = frozenset(run.id for run in runs)
        return job.spec.of_runs({run.index for run in runs})

    def _blocks_of(self, job: ActiveJob, run_ids: Set[str]) -> list[list[RunRecord]]:
        """These runs by their block of the plan; what has begun, and so was checked by somebody, is in the first."""
        ends = list(accumulate(block.count for block in job.spec.blocks))
        blocks: dict[int, list[RunRecord]] = {}
        for run in self._queries.runs(job.id):
            if run.id in run_ids:
                blocks.setdefault(0 if run.attempt else bisect_right(ends, run.index), []).append(run)
        return [blocks[number] for number in sorted(blocks)]

    def begun(self, job: ActiveJob) -> set[str]:
        """Runs that were checked before, by an earlier engine say: they have begun."""
        return {run.id for run in self._queries.runs(job.id) if run.attempt}

    def judge(self, job: ActiveJob, work: Work, outcome: TaskOutcome) -> None:
        """Decide what comes of caches that are not complete: they are built again, set aside, or the job fails."""
        # Beside what it has emitted: batches of blocks that were under way.
        self._queries.update_job(job.id, attempt=job.attempt, teacher_forwards=job.progress.forwards())
        if work.requested is None and (reason := self._disk.reason(outcome)) is not None:
            self._set_aside(job, reason)
            return
        if outcome.kind == "failed" and is_worth_a_whole_gpu(job, outcome, work.task.actor_group.gpu_share):
            return
        if outcome.kind == "failed" and not is_worth_another_device(job, CACHES, outcome, self._context.gpus):
            self._fail(job, error_of_work(job, CACHES, outcome))
        elif outcome.kind == "vanished" and work.requested is None:
            self._count_loss(job, outcome)

    def _fail(self, job: ActiveJob, error: Json) -> None:
        """End a job whose caches cannot be completed; of one that runs were added to, the runs that wait for them."""
        if not job.spec.added:
            self._endings.fail(job.id, job.attempt, error)
            return
        refused = job.checking.intersection(job.unchecked)
        if not job.checks_apart and len(self._blocks_of(job, refused)) > 1:
            # Whose fault it is nobody knows, and what was added shall not take along what could have been trained.
            log.warning("check of several blocks of runs failed: trying them one by one", job_id=job.id, error=error)
            job.checks_apart = True
            return
        log.warning("runs failed before they could begin", job_id=job.id, error=error)
        for run in self._queries.runs(job.id):
            if run.id in refused:
                self._queries.move_run(run.id, run.attempt, State.FAILED, error=error)
        job.state, job.states = self._queries.states(job.id)

    def _set_aside(self, job: ActiveJob, reason: Json) -> None:
        """Set aside what waits for caches that cannot be built because of the disk, with the job."""
        self._disk.count(job.id)
        if self._queries.set_job_aside(job.id, job.attempt, reason):
            log.warning("job set aside", job_id=job.id, reason=reason["message"])
            self._endings.forget(job.id)
        else:
            job.state, job.states = self._queries.states(job.id)

    def _count_loss(self, job: ActiveJob, outcome: TaskOutcome) -> None:
        """Have the caches built again, a bounded number of times without a row inferred in between."""
        backoff = job.lost(CACHES, outcome.message or "", is_node_fault=outcome.is_node_fault)
        log.warning("inference vanished", job_id=job.id, losses=backoff.lost_attempts, reason=outcome.message)
        if backoff.faults > LOST_ATTEMPTS_MAX or backoff.lost_attempts > LOST_ATTEMPTS_EVER_MAX:
            error = error_of_work(job, CACHES, outcome)
            vanished = f"the process that completes the caches vanished {backoff.lost_attempts} times, last: "
            self._fail(job, {**error, "message": vanished + error["message"]})
            return
        self._queries.record_backoff(job.id, job.attempt, backoff)
