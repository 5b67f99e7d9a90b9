"""Start of runs: the free slots of the engine are shared among the jobs whose runs wait, and filled.

Fair share (``allot``): the highest priority takes all it can use. Among equals a slot goes to the API key that has the
fewest, among its jobs to the one that has the fewest, and then to the oldest: ten jobs of one user do not keep another
user's waiting. Runs of a job that see the same batches can share a process (``share_out``). What becomes of them is in
``run_stage``.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from service.db.models import RunRecord
from service.db.scheduling.backoff import read_backoff, why_set_back
from service.db.states import State
from service.engine.active_jobs import ActiveJob, Work, share_of
from service.engine.allocation import FreeResources, Need
from service.engine.capacity import Capacity
from service.engine.context import EngineContext
from service.engine.evaluation import evaluation_result
from service.engine.progress import run_progress
from service.errors import LeaseLost
from workers.backoff import LOST_ATTEMPTS_EVER_MAX
from workers.training.share_out import share_out

log = structlog.get_logger("retort.engine")


@dataclass(frozen=True)
class SlotClaim:
    """Claim of a job: what it has and wants.

    Attributes:
        job_id: ids rise with time.
        key_id: of the API key that posted it; None is a key of its own.
        has: what its runs have, in the unit of ``weight``.
        wants: runs that wait and may start.
        need: of each of them.
        weight: what each of them counts for in sharing.
    """

    job_id: str
    key_id: str | None
    priority: int
    has: float
    wants: int
    need: Need
    weight: float = 1.0


class Allotment(NamedTuple):
    """Allotment: how many runs each job may start now, by id, and the job for whose next run GPUs are kept free."""

    given: Counter[str]
    kept_for: str | None


def allot(claims: Sequence[SlotClaim], free: FreeResources) -> Allotment:
    """Share out what is free among the jobs, one run after the other; ``free`` is less by that afterwards.

    Whose turn it is and who finds too few cores, keeps all others waiting. Who finds too little of a GPU has the
    emptiest GPUs kept free, and others get what the remaining ones have, and the CPU: runs that need little never keep
    one that needs a whole GPU waiting for ever.
    """
    of_job = {claim.job_id: claim.has for claim in claims}
    of_key: defaultdict[str | None, float] = defaultdict(float)
    for claim in claims:
        of_key[claim.key_id] += claim.has
    given: Counter[str] = Counter()
    kept_for: str | None = None
    set_aside: set[str] = set()
    while True:
        waiting = [c for c in claims if given[c.job_id] < c.wants and c.job_id not in set_aside]
        if not waiting:
            return Allotment(given, kept_for)
        turn = min(waiting, key=lambda c: (-c.priority, of_key[c.key_id], of_job[c.job_id], c.job_id))
        if not free.has_cores(turn.need):
            # What is free is kept for it: smaller runs would take every core before there are enough.
            return Allotment(given, kept_for)
        if not free.fits(turn.need):
            set_aside.add(turn.job_id)
            # One at a time: whoever comes next has its turn when this one has started.
            if kept_for is None:
                kept_for = turn.job_id
                free.keep(turn.need)
            continue
        free.take(turn.need)
        given[turn.job_id] += 1
        of_job[turn.job_id] += turn.weight
        of_key[turn.key_id] += turn.weight


def start_runs(context: EngineContext) -> None:
    """Share what is free among the jobs whose runs wait, start those, and store why the others wait in their turn.

    Raises:
        LeaseLost: another engine leads.
    """
    fault, jobs = context.disk.fault, [*context.jobs.values()]
    waiting_jobs = [job for job in jobs if job.cache_plan is not None and job.state is State.RUNNING and job.waiting]
    if fault is not None:
        for job in waiting_jobs:
            context.record_waiting(job, {job.waiting[0]: fault.message})
        return
    capacity = context.capacity
    free = FreeResources(capacity.cpus, capacity.gpus, [each for job in jobs for each in job.held()])
    startable = {job.id: _startable(job) for job in waiting_jobs}
    claims = [_claim(job, startable[job.id], capacity) for job in waiting_jobs]
    no_gpu = {claim.job_id: free.why_not(claim.need) for claim in claims if claim.wants and claim.need.gpu_share == 1.0}
    given, kept_for = allot(claims, free)
    for job in jobs:
        set_back = why_set_back((id, job.backoffs[id]) for id in job.waiting if id in job.backoffs)
        if given[job.id]:
            _start_runs_of(context, job, startable[job.id], given[job.id])
        elif job.id != kept_for:
            context.record_waiting(job, set_back)
        elif free.is_placed:
            # Else some are just starting: who is where is known in a moment.
            of_first = {startable[job.id][0]: no_gpu[job.id]} if job.id in no_gpu else {}
            context.record_waiting(job, {**of_first, **set_back})


def _startable(job: ActiveJob) -> list[str]:
    """The waiting runs that may start next; one that wants a whole GPU starts by itself."""
    at_once = job.record.parallel_runs
    at_work = sum(not work.task.actor_group.exports for work in job.runs.values())
    room = None if at_once is None else max(0, at_once - at_work)
    waiting = job.ready[:room]
    return next(([run_id] for run_id in waiting if run_id in job.whole), waiting)


def _claim(job: ActiveJob, startable: Sequence[str], capacity: Capacity) -> SlotClaim:
    """The claim of a job for these of its runs."""
    need = capacity.need_of(job.spec.training, whole=not job.whole.isdisjoint(startable))
    weights = [
        capacity.weight_of(actor_group.processes, share.cpus, share.gpu)
        for actor_group in job.actor_groups
        for share in actor_group.shares[:1]
    ]
    return SlotClaim(
        job.id,
        job.record.key_id,
        job.record.priority,
        has=sum(weights),
        wants=len(startable),
        need=need,
        weight=capacity.weight_of(need.processes, need.cpus, need.gpu_share),
    )


def _start_runs_of(context: EngineContext, job: ActiveJob, run_ids: Sequence[str], processes: int) -> None:
    """Start these waiting runs of a job, or some of them, in so many processes."""
    if job.spec.evaluate:
        _end_evaluation(context, job, run_ids)
        return
    by_index = {run.index: run for run in context.queries.runs(job.id) if run.id in run_ids}
    specs = job.spec.runs()
    alone = {run.index for run in by_index.values() if run.id in job.alone}
    waiting = [specs[index] for index in by_index]
    for group in share_out(waiting, processes, job.spec.largest_group, alone, batches_of=job.spec.batches_of):
        _start_group(context, job, [by_index[spec.index] for spec in group])


def _end_evaluation(context: EngineContext, job: ActiveJob, run_ids: Sequence[str]) -> None:
    """End the run of an evaluation: what it asks for was measured when the caches were complete."""
    for run in context.queries.start_attempts(run_ids):
        record = context.queries.job(job.id)
        result = evaluation_result(record)
        event = {"type": "epoch", "epoch": 1, "epochs": 1, "metrics": result["last"]}
        progress = run_progress([(1, event)])
        context.queries.record_events(job.id, run.id, run.attempt, [(1, event)], progress=progress)
        context.queries.record_result(run.id, run.attempt, [], result)
        log.info("run ended", kind="done", job_id=job.id, run_id=run.id)


def _start_group(context: EngineContext, job: ActiveJob, runs: Sequence[RunRecord]) -> None:
    """Start runs that share their batches, or a single one, in one process."""
    training = job.spec.training
    able = [run for run in runs if not _has_had_enough(context, run)]
    need = context.capacity.need_of(training, whole=not job.whole.isdisjoint(run.id for run in able))
    if job.cache_plan is None:
        return
    begun = context.queries.start_attempts([run.id for run in able], share_of(need))
    if not begun:
        return
    specs = job.spec.runs()
    training_tasks = [
        job.cache_plan.task_of_run(
            job.spec,
            specs[run.index],
            context.folders,
            folder=context.run_folder(run) / f"a{run.attempt}",
            threads=max(1, int(context.capacity.run_cpus)),
            earlier=tuple(_earlier(context, run)),
            told_epoch=run.epoch,
            gpu_share=need.gpu_share,
            checkpoint_s=context.settings.checkpoint_s,
            stage=context.capacity.stage_of(training, need.gpu_share),
        )
        for run in begun
    ]
    tasks = context.cluster.train(begun[0].actor or "", training_tasks, need.cpus, need.gpu_share)
    try:
        context.check_lease()
    except LeaseLost:
        # An engine that was stopped in the last few lines: its successor has looked for them, and found none.
        for task in tasks:
            task.close()
        raise
    for run, task in zip(begun, tasks, strict=True):
        job.runs[run.id] = Work(task, run.attempt, is_trained=run.epoch >= run.epochs)
        details = {"attempt": run.attempt, "name": run.name, "group": len(begun)}
        log.info("run started", job_id=job.id, run_id=run.id, **details)


def _has_had_enough(context: EngineContext, run: RunRecord) -> bool:
    """Whether the run may not start again; then it has failed."""
    if run.lost_attempts < LOST_ATTEMPTS_EVER_MAX:
        return False
    backoff = read_backoff(run.backoff)
    last = "" if backoff is None else f", last: {backoff.last}"
    error = {"type": "TooManyLosses", "message": f"the run's process has vanished {run.lost_attempts} times{last}"}
    context.queries.move_run(run.id, run.attempt, State.FAILED, error=error)
    return True


def _earlier(context: EngineContext, run: RunRecord) -> list[Path]:
    """The folders of earlier attempts, and of those of the run that this one tries again."""
    folder = context.run_folder
    folders = [folder(run) / f"a{number}" for number in range(1, run.attempt)]
    while run.retry_of is not None:
        run = context.queries.run(run.retry_of)
        folders += [folder(run) / f"a{number}" for number in range(1, run.attempt + 1)]
    return folders
