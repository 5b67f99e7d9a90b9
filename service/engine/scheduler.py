"""Scheduler of the engine: takes jobs from the database, has them done on the cluster, and stores what happened.

A single loop in a process of its own; the only writer of what workers emit, and the only one who moves states (a
client may cancel, pause and resume). It keeps nothing that it cannot find again. Killed at any moment, its successor
adopts the unfinished jobs: runs that are still training are found again by the names of their processes and lose
nothing, the others start again from their checkpoints, and committed blocks are where they were. One engine leads, by a
lease in the database; a second one waits for it. (That inference had too little memory on a share of a GPU it forgets:
that is found out once more.)

This file is the loop and the life of a job. ``cache_stage`` builds a job's caches, ``run_start`` chooses and starts
runs, ``run_stage`` follows them to their ends, ``adoption`` finds those of an earlier engine, ``endings`` ends jobs,
``eta`` says when they are expected to end.

A run is started only where it fits at once by the books (``allocation``) of what each process holds, so what is said to
be running has its share of the machine, and what waits for one is said to wait.
"""

import time

import structlog
from structlog.contextvars import bound_contextvars

from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord, Json
from service.db.queries.eta_queries import EtaQueries
from service.db.scheduling.backoff import read_backoff
from service.db.states import TERMINAL, State
from service.engine.active_jobs import CACHES, ActiveJob, Work
from service.engine.adoption import find_runs
from service.engine.cache_stage import CacheStage
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

log = structlog.get_logger("retort.engine")

# Each is looked at several times a second. Beyond the first number only what would otherwise wait for others is taken.
ACTIVE_JOBS_MAX = 8
ACTIVE_JOBS_EVER_MAX = 64
# Of one API key, urgent ones included: whatever they do, as many again are there for others.
KEY_ACTIVE_JOBS_MAX = 32
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
        self._cache_stage = CacheStage(context, self._endings)
        self._run_stage = RunStage(context, self._endings)
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
        context = self._context
        context.connect(cluster, gpus)
        # All of them before the first job makes room for itself.
        for job_id, keys in self._queries.caches_in_use().items():
            context.leases.take(job_id, keys)
        actor_groups: dict[str, int] = {}
        for job in self._queries.unfinished_jobs():
            adopted = self._queries.adopt_job(job.id)
            if adopted is None:
                self._endings.forget(job.id)
                continue
            active = self._begin(adopted)
            if active is not None:
                actor_groups |= find_runs(context, self._endings, active)
                log.info("job adopted", job_id=job.id, attempt=adopted.attempt, runs_found=len(active.runs))
        context.check_lease()
        strays = cluster.end_others(actor_groups)
        if strays:
            log.info("ended processes that nobody waits for", processes=strays)
        context.record_capacity()
        context.record_gpus()

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
        while self._disk.fault is None and len(self._jobs) < ACTIVE_JOBS_EVER_MAX:
            claimed = self._queries.claim_job(self._has_turn)
            if claimed is None:
                break
            log.info("job claimed", job_id=claimed.id)
            self._begin(claimed)
        start_runs(self._context)
        self._endings.release_caches()
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

    def _has_turn(self, job: JobRecord) -> bool:
        """Whether to take this job as well: nobody's jobs shall keep those of another key, or urgent ones, waiting."""
        if len(self._jobs) < ACTIVE_JOBS_MAX:
            return True
        active = [other.record for other in self._jobs.values()]
        own = sum(other.key_id == job.key_id for other in active)
        is_urgent = all(job.priority > other.priority for other in active)
        return own == 0 or (is_urgent and own < KEY_ACTIVE_JOBS_MAX)

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
        job = ActiveJob(record, record.attempt, spec, progress, state=record.state)
        runs = self._queries.runs(record.id)
        planned = 1 if spec.evaluate else sum(block.count for block in spec.blocks)
        # Others were added since the plan was read.
        job.known.update(run.id for run in runs if run.index < planned)
        job.whole.update(run.id for run in runs if run.whole_gpu)
        job.alone.update(job.whole)
        job.waits_for = {run.id: run.waits_for for run in runs if run.waits_for is not None}
        stored = {CACHES: record.backoff, **{run.id: run.backoff for run in runs}}
        job.backoffs = {id: backoff for id, json in stored.items() if (backoff := read_backoff(json)) is not None}
        self._jobs[job.id] = job
        return job

    def _advance(self, job: ActiveJob) -> None:
        """Pass on what clients want, store what workers emit, and end the job if that was the last of it."""
        self._look_at(job)
        for run_id, work in job.runs.items():
            self._request(work, job.states.get(run_id, State.CANCELLING))
        if job.caches is not None and job.state is not State.RUNNING:
            job.caches.request_stop(State.CANCELLING)
        self._poll(job)
        if job.id not in self._jobs or job.caches is not None:
            return
        if job.unchecked and job.state is State.RUNNING and job.may_start(CACHES):
            # Not for runs that were found in training: those have theirs. Once more for runs that were added.
            self._cache_stage.begin(job)
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

    @staticmethod
    def _request(work: Work, wanted: State) -> None:
        """Have a run pause or stop, if that is wanted; one that only writes its artifacts is ended at once.

        An export listens to nobody, for seconds or minutes. What it has half-written is swept away, and its last
        checkpoint is there for whoever resumes it. Where other runs share its process, it listens between the files.
        """
        work.request_stop(wanted)
        if work.requested is not None and work.is_trained and work.task.actor_group.open_tasks == 1:
            work.task.kill()

    def _poll(self, job: ActiveJob) -> None:
        """Look at every process of a job."""
        if job.caches is not None:
            self._cache_stage.poll(job, job.caches)
        for run_id, work in list(job.runs.items()):
            with bound_contextvars(run_id=run_id, attempt=work.attempt):
                self._run_stage.poll(job, run_id, work)
