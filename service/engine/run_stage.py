"""Training stage of a job: what the processes of its runs emit is stored, and their ends are judged.

``run_start`` starts them.

How a piece of work ends decides what comes next: what raised has *failed* and is not tried again (but if the disk is
full, read-only or fails it is *set aside*, see ``engine.disk``, and nothing new is begun); what vanished is *lost* and
starts again from its checkpoint, at most ``LOST_ATTEMPTS_MAX`` times without a finished epoch in between, and later
each time (``backoff``); what vanished because others have used up the memory, or with Ray, is not counted; what was
requested to put its work down has done so, and is paused, or queued if nobody wants it paused. Two failures may be the
machine's: a GPU that does not work, and one whose memory was too small for all who shared it. Either is tried once
more, in a fresh process, the second one alone on its GPU; neither on the CPU instead.

On a GPU a run ends with its last checkpoint where there are cores for another process, which makes the artifacts of it:
the GPU need not wait for them. That process is part of the same attempt; where it is lost, the next attempt finds the
run trained.
"""

import structlog

from service.db.models import Json
from service.db.states import State
from service.engine.active_jobs import GONE, LOST_ATTEMPTS_MAX, PUT_DOWN, ActiveJob, Work
from service.engine.adoption import find_export
from service.engine.attempt_files import list_artifacts
from service.engine.context import EngineContext
from service.engine.endings import Endings
from service.engine.failures import can_have_more_memory, error_of_work, is_worth_another_device
from service.engine.progress import run_progress
from workers.cluster.outcomes import TaskOutcome
from workers.cluster.ray_cluster import export_name
from workers.config.task import TrainingTask
from workers.disk_errors import disk_error
from workers.texts import without_folders

log = structlog.get_logger("retort.engine")


def is_trained(outcome: TaskOutcome) -> bool:
    """Whether a run has ended with its last checkpoint, and its artifacts are to be made yet."""
    return outcome.kind == "done" and "trained" in (outcome.value or {})


