"""Scheduler of the engine: takes jobs from the database, has them done on the cluster, and stores what happened.

A single loop in a process of its own; the only writer of what workers emit, and the only one who moves states (a
client may cancel, pause and resume). It keeps nothing that it cannot find again. Killed at any moment, its successor
adopts the unfinished jobs: runs that are still training are found again by the names of their processes and lose
nothing, the others start again from their checkpoints, and committed blocks are where they were. One engine leads, by a
lease in the database; a second one waits for it. (That inference had too little memory on a share of a GPU it forgets:
that is found out once more.)

This file is the loop and the life of a job up to its complete caches; of caches that cannot be completed
``cache_checks`` judges. ``run_start`` chooses and starts runs, ``run_stage`` follows them to their ends, ``adoption``
finds those of an earlier engine, ``endings`` ends jobs, ``eta`` says when they are expected to end.

A run is started only where it fits at once by the books (``allocation``) of what each process holds, so what is said to
be running has its share of the machine, and what waits for one is said to wait.
"""

import time
from functools import partial

import structlog
from structlog.contextvars import bound_contextvars

from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord, Json
from service.db.queries.eta_queries import EtaQueries
from service.db.states import TERMINAL, State
from service.engine.active_jobs import ACTIVE_JOBS_EVER_MAX, CACHES, ActiveJob, Work, has_turn
from service.engine.adoption import adopt_jobs
from service.engine.cache_checks import CacheChecks
from service.engine.cache_leases import LeaseKeeper
from service.engine.capacity import slots_of
from service.engine.context import EngineContext
from service.engine.endings import Endings
from service.engine.eta import EtaKeeper
from service.engine.progress import CacheProgress
from service.engine.run_stage import RunStage
from service.engine.run_start import start_runs
from service.gpus import GpuWatch
from service.operations.readiness import EngineParts
from service.settings import Settings
from store import Catalog
from workers.cluster.ray_cluster import Cluster
from workers.config.job import JobSpec
from workers.config.task import CachesTask
from workers.teacher.cache_plan import CachePlan
from workers.teacher.forwards import forwards_needed
from workers.texts import without_folders

log = structlog.get_logger("retort.engine")

_POLL_S = 0.05


def job_spec(job: JobRecord, settings: Settings) -> JobSpec:
    """A job as the workers take it: its plan, with its teachers' files in place of their ids."""
    teacher = job.teacher
    several = [
        {**_teacher_spec(member, settings), "weight": member["weight"], "name": member.get("name", "")}
        for member in teacher.get("members", [])
    ]
    spec = {**job.plan, "teacher": _teacher_spec(teacher, settings), "teacher_name": teacher.get("name", "")}
    return JobSpec.model_validate({**spec, "teachers": several} if several else spec)


def _teacher_spec(teacher: Json, settings: Settings) -> Json:
    caches = teacher.get("caches")
    return {
        "path": settings.caches_dir / caches["train"] if caches else settings.teacher_path(teacher["sha256"]),
        "sha256": teacher["sha256"],
        "output": teacher["output"],
        "preprocessing": teacher["preprocessing"],
        **teacher.get("reading", {}),
        **({"caches": caches} if caches else {}),
    }


