"""Endings of jobs: the state that is stored, what is released, and the files that are swept away."""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import structlog

from service.db.models import Json, RunRecord
from service.db.states import LIVE, WORKING, State
from service.engine.active_jobs import ActiveJob
from service.engine.attempt_files import sweep_attempts, take_checkpoint
from service.engine.context import EngineContext
from service.errors import NotFound
from workers.disk_errors import passing_over_disk_errors
from workers.teacher.forwards import forwards_needed

log = structlog.get_logger("retort.engine")


class Endings:
    """Ends jobs.

    Args:
        context: of the engine.
    """

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._queries = context.queries

    def end(self, job: ActiveJob) -> None:
        """End a job all of whose runs have ended."""
        runs = self._queries.runs(job.id)
        if job.cache_plan is not None and job.spec.training.early_stopping is not None:
            # What a live teacher would have cost is known only now.
            needed = forwards_needed(job.spec, job.cache_plan, {run.index: run.epoch for run in runs})
            self._queries.update_job(job.id, attempt=job.attempt, teacher_forwards=job.progress.forwards(needed))
        state = self._queries.end_job(job.id, job.attempt)
        if state is None:
            # Runs were added just now: it goes on.
            return
        log.info("job ended", job_id=job.id, state=state, runs=dict(Counter(run.state for run in runs)))
        self.forget(job.id)

    def fail(self, job_id: str, attempt: int, error: Json) -> None:
        """End a job before its runs could, which it takes along."""
        self._queries.move_job(job_id, State.FAILED, error=error, attempt=attempt)
        log.warning("job failed", job_id=job_id, error=error)
        self.forget(job_id)

    def cancel(self, job: ActiveJob) -> None:
        """End a job that a client has cancelled, or deleted."""
        self._queries.move_job(job.id, State.CANCELLED, attempt=job.attempt)
        log.info("job cancelled", job_id=job.id)
        self.forget(job.id)

    def forget(self, job_id: str) -> None:
        """Work no more on a job that has ended or is paused.

        Its caches are released if it has ended: the next job may need their place.
        """
        job = self._context.jobs.pop(job_id, None)
        if job is not None:
            # A job that has failed as a whole has left some.
            for work in job.runs.values():
                work.task.close()
        keeps = cache(partial(self._keeps_checkpoint, job_id))
        for run in self._queries.runs(job_id):
            self._sweep(run, keeps)
        if self._queries.states(job_id)[0] not in LIVE:
            self._context.leases.release(job_id)
            # Their sum is stored.
            shutil.rmtree(self._context.forwards_in(job_id), ignore_errors=True)

    def sweep(self, run: RunRecord) -> None:
        """Remove what no later attempt, and nobody who retries the run, has a use for.

        What a disk does not let go of now is removed with what the run leaves at its next end.
        """
        self._sweep(run, partial(self._keeps_checkpoint, run.job_id))

    def _sweep(self, run: RunRecord, keeps: Callable[[], bool]) -> None:
        # A client may delete the run just now.
        with passing_over_disk_errors(), suppress(FileNotFoundError):
            self._remove_rests(run, keeps)

    def _keeps_checkpoint(self, job_id: str) -> bool:
        """Whether the job's runs keep their last checkpoints. Raises NotFound."""
        return bool(self._queries.job(job_id).plan["training"].get("keep_checkpoint", False))

    def _remove_rests(self, run: RunRecord, keeps_checkpoint: Callable[[], bool]) -> None:
        if run.state in WORKING:
            return
        folder, has_succeeded = self._context.run_folder(run), run.state is State.SUCCEEDED
        with suppress(NotFound):
            # Of what has ended; it may be deleted meanwhile.
            keeps = has_succeeded and keeps_checkpoint()
            kept = folder / f"a{run.attempt}"
            sweep_attempts(folder, kept if has_succeeded else None, checkpoints=has_succeeded and not keeps)
            while has_succeeded and run.retry_of is not None:
                run = self._queries.run(run.retry_of)
                retried = self._context.run_folder(run)
                if keeps:
                    take_checkpoint(folder, kept, retried)
                sweep_attempts(retried, None, checkpoints=True)
