"""Adoption: jobs of an earlier engine; what it has left in training is found again by the names of its processes."""

from collections.abc import Callable, Mapping

import structlog

from service.db.models import JobRecord, RunRecord
from service.db.states import WORKING, State
from service.engine.active_jobs import GONE, ActiveJob, Work, share_of
from service.engine.context import EngineContext
from service.engine.endings import Endings
from workers.cluster.actors import Task
from workers.cluster.ray_cluster import export_name

log = structlog.get_logger("retort.engine")


def adopt_jobs(context: EngineContext, endings: Endings, begin: Callable[[JobRecord], ActiveJob | None]) -> None:
    """Take up every unfinished job, and end the processes that nobody waits for.

    Args:
        begin: makes an adopted job active; None if it has failed.

    Raises:
        LeaseLost: another engine leads.
    """
    queries = context.queries
    unfinished = queries.unfinished_jobs()
    at_work = {job.id for job in unfinished}
    # All of them before the first job makes room for itself.
    for job_id, keys in queries.caches_in_use().items():
        context.leases.take(job_id, keys, waits=job_id not in at_work)
    actor_groups: dict[str, int] = {}
    for job in unfinished:
        adopted = queries.adopt_job(job.id)
        if adopted is None:
            endings.forget(job.id)
            continue
        active = begin(adopted)
        if active is not None:
            actor_groups |= find_runs(context, endings, active)
            log.info("job adopted", job_id=job.id, attempt=adopted.attempt, runs_found=len(active.runs))
    context.check_lease()
    strays = context.cluster.end_others(actor_groups)
    if strays:
        log.info("ended processes that nobody waits for", processes=strays)


def find_runs(context: EngineContext, endings: Endings, job: ActiveJob) -> dict[str, int]:
    """Take up the runs of a job that are still being trained; those whose processes are gone are lost.

    Returns:
        Their actor groups and how many processes each has.
    """
    queries = context.queries
    actor_groups: dict[str, list[RunRecord]] = {}
    for run in queries.runs(job.id):
        if run.state in WORKING:
            actor_groups.setdefault(run.actor or "", []).append(run)
    found = {}
    for name, runs in actor_groups.items():
        acknowledged = {run.slot or 0: queries.next_event(job.id, run.id, run.attempt) for run in runs}
        tasks = _attach(context, job, runs[0], acknowledged) if name else {}
        for run in runs:
            task = tasks.get(run.slot or 0) or find_export(context, run, acknowledged[run.slot or 0])
            if task is not None:
                job.runs[run.id] = Work(
                    task, run.attempt, is_trained=run.epoch >= run.epochs or task.actor_group.exports
                )
            else:
                # A run whose process has ended with Ray, or while there was no engine, is not to blame.
                why = "its process was gone when the engine, or Ray, had started again"
                backoff = job.lost(run.id, why, is_node_fault=True) if run.state is State.RUNNING else None
                queries.move_on(run.id, run.attempt, GONE, backoff=backoff)
                endings.sweep(queries.run(run.id))
            # One that has trained already may be exported beside the others.
            found[export_name(name, run.slot or 0)] = 1
        if tasks:
            found[name] = job.spec.training.actors
    return found


def find_export(context: EngineContext, run: RunRecord, acknowledged: int) -> Task | None:
    """The task of the process that makes the artifacts of a run; None if there is none."""
    name = export_name(run.actor or "", run.slot or 0)
    return context.cluster.find_export(name, acknowledged) if run.actor else None


def _attach(context: EngineContext, job: ActiveJob, run: RunRecord, acknowledged: Mapping[int, int]) -> dict[int, Task]:
    """The tasks of a group of actors, with what it was given at its start: the settings may be others since."""
    # One that was started by an earlier version did not say.
    given = run.share or share_of(context.capacity.need_of(job.spec.training))
    return context.cluster.attach(
        run.actor or "", given["processes"], acknowledged, cpus=given["cpus"], gpu_share=given["gpu_share"]
    )