class RunStage:
    """Follows the runs of jobs from their start to their end.

    Args:
        context: of the engine.
        endings: sweeps what an ended run has left.
    """

    def __init__(self, context: EngineContext, endings: Endings) -> None:
        self._context, self._endings = context, endings
        self._queries, self._disk = context.queries, context.disk

    # -------------------------------------------------------------------------------------------- its way, and its end

    def poll(self, job: ActiveJob, run_id: str, work: Work) -> None:
        """Store what a run's process has emitted since the last look, and what follows from its end."""
        events, outcome = work.task.poll()
        outcome = self._context.shown(outcome)
        if events:
            events = without_folders(events, self._context.folder_names)
            progress = run_progress(events)
            if "epoch" in progress and job.backoffs.pop(run_id, None) is not None:
                progress["backoff"] = None
            self._queries.record_events(job.id, run_id, work.attempt, events, progress=progress)
            work.task.acknowledge(events)
            if "epoch" in progress:
                work.is_trained |= progress["epoch"] >= job.spec.training.epochs
                job.without_device.discard(run_id)
                self._disk.has_got_on(run_id)
        if outcome is None:
            return
        if is_trained(outcome) and work.requested is None:
            self._export(job, run_id, work, outcome)
            return
        if outcome.kind == "vanished" and self._has_export(job, run_id, work):
            return
        log.info("run ended", kind=outcome.kind, message=outcome.message)
        self._store_end(job, run_id, work, outcome)
        # Last, because until then a successor would find its outcome there.
        work.task.close()
        del job.runs[run_id]
        self._endings.sweep(self._queries.run(run_id))

    def _store_end(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        """Move a run whose process has ended to the state that follows from how it has."""
        match outcome.kind:
            case "done" if is_trained(outcome):
                # It was requested to put its work down, and there is some left.
                self._queries.move_on(run_id, work.attempt, PUT_DOWN)
            case "done":
                self._succeed(job, run_id, work, outcome)
            case "failed" | "vanished" if (reason := self._disk.reason(outcome)) is not None:
                self._set_aside(run_id, work, reason)
            case "failed" if is_worth_another_device(job, run_id, outcome, self._context.gpus):
                self._queries.move_on(run_id, work.attempt, GONE)
            case "failed" if outcome.error_type == "OutOfMemoryError" and can_have_more_memory(work):
                log.warning("out of memory: trying once more with a GPU for itself", reason=outcome.message)
                job.alone.add(run_id)
                job.whole.add(run_id)
                self._queries.move_on(run_id, work.attempt, GONE, needs_whole_gpu=True)
            case "failed":
                error = error_of_work(job, run_id, outcome)
                self._queries.move_run(run_id, work.attempt, State.FAILED, error=error)
            case "stopped":
                self._queries.move_run(run_id, work.attempt, State.CANCELLED)
            case "paused":
                self._queries.move_on(run_id, work.attempt, PUT_DOWN)
            case "vanished" if work.requested is not None:
                # It had not begun when it was asked, or did not listen: that is no fault of the run's.
                self._queries.move_on(run_id, work.attempt, PUT_DOWN)
            case "vanished":
                self._lose(job, run_id, work, outcome)

    def _succeed(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        """Store the result of a run, and list the artifacts that it has left."""
        attempt = self._context.folders.jobs / job.id / run_id / f"a{work.attempt}"
        try:
            artifacts = list_artifacts(attempt, self._context.folders.data_dir)
        except OSError as error:
            message = f"the run's artifacts cannot be listed: {error}"
            if (code := disk_error(error)) is not None:
                self._set_aside(run_id, work, self._disk.reason_of(code, message))
                return
            why = {"type": type(error).__name__, "message": message}
            self._queries.move_run(run_id, work.attempt, State.FAILED, error=why)
            return
        self._queries.record_result(run_id, work.attempt, artifacts, outcome.value or {})

    def _set_aside(self, run_id: str, work: Work, reason: Json) -> None:
        """Set a run aside that has ended because of the disk: it is no failure and no loss."""
        self._disk.count(run_id)
        state = self._queries.set_run_aside(run_id, work.attempt, reason)
        log.warning("run set aside", state=state, reason=reason["message"])

    def _lose(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        """Count a loss of a run's process; too many in a row are a failure."""
        if not outcome.is_node_fault:
            # Whatever ended the process, the runs that were trained in it shall not end each other again. Where others
            # have the memory, several processes in the place of one would only take more.
            job.alone.add(run_id)
        backoff = job.lost(run_id, outcome.message or "", is_node_fault=outcome.is_node_fault)
        if backoff.faults > LOST_ATTEMPTS_MAX and job.states.get(run_id) is State.RUNNING:
            message = f"the run's process vanished {backoff.lost_attempts} times, last: {outcome.message}"
            error = {"type": outcome.error_type, "message": message}
            self._queries.move_run(run_id, work.attempt, State.FAILED, error=error)
        else:
            self._queries.move_on(run_id, work.attempt, GONE, backoff=backoff)
            if not backoff.is_over:
                # As it is stored with the move: it is taken away when the run starts, or waits for something else.
                job.waits_for = {**job.waits_for, run_id: backoff.waits_for}

    # ------------------------------------------------------------------------------------------------- its artifacts

    def _export(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        """Have the artifacts made of a trained run, and give back its share of the GPU.

        Where as many are being made as there are cores, its process keeps what it has until the next look.
        """
        context, jobs = self._context, self._context.jobs.values()
        under_way = sum(other.task.actor_group.exports for each in jobs for other in each.runs.values())
        if under_way >= context.capacity.cpus:
            return
        context.check_lease()
        run = self._queries.run(run_id)
        trained = TrainingTask.model_validate_json((outcome.value or {})["order"])
        changes = {"stage": "export", "threads": 1, "has_gpu_share": False, "told_epoch": run.epoch}
        task = context.cluster.export(
            export_name(run.actor or "", run.slot or 0),
            trained.model_copy(update=changes),
            self._queries.next_event(job.id, run_id, work.attempt),
        )
        job.runs[run_id] = Work(task, work.attempt, is_trained=True)
        log.info("run trained, its artifacts are made next")
        # Last, because until then a successor would find it trained there.
        work.task.close()

    def _has_export(self, job: ActiveJob, run_id: str, work: Work) -> bool:
        """Whether another process makes the artifacts of a run whose own is gone: an earlier engine had begun that."""
        if work.task.actor_group.exports:
            return False
        acknowledged = self._queries.next_event(job.id, run_id, work.attempt)
        task = find_export(self._context, self._queries.run(run_id), acknowledged)
        if task is None:
            return False
        job.runs[run_id] = Work(task, work.attempt, is_trained=True)
        return True
