"""Free slots: which waiting runs may start now, in how many processes, and why the others wait."""

from collections.abc import Iterator

from service.db.backoff import why_set_back
from service.db.states import State
from service.engine.active_jobs import ActiveJob
from service.engine.allocation import FreeResources
from service.engine.capacity import Capacity
from service.engine.context import EngineContext
from service.engine.fair_share import Claim, allot


def free_slots(context: EngineContext) -> Iterator[tuple[ActiveJob, int]]:
    """Share what is free among the jobs whose runs wait, and store why the others do whose turn it is.

    Yields:
        A job, and in how many processes its waiting runs may start now.
    """
    fault, jobs = context.disk.fault, [*context.jobs.values()]
    waiting_jobs = [job for job in jobs if job.plan is not None and job.state is State.RUNNING and job.waiting]
    if fault is not None:
        for job in waiting_jobs:
            context.record_waiting(job, {job.waiting[0]: fault.message})
        return
    capacity = context.capacity
    free = FreeResources(capacity.cpus, capacity.gpus, [each for job in jobs for each in job.held()])
    claims, no_gpu = [], {}
    for job in waiting_jobs:
        claim = _claim(job, capacity)
        claims.append(claim)
        if claim.wants and claim.need.gpu_share == 1.0:
            no_gpu[job.id] = {startable(job)[0]: free.why_not(claim.need)}
    given, kept_for = allot(claims, free)
    for job in jobs:
        set_back = why_set_back((id, job.backoffs[id]) for id in job.waiting if id in job.backoffs)
        if given[job.id]:
            yield job, given[job.id]
        elif job.id != kept_for:
            context.record_waiting(job, set_back)
        elif free.is_placed:
            # Else some are just starting: who is where is known in a moment.
            context.record_waiting(job, {**no_gpu.get(job.id, {}), **set_back})


def startable(job: ActiveJob) -> list[str]:
    """The waiting runs that may start next; one that wants a whole GPU starts by itself."""
    at_once = job.record.parallel_runs
    at_work = sum(not work.task.actor_group.exports for work in job.runs.values())
    room = None if at_once is None else max(0, at_once - at_work)
    waiting = job.ready[:room]
    return next(([run_id] for run_id in waiting if run_id in job.whole), waiting)


def _claim(job: ActiveJob, capacity: Capacity) -> Claim:
    """What a job has of the machine, and wants."""
    waiting = startable(job)
    need = capacity.need_of(job.spec.training, whole=not job.whole.isdisjoint(waiting))
    weights = [
        capacity.weight_of(actor_group.processes, share.cpus, share.gpu)
        for actor_group in job.actor_groups
        for share in actor_group.shares[:1]
    ]
    return Claim(
        job.id,
        job.record.key_id,
        job.record.priority,
        has=sum(weights),
        wants=len(waiting),
        need=need,
        weight=capacity.weight_of(need.processes, need.cpus, need.gpu_share),
    )