class Scheduler:
    """One leading engine's work; ``tick`` does what is to be done now and never waits.

    Args:
        settings: of this process.
        queries: the database, migrated, for a holder of the lease.
        parts: what is said of readiness.
    """

    def __init__(self, settings: Settings, queries: EngineQueries, parts: EngineParts) -> None:
        self._context = context = EngineContext(settings, queries, parts)
        self._queries, self._disk, self._jobs = queries, context.disk, context.jobs
        self._endings = Endings(context)
        self._cache_checks = CacheChecks(context, self._endings)
        self._run_stage = RunStage(context, self._endings)
        self._lease_keeper = LeaseKeeper(queries, context.leases)
        self._etas = EtaKeeper(EtaQueries(queries.database, queries.holder), Catalog(context.folders.caches))

    # ---------------------------------------------------------------------------------------------------- the loop

    def recover(self, cluster: Cluster, gpus: GpuWatch) -> None:
        """Take up what is unfinished on this cluster: runs that are being trained there, and the rest anew.

        Args:
            gpus: has tried the cluster's GPUs, and is asked to try them again where they fail.

        Raises:
            InvalidSettings: no run could ever start there.
            LeaseLost: another engine leads.
        """
        self._context.connect(cluster, gpus)
        adopt_jobs(self._context, self._endings, self._begin)
        self._context.record_capacity()
        self._context.record_gpus()

    def tick(self) -> None:
        """Advance every job by what has happened since the last call, claim new ones, and fill free slots.

        Raises:
            LeaseLost: another engine leads.
        """
        self._disk.look()
        self._context.look_at_gpus()
        for job in list(self._jobs.values()):
            with bound_contextvars(job_id=job.id):
                self._advance(job)
        self._lease_keeper.look(self._jobs.keys())
        while self._disk.fault is None and len(self._jobs) < ACTIVE_JOBS_EVER_MAX:
            claimed = self._queries.claim_job(partial(has_turn, self._jobs.values()))
            if claimed is None:
                break
            log.info("job claimed", job_id=claimed.id)
            self._begin(claimed)
        start_runs(self._context)
        self._etas.look(slots_of(self._context.capacity))

    def put_down(self, patience_s: float) -> None:
        """Have every run leave a checkpoint and end, so that the next engine goes on from there.

        Args:
            patience_s: what has not ended by then is lost, and goes on from an earlier checkpoint.

        Raises:
            LeaseLost: another engine leads.
        """
        deadline = time.monotonic() + patience_s
        while True:
            for job in list(self._jobs.values()):
                for work in job.runs.values():
                    work.request_stop(State.PAUSING)
                if job.caches is not None:
                    job.caches.request_stop(State.CANCELLING)
                self._poll(job)
            busy = sum(len(job.runs) + (job.caches is not None) for job in self._jobs.values())
            if not busy or time.monotonic() > deadline:
                log.info("work put down", still_busy=busy)
                return
            time.sleep(_POLL_S)

    # -------------------------------------------------------------------------------------------------- a job's life

    def _begin(self, record: JobRecord) -> ActiveJob | None:
        """Make a claimed or adopted job active; None if it cannot be done here, and has failed."""
        context = self._context
        try:
            spec = job_spec(record, context.settings)
        except (ValueError, LookupError) as error:
            # Stored by another version, say. Raised from here it would stop the engine at every start.
            self._endings.fail(record.id, record.attempt, {"type": type(error).__name__, "message": str(error)})
            return None
        if (refused := context.capacity.refusal(spec.training, evaluates=spec.evaluate)) is not None:
            kind, message = refused
            self._endings.fail(record.id, record.attempt, {"type": kind, "message": message})
            return None
        progress = CacheProgress(context.forwards_in(record.id), record.teacher_forwards)
        job = ActiveJob.of_rows(record, self._queries.runs(record.id), spec, progress)
        self._jobs[job.id] = job
        return job

    def _advance(self, job: ActiveJob) -> None:
        """Pass on what clients want, store what workers emit, and end the job if that was the last of it."""
        self._look_at(job)
        for run_id, work in job.runs.items():
            work.request_end(job.states.get(run_id, State.CANCELLING))
        if job.caches is not None and job.state is not State.RUNNING:
            job.caches.request_stop(State.CANCELLING)
        self._poll(job)
        if job.id not in self._jobs or job.caches is not None:
            return
        if job.unchecked and job.state is State.RUNNING and job.may_start(CACHES):
            # Not for runs that were found in training: those have theirs. Once more for runs that were added.
            self._build_caches(job)
        if job.caches is not None or job.runs:
            return
        self._look_at(job)
        match job.state:
            case None | State.CANCELLING | State.CANCELLED:
                self._endings.cancel(job)
            case State.PAUSING | State.RUNNING if job.state is State.PAUSING or not job.waiting:
                if self._queries.settle_job(job.id, job.attempt):
                    log.info("job paused", job_id=job.id)
                    self._endings.forget(job.id)
                elif all(state in TERMINAL for state in job.states.values()):
                    self._endings.end(job)

    def _look_at(self, job: ActiveJob) -> None:
        """Read the states of a job and of its runs, and its plan if runs were added since the last look."""
        job.state, job.states = self._queries.states(job.id)
        if job.states.keys() <= job.known:
            return
        # Plan and runs are written together, so it is not older than the states.
        job.spec = job_spec(self._queries.job(job.id), self._context.settings)
        job.known |= job.states.keys()

    def _poll(self, job: ActiveJob) -> None:
        """Look at every process of a job."""
        if job.caches is not None:
            self._poll_caches(job, job.caches)
        for run_id, work in list(job.runs.items()):
            with bound_contextvars(run_id=run_id, attempt=work.attempt):
                self._run_stage.poll(job, run_id, work)

    # ---------------------------------------------------------------------------------------------------- its caches

    def _build_caches(self, job: ActiveJob) -> None:
        """Start the process that builds the caches of a job, or say that the disk keeps it from that."""
        context = self._context
        if self._disk.fault is not None:
            context.record_waiting(job, {job.waiting[0]: self._disk.fault.message})
            return
        if job.has_built:
            # A new attempt, because a new actor numbers its events from the start; the state stays what it is.
            adopted = self._queries.adopt_job(job.id)
            if adopted is None:
                self._endings.forget(job.id)
                return
            job.attempt = adopted.attempt
            job.progress = CacheProgress(context.forwards_in(job.id), adopted.teacher_forwards)
        job.has_built = True
        task = CachesTask(
            job=self._cache_checks.spec_to_check(job),
            folders=context.folders,
            gpu_share=context.capacity.inference_share_of(job.spec.training, whole=CACHES in job.whole),
            quota_bytes=context.settings.caches_max_bytes,
            forwards=job.progress.forwards_in,
            confine_on_gpu=context.settings.confine_on_gpu,
        )
        job.caches = Work(context.cluster.build_caches(task), job.attempt)

    def _poll_caches(self, job: ActiveJob, work: Work) -> None:
        """Store what the process has emitted since the last look, and what follows from its end."""
        events, outcome = work.task.poll()
        outcome = self._context.shown(outcome)
        if events:
            events = without_folders(events, self._context.folder_names)
            progress = job.progress.columns(events)
            self._queries.record_events(job.id, None, job.attempt, events, progress=progress)
            work.task.acknowledge(events)
            if any(event.get("rows_inferred") for _, event in events):
                if job.backoffs.pop(CACHES, None) is not None:
                    self._queries.update_job(job.id, attempt=job.attempt, backoff=None)
                job.without_device.discard(CACHES)
                self._disk.has_got_on(job.id)
        if outcome is None:
            return
        if outcome.value is not None:
            job.cache_plan = CachePlan.model_validate(outcome.value["plan"])
            job.checked |= job.checking | self._cache_checks.begun(job)
            needed = forwards_needed(job.spec, job.cache_plan) if job.spec.added else None
            columns = job.progress.columns_at_end(job.cache_plan, outcome.value, needed)
            self._queries.update_job(job.id, attempt=job.attempt, **columns)
            job.backoffs.pop(CACHES, None)
            self._disk.has_got_on(job.id)
        # Its process holds the caches, so it ends after they were taken; unfinished ones as well.
        self._context.leases.take(job.id, job.progress.caches.values())
        work.task.close()
        job.caches = None
        if outcome.value is None:
            self._cache_checks.judge(job, work, outcome)
