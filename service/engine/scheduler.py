"""The engine: takes jobs from the database, has them done on the cluster, and writes down what happened.

A single loop in a process of its own; the only writer of what workers tell, and the only one who moves states (a
client may cancel, pause and resume). It keeps nothing that it cannot find again. Killed at any moment, its successor
adopts the unfinished jobs: runs that are still training are found again by the names of their processes and lose
nothing, the others start again from their checkpoints, and committed blocks are where they were. One engine leads, by a
lease in the database; a second one waits for it. (That inference had too little memory on a share of a GPU it forgets:
that is found out once more.)

How a piece of work ends decides what comes next: what raised has *failed* and is not tried again (but if the disk is
full, read-only or fails it is *set aside*, see ``engine.disk``, and nothing new is begun); what vanished is *lost* and
starts again from its checkpoint, at most ``LOST_ATTEMPTS_MAX`` times without a finished epoch in between, and later
each time (``backoff``); what vanished because others have used up the memory, or with Ray, is not counted; what was
told to put its work down has done so, and is paused, or queued if nobody wants it paused. Two failures may be the
machine's: a GPU that does not work, and one whose memory was too small for all who shared it. Either is tried once
more, in a fresh process, the second one alone on its GPU; neither on the CPU instead.

A run is started only where it fits at once by the books (``allocation``) of what each process holds, so what is told as
running has its share of the machine, and what waits for one is told as waiting.

On a GPU a run ends with its last checkpoint where there are cores for another process, which makes the artifacts of it:
the GPU need not wait for them. That process is part of the same attempt; where it is lost, the next attempt finds the
run trained.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import structlog
from structlog.contextvars import bound_contextvars

from service.db.backoff import read_backoff, why_set_back
from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord, Json, RunRecord
from service.db.states import LIVE, TERMINAL, WORKING, State
from service.db.transitions import end_of
from service.engine.active_jobs import ActiveJob, Work, job_spec
from service.engine.allocation import FreeResources, Need
from service.engine.attempt_files import list_artifacts, sweep_attempts
from service.engine.cache_leases import CacheLeases
from service.engine.capacity import choose_capacity
from service.engine.disk import EngineDisk
from service.engine.fair_share import Claim, allot
from service.engine.progress import CacheProgress, run_progress
from service.errors import LeaseLost, NotFound
from service.gpus import GpuWatch
from service.operations.readiness import EngineParts
from service.settings import Settings
from store import Catalog
from workers.backoff import LOST_ATTEMPTS_EVER_MAX
from workers.cluster.outcomes import Numbered, TaskOutcome
from workers.cluster.ray_cluster import Cluster, Task, export_name
from workers.config.job import RunSpec
from workers.config.task import Folders, TrainingTask
from workers.disk_errors import disk_error, passing_over_disk_errors
from workers.teacher.cache_plan import CachePlan
from workers.texts import without_folders
from workers.training.tasks import share_out, task_of_run

log = structlog.get_logger("retort.engine")

LOST_ATTEMPTS_MAX = 3
# Each is looked at several times a second. Beyond the first number only what would otherwise wait for others is taken.
ACTIVE_JOBS_MAX = 8
ACTIVE_JOBS_EVER_MAX = 64
# Of one API key, urgent ones included: whatever they do, as many again are there for others.
KEY_ACTIVE_JOBS_MAX = 32
_POLL_S = 0.05
# Errors of inference and of what comes before it that are a teacher's, or of what runs it.
_ABOUT_TEACHER = frozenset(
    {"InvalidTeacher", "ContractViolation", "NotFinite", "OutOfMemory", "SessionLost", "WorkerLost"}
)
# What a job's caches are counted under, beside its runs.
_CACHES = "caches"

# What becomes of a run by what was wanted of it, when its process is gone and when it has put its work down.
_GONE = MappingProxyType({State.RUNNING: State.LOST, State.PAUSING: State.PAUSED, State.CANCELLING: State.CANCELLED})
_PUT_DOWN = MappingProxyType({**_GONE, State.RUNNING: State.QUEUED})


def error_of(outcome: TaskOutcome) -> Json:
    """What the API shows of a failure."""
    return {"type": outcome.error_type, "message": outcome.message}


def _teacher_of(job: ActiveJob) -> str:
    """The teacher, by name and id, to begin a sentence."""
    teacher = job.record.teacher
    return f"teacher {teacher.get('name')!r} ({job.record.teacher_id})"


def _share_of(need: Need) -> Json:
    """What is stored of what each process of a run was given."""
    return {"processes": need.processes, "cpus": need.cpus, "gpu_share": need.gpu_share}


def is_trained(outcome: TaskOutcome) -> bool:
    """Whether a run has ended with its last checkpoint, and its artifacts are to be made yet."""
    return outcome.kind == "done" and "trained" in (outcome.value or {})


class Scheduler:
    """One leading engine's work; ``tick`` does what is to be done now and never waits.

    Args:
        settings: of this process.
        records: the database, migrated, for a holder of the lease.
        parts: what is said of readiness.
    """

    def __init__(self, settings: Settings, records: EngineQueries, parts: EngineParts) -> None:
        self._settings = settings
        self._records = records
        self._disk = EngineDisk(settings, records, parts)
        self._jobs: dict[str, ActiveJob] = {}
        data_dir = settings.data_dir.resolve()
        self._folders = Folders(data_dir=data_dir, data_root=settings.data_root.resolve())
        self._folder_names = settings.folder_names
        self._leases = CacheLeases(Catalog(self._folders.caches))

    # -------------------------------------------------------------------------------------- the loop's parts

    def recover(self, cluster: Cluster, gpus: GpuWatch) -> None:
        """Take up what is unfinished on this cluster: runs that are being trained there, and the rest anew.

        Args:
            gpus: has tried the cluster's GPUs, and is asked to try them again where they fail.

        Raises:
            InvalidSettings: no run could ever start there.
            LeaseLost: another engine leads.
        """
        self._cluster, self._gpus = cluster, gpus
        self._choose_capacity()
        self._jobs.clear()
        # All of them before the first job makes room for itself.
        for job_id, caches in self._records.caches_in_use().items():
            self._leases.take(job_id, caches.values())
        actor_groups: dict[str, int] = {}
        for job in self._records.unfinished_jobs():
            adopted = self._records.adopt_job(job.id)
            if adopted is None:
                self._forget(job.id)
                continue
            active = self._begin(adopted)
            if active is not None:
                actor_groups |= self._find_runs(active)
                log.info("job adopted", job_id=job.id, attempt=adopted.attempt, runs_found=len(active.runs))
        self._check_lease()
        strays = cluster.end_others(actor_groups)
        if strays:
            log.info("ended processes that nobody waits for", processes=strays)
        self._record_gpus()

    def tick(self) -> None:
        """Advance every job by what has happened since the last call, claim new ones, and fill free slots.

        Raises:
            LeaseLost: another engine leads.
        """
        self._disk.look()
        self._gpus.begin_again()
        if self._gpus.poll() is not None:
            self._record_gpus()
            if not any(job.runs for job in self._jobs.values()):
                # What was chosen without knowing the memory of GPUs that work by now.
                self._choose_capacity()
        for job in list(self._jobs.values()):
            with bound_contextvars(job_id=job.id):
                self._advance(job)
        while self._disk.fault is None and len(self._jobs) < ACTIVE_JOBS_EVER_MAX:
            claimed = self._records.claim_job(self._has_turn)
            if claimed is None:
                break
            log.info("job claimed", job_id=claimed.id)
            self._begin(claimed)
        self._fill_slots()
        self._let_go()

    def _record_gpus(self) -> None:
        """Write down for health and doctor whether the GPUs work."""
        report = self._gpus.report
        if report is None:
            return
        self._records.record_gpus(report.model_dump(mode="json"))
        self._disk.parts.set("gpu", report.reason)
        if report.reason is not None:
            log.error("GPUs do not work", reason=report.reason)
        elif report.promised:
            log.info("GPUs work", names=report.names, memory_bytes=report.memory_bytes)

    def _choose_capacity(self) -> None:
        """Choose what runs get, and say so."""
        cluster, report = self._cluster, self._gpus.report
        memory = None if report is None else report.memory_bytes
        self._capacity = chosen = choose_capacity(self._settings, cluster.cpus, cluster.gpus, memory)
        shares = {"run_cpus": chosen.run_cpus, "gpu_share": chosen.gpu_share if cluster.gpus else 0.0}
        log.info("runs at once", slots=chosen.slots, **shares, reason=chosen.reason)

    def _let_go(self) -> None:
        """Of the caches of jobs that have ended while they were paused, say: nobody else comes by."""
        waiting = self._leases.job_ids - self._jobs.keys()
        if waiting:
            for ended in waiting - self._records.caches_in_use(waiting).keys():
                self._leases.release(ended)

    def _check_lease(self) -> None:
        """Before what no transaction can undo. Raises LeaseLost."""
        if self._records.lease().holder != self._records.holder:
            raise LeaseLost(f"{self._records.holder} ends: another engine leads, and what runs is its")

    def _has_turn(self, job: JobRecord) -> bool:
        """Whether to take this job as well: nobody's jobs shall keep those of another key, or urgent ones, waiting."""
        if len(self._jobs) < ACTIVE_JOBS_MAX:
            return True
        active = [other.record for other in self._jobs.values()]
        own = sum(other.key_id == job.key_id for other in active)
        is_urgent = all(job.priority > other.priority for other in active)
        return own == 0 or (is_urgent and own < KEY_ACTIVE_JOBS_MAX)

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

    # --------------------------------------------------------------------------------------------- one job

    def _begin(self, record: JobRecord) -> ActiveJob | None:
        try:
            spec = job_spec(record, self._settings)
        except (ValueError, LookupError) as error:
            # Stored by another version, say. Raised from here it would stop the engine at every start.
            self._fail(record.id, record.attempt, {"type": type(error).__name__, "message": str(error)})
            return None
        if (refused := self._capacity.refusal(spec.training)) is not None:
            kind, message = refused
            self._fail(record.id, record.attempt, {"type": kind, "message": message})
            return None
        progress = CacheProgress(self._forwards_in(record.id), record.teacher_forwards)
        job = ActiveJob(record, record.attempt, spec, progress, record.state)
        runs = self._records.runs(record.id)
        job.whole.update(run.id for run in runs if run.whole_gpu)
        job.alone.update(job.whole)
        job.waits_for = {run.id: run.waits_for for run in runs if run.waits_for is not None}
        stored = {_CACHES: record.backoff, **{run.id: run.backoff for run in runs}}
        job.backoffs = {id: backoff for id, json in stored.items() if (backoff := read_backoff(json)) is not None}
        self._jobs[job.id] = job
        return job

    def _find_runs(self, job: ActiveJob) -> dict[str, int]:
        """Take up the runs that an earlier engine has left in training; returns their actor groups and sizes."""
        actor_groups: dict[str, list[RunRecord]] = {}
        for run in self._records.runs(job.id):
            if run.state in WORKING:
                actor_groups.setdefault(run.actor or "", []).append(run)
        found = {}
        for name, runs in actor_groups.items():
            acknowledged = {run.slot or 0: self._records.next_event(job.id, run.id, run.attempt) for run in runs}
            tasks = self._attach(job, name, runs[0], acknowledged) if name else {}
            for run in runs:
                task = tasks.get(run.slot or 0) or self._find_export(run, acknowledged[run.slot or 0])
                if task is not None:
                    job.runs[run.id] = Work(task, run.attempt, is_trained=run.epoch >= run.epochs)
                else:
                    why = "its process was gone when the engine, or Ray, had started again"
                    self._lose_with_node(job, run, why)
                    self._sweep(self._records.run(run.id))
                # One that has trained already may be exported beside the others.
                found[export_name(name, run.slot or 0)] = 1
            if tasks:
                found[name] = job.spec.training.actors
        return found

    def _lose_with_node(self, job: ActiveJob, run: RunRecord, why: str) -> None:
        """A run whose process has ended with Ray, or while there was no engine, is not to blame."""
        backoff = job.lost(run.id, why, is_node_fault=True) if run.state is State.RUNNING else None
        self._records.move_on(run.id, run.attempt, _GONE, backoff=backoff)

    def _attach(self, job: ActiveJob, name: str, run: RunRecord, acknowledged: Mapping[int, int]) -> dict[int, Task]:
        """The tasks of a group of actors, with what it was given at its start: the settings may be others since."""
        given = run.share
        if given is None:
            # Started by an earlier version, which did not say.
            need = self._capacity.need_of(job.spec.training)
            given = _share_of(need)
        return self._cluster.attach(name, given["processes"], acknowledged, given["cpus"], given["gpu_share"])

    def _find_export(self, run: RunRecord, acknowledged: int) -> Task | None:
        name = export_name(run.actor or "", run.slot or 0)
        return self._cluster.find_export(name, acknowledged) if run.actor else None

    def _build_caches(self, job: ActiveJob) -> None:
        if job.has_built:
            # A new attempt, because a new actor numbers its events from the start; the state stays what it is.
            adopted = self._records.adopt_job(job.id)
            if adopted is None:
                self._forget(job.id)
                return
            job.attempt = adopted.attempt
            job.progress = CacheProgress(self._forwards_in(job.id), adopted.teacher_forwards)
        job.has_built = True
        share = self._capacity.inference_share_of(job.spec.training, whole=_CACHES in job.whole)
        task = self._cluster.build_caches(
            job.spec,
            self._folders,
            share,
            self._settings.caches_max_bytes,
            job.progress.forwards_in,
            self._settings.confine_on_gpu,
        )
        job.caches = Work(task, job.attempt)

    def _advance(self, job: ActiveJob) -> None:
        """Pass on what clients want, take what workers tell, and end the job if that was the last of it."""
        job.state, job.states = self._records.states(job.id)
        for run_id, work in job.runs.items():
            self._pass_on(work, job.states.get(run_id, State.CANCELLING))
        if job.caches is not None and job.state is not State.RUNNING:
            job.caches.request_stop(State.CANCELLING)
        self._poll(job)
        if job.id not in self._jobs or job.caches is not None:
            return
        if job.plan is None and job.state is State.RUNNING and job.waiting and job.may_start(_CACHES):
            # Not for runs that were found in training: those have theirs.
            if self._disk.fault is None:
                self._build_caches(job)
            else:
                self._record_waiting(job, {job.waiting[0]: self._disk.fault.message})
        if job.caches is not None or job.runs:
            return
        job.state, job.states = self._records.states(job.id)
        match job.state:
            case None | State.CANCELLING | State.CANCELLED:
                self._records.move_job(job.id, State.CANCELLED, attempt=job.attempt)
                log.info("job cancelled", job_id=job.id)
                self._forget(job.id)
            case State.PAUSING | State.RUNNING if job.state is State.PAUSING or not job.waiting:
                if self._records.settle_job(job.id, job.attempt):
                    log.info("job paused", job_id=job.id)
                    self._forget(job.id)
                elif all(state in TERMINAL for state in job.states.values()):
                    self._end(job)

    @staticmethod
    def _pass_on(work: Work, wanted: State) -> None:
        """Have a run pause or stop, if that is wanted; one that only writes its artifacts is ended at once.

        An export listens to nobody, for seconds or minutes. What it has half-written is swept away, and its last
        checkpoint is there for whoever resumes it. Where other runs share its process, it listens between the files.
        """
        work.request_stop(wanted)
        if work.requested is not None and work.is_trained and work.task.actor_group.open_tasks == 1:
            work.task.kill()

    def _poll(self, job: ActiveJob) -> None:
        if job.caches is not None:
            self._poll_caches(job, job.caches)
        for run_id, work in list(job.runs.items()):
            with bound_contextvars(run_id=run_id, attempt=work.attempt):
                self._poll_run(job, run_id, work)

    def _ask(self, work: Work) -> tuple[list[Numbered], TaskOutcome | None]:
        """What a task has told since the last look, without paths of this machine: clients read it."""
        events, outcome = work.task.poll()
        names = self._folder_names
        if outcome is not None:
            outcome = outcome.model_copy(update={"message": without_folders(outcome.message, names)})
        return [(number, without_folders(event, names)) for number, event in events], outcome

    def _poll_caches(self, job: ActiveJob, work: Work) -> None:
        events, outcome = self._ask(work)
        if events:
            progress = job.progress.columns(events)
            self._records.record_events(job.id, None, job.attempt, events, progress=progress)
            work.task.acknowledge(events)
            if any(event.get("rows_inferred") for _, event in events):
                if job.backoffs.pop(_CACHES, None) is not None:
                    self._records.update_job(job.id, attempt=job.attempt, backoff=None)
                job.without_device.discard(_CACHES)
                self._disk.has_got_on(job.id)
        if outcome is None:
            return
        if outcome.value is not None:
            self._take_caches(job, outcome.value)
        # Its process holds the caches, so it ends after they were taken; unfinished ones as well.
        self._leases.take(job.id, job.progress.caches.values())
        gpu_share = work.task.actor_group.gpu_share
        work.task.close()
        job.caches = None
        if outcome.value is None:
            # Beside what it has told of: batches of blocks that were under way.
            self._records.update_job(job.id, attempt=job.attempt, teacher_forwards=job.progress.forwards())
        if work.requested is None and (reason := self._disk.reason(outcome)) is not None:
            self._set_aside(job, reason)
            return
        if outcome.kind == "failed" and self._is_worth_a_whole_gpu(job, outcome, gpu_share):
            return
        if outcome.kind == "failed" and not self._is_worth_another_device(job, _CACHES, outcome):
            self._fail(job.id, job.attempt, self._error_of_work(job, _CACHES, outcome))
        elif outcome.kind == "vanished" and work.requested is None:
            self._count_loss(job, outcome)

    def _set_aside(self, job: ActiveJob, reason: Json) -> None:
        """The caches cannot be built because of the disk: what waits for them is set aside with the job."""
        self._disk.count(job.id)
        if self._records.set_job_aside(job.id, job.attempt, reason):
            log.warning("job set aside", job_id=job.id, reason=reason["message"])
            self._forget(job.id)
        else:
            job.state, job.states = self._records.states(job.id)

    def _take_caches(self, job: ActiveJob, value: Json) -> None:
        """The caches are complete."""
        job.plan = CachePlan.model_validate(value["plan"])
        accuracy = job.plan.accuracy
        assert accuracy is not None
        self._records.update_job(
            job.id,
            attempt=job.attempt,
            stage="training",
            teacher_forwards=job.progress.forwards(value["teacher_forwards_needed"]),
            teacher_accuracy=accuracy.test,
            teacher_views_accuracy=accuracy.views,
            backoff=None,
        )
        job.backoffs.pop(_CACHES, None)
        self._disk.has_got_on(job.id)

    def _count_loss(self, job: ActiveJob, outcome: TaskOutcome) -> None:
        """They are built again, a bounded number of times without a row inferred in between."""
        backoff = job.lost(_CACHES, outcome.message or "", is_node_fault=outcome.is_node_fault)
        log.warning("inference vanished", job_id=job.id, losses=backoff.lost_attempts, reason=outcome.message)
        if backoff.faults > LOST_ATTEMPTS_MAX or backoff.lost_attempts > LOST_ATTEMPTS_EVER_MAX:
            error = self._error_of_work(job, _CACHES, outcome)
            vanished = f"the process that completes the caches vanished {backoff.lost_attempts} times, last: "
            self._fail(job.id, job.attempt, {**error, "message": vanished + error["message"]})
            return
        self._records.record_backoff(job.id, job.attempt, backoff)

    def _export(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        """Have the artifacts made of a trained run, and give back its share of the GPU.

        Where as many are being made as there are cores, its process keeps what it has until the next look.
        """
        under_way = sum(other.task.actor_group.exports for each in self._jobs.values() for other in each.runs.values())
        if under_way >= self._capacity.cpus:
            return
        self._check_lease()
        run = self._records.run(run_id)
        trained = TrainingTask.model_validate_json((outcome.value or {})["order"])
        changes = {"stage": "export", "threads": 1, "has_gpu_share": False, "told_epoch": run.epoch}
        task = self._cluster.export(
            export_name(run.actor or "", run.slot or 0),
            trained.model_copy(update=changes),
            self._records.next_event(job.id, run_id, work.attempt),
        )
        job.runs[run_id] = Work(task, work.attempt, is_trained=True)
        log.info("run trained, its artifacts are made next")
        # Last, because until then a successor would find it trained there.
        work.task.close()

    def _is_worth_another_device(self, job: ActiveJob, id: str, outcome: TaskOutcome) -> bool:
        """Whether a run, or the caches, ended because a GPU does not work, and for the first time."""
        if outcome.error_type != "DeviceUnavailable":
            return False
        self._gpus.begin()
        if id in job.without_device:
            return False
        job.without_device.add(id)
        log.warning("no GPU: trying once more in a fresh process", job_id=job.id, what=id, reason=outcome.message)
        return True

    @staticmethod
    def _is_worth_a_whole_gpu(job: ActiveJob, outcome: TaskOutcome, gpu_share: float) -> bool:
        """Whether the inference of caches ended because its share of a GPU had too little memory."""
        if outcome.error_type != "OutOfMemory" or not 0.0 < gpu_share < 1.0:
            return False
        job.whole.add(_CACHES)
        log.warning("inference out of memory: trying once more with a GPU for itself", reason=outcome.message)
        return True

    def _fail(self, job_id: str, attempt: int, error: Json) -> None:
        """The job ends before its runs could, and takes them along."""
        self._records.move_job(job_id, State.FAILED, error=error, attempt=attempt)
        log.warning("job failed", job_id=job_id, error=error)
        self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        """It has ended or is paused; its caches are let go of if it has ended, see ``_let_go``."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            # A job that has failed as a whole has left some.
            for work in job.runs.values():
                work.task.close()
        for run in self._records.runs(job_id):
            self._sweep(run)
        if self._records.states(job_id)[0] not in LIVE:
            # Their sum is stored.
            shutil.rmtree(self._forwards_in(job_id), ignore_errors=True)

    def _forwards_in(self, job_id: str) -> Path:
        """The folder of the counters of what the teacher was run on for a job, see ``workers.teacher.forwards``."""
        return self._folders.jobs / job_id / "forwards"

    def _end(self, job: ActiveJob) -> None:
        """Every run has ended."""
        state, error = end_of(self._records.runs(job.id))
        self._records.move_job(job.id, state, error=error, attempt=job.attempt)
        log.info("job ended", job_id=job.id, state=state)
        self._forget(job.id)

    # -------------------------------------------------------------------------------------------- its runs

    def _fill_slots(self) -> None:
        """Share what is free among the jobs whose runs wait, and store why the others do whose turn it is."""
        if self._disk.fault is not None:
            for job in self._jobs.values():
                if job.plan is not None and job.state is State.RUNNING and job.waiting:
                    self._record_waiting(job, {job.waiting[0]: self._disk.fault.message})
            return
        capacity, jobs = self._capacity, self._jobs.values()
        free = FreeResources(capacity.cpus, capacity.gpus, [each for job in jobs for each in job.held()])
        claims, no_gpu = [], {}
        for job in jobs:
            if job.plan is None or job.state is not State.RUNNING or not job.waiting:
                continue
            waiting = self._startable(job)
            need = capacity.need_of(job.spec.training, whole=not job.whole.isdisjoint(waiting))
            weights = [
                capacity.weight_of(actor_group.processes, share.cpus, share.gpu)
                for actor_group in job.actor_groups
                for share in actor_group.shares[:1]
            ]
            claims.append(
                Claim(
                    job.id,
                    job.record.key_id,
                    job.record.priority,
                    has=sum(weights),
                    wants=len(waiting),
                    need=need,
                    weight=capacity.weight_of(need.processes, need.cpus, need.gpu_share),
                )
            )
            if waiting and need.gpu_share == 1.0:
                no_gpu[job.id] = {waiting[0]: free.why_not(need)}
        given, kept_for = allot(claims, free)
        for job in list(jobs):
            set_back = why_set_back((id, job.backoffs[id]) for id in job.waiting if id in job.backoffs)
            if given[job.id]:
                self._start_waiting(job, given[job.id])
            elif job.id != kept_for:
                self._record_waiting(job, set_back)
            elif free.is_placed:
                # Else some are just starting: who is where is known in a moment.
                self._record_waiting(job, {**no_gpu.get(job.id, {}), **set_back})

    def _record_waiting(self, job: ActiveJob, reasons: Mapping[str, str]) -> None:
        # A client who pauses and resumes a run between two looks has changed what is stored, and no state.
        if reasons != job.waits_for or (reasons and reasons != self._records.waits_for(job.id)):
            job.waits_for = reasons
            self._records.record_waiting(job.id, reasons)

    def _startable(self, job: ActiveJob) -> list[str]:
        """The waiting runs that may start next; one that wants a whole GPU starts by itself."""
        waiting = job.ready[: self._room(job)]
        return next(([run_id] for run_id in waiting if run_id in job.whole), waiting)

    @staticmethod
    def _room(job: ActiveJob) -> int | None:
        """How many more runs of the job may be at work; None is no limit."""
        at_once = job.record.parallel_runs
        at_work = sum(not work.task.actor_group.exports for work in job.runs.values())
        return None if at_once is None else max(0, at_once - at_work)

    def _start_waiting(self, job: ActiveJob, processes: int) -> None:
        """Start waiting runs of the job in so many processes."""
        wanted = self._startable(job)
        by_index = {run.index: run for run in self._records.runs(job.id) if run.id in wanted}
        specs = job.spec.runs()
        alone = {run.index for run in by_index.values() if run.id in job.alone}
        waiting = [specs[index] for index in by_index]
        for group in share_out(waiting, processes, job.spec.largest_group, alone):
            self._start_runs(job, [by_index[spec.index] for spec in group])

    def _start_runs(self, job: ActiveJob, runs: Sequence[RunRecord]) -> None:
        """Start runs that share their batches, or a single one, in one process."""
        able = [run for run in runs if not self._has_had_enough(run)]
        need = self._capacity.need_of(job.spec.training, whole=not job.whole.isdisjoint(run.id for run in able))
        if job.plan is None:
            return
        begun = self._records.start_attempts([run.id for run in able], _share_of(need))
        if not begun:
            return
        specs, name, share = job.spec.runs(), begun[0].actor or "", need.gpu_share
        stage = self._capacity.stage_of(job.spec.training, share)
        training_tasks = [self._training_task(job, job.plan, run, specs[run.index], share, stage) for run in begun]
        tasks = self._cluster.train(name, training_tasks, need.cpus, share)
        try:
            self._check_lease()
        except LeaseLost:
            # An engine that was stopped in the last few lines: its successor has looked for them, and found none.
            for task in tasks:
                task.close()
            raise
        for run, task in zip(begun, tasks, strict=True):
            job.runs[run.id] = Work(task, run.attempt, is_trained=run.epoch >= run.epochs)
            details = {"attempt": run.attempt, "name": run.name, "group": len(begun)}
            log.info("run started", job_id=job.id, run_id=run.id, **details)

    def _has_had_enough(self, run: RunRecord) -> bool:
        """Whether the run may not start again; then it has failed."""
        if run.lost_attempts < LOST_ATTEMPTS_EVER_MAX:
            return False
        backoff = read_backoff(run.backoff)
        last = "" if backoff is None else f", last: {backoff.last}"
        error = {"type": "TooManyLosses", "message": f"the run's process has vanished {run.lost_attempts} times{last}"}
        self._records.move_run(run.id, run.attempt, State.FAILED, error=error)
        return True

    def _training_task(
        self,
        job: ActiveJob,
        plan: CachePlan,
        run: RunRecord,
        spec: RunSpec,
        gpu_share: float,
        stage: Literal["all", "train"],
    ) -> TrainingTask:
        return task_of_run(
            job.spec,
            plan,
            spec,
            self._folders,
            self._run_folder(run) / f"a{run.attempt}",
            threads=max(1, int(self._capacity.run_cpus)),
            earlier=tuple(self._earlier(run)),
            told_epoch=run.epoch,
            gpu_share=gpu_share,
            checkpoint_s=self._settings.checkpoint_s,
            stage=stage,
        )

    def _run_folder(self, run: RunRecord) -> Path:
        return self._folders.jobs / run.job_id / run.id

    def _earlier(self, run: RunRecord) -> list[Path]:
        """The folders of earlier attempts, and of those of the run that this one tries again."""
        folders = [self._run_folder(run) / f"a{number}" for number in range(1, run.attempt)]
        while run.retry_of is not None:
            run = self._records.run(run.retry_of)
            folders += [self._run_folder(run) / f"a{number}" for number in range(1, run.attempt + 1)]
        return folders

    def _poll_run(self, job: ActiveJob, run_id: str, work: Work) -> None:
        events, outcome = self._ask(work)
        if events:
            progress = run_progress(events)
            if "epoch" in progress and job.backoffs.pop(run_id, None) is not None:
                progress["backoff"] = None
            self._records.record_events(job.id, run_id, work.attempt, events, progress=progress)
            work.task.acknowledge(events)
            if "epoch" in progress:
                work.is_trained = progress["epoch"] >= job.spec.training.epochs
                job.without_device.discard(run_id)
                self._disk.has_got_on(run_id)
        if outcome is None:
            return
        if is_trained(outcome) and work.requested is None:
            self._export(job, run_id, work, outcome)
            return
        if outcome.kind == "vanished" and (export := self._export_of(job, run_id, work)) is not None:
            job.runs[run_id] = Work(export, work.attempt, is_trained=True)
            return
        log.info("run ended", kind=outcome.kind, message=outcome.message)
        match outcome.kind:
            case "done" if is_trained(outcome):
                # It was told to put its work down, and there is some left.
                self._records.move_on(run_id, work.attempt, _PUT_DOWN)
            case "done":
                self._succeed(job, run_id, work, outcome)
            case "failed" | "vanished" if (reason := self._disk.reason(outcome)) is not None:
                self._put_aside(run_id, work, reason)
            case "failed" if self._is_worth_another_device(job, run_id, outcome):
                self._records.move_on(run_id, work.attempt, _GONE)
            case "failed" if outcome.error_type == "OutOfMemoryError" and self._can_have_more_memory(work):
                log.warning("out of memory: trying once more with a GPU for itself", reason=outcome.message)
                job.alone.add(run_id)
                job.whole.add(run_id)
                self._records.move_on(run_id, work.attempt, _GONE, needs_whole_gpu=True)
            case "failed":
                error = self._error_of_work(job, run_id, outcome)
                self._records.move_run(run_id, work.attempt, State.FAILED, error=error)
            case "stopped":
                self._records.move_run(run_id, work.attempt, State.CANCELLED)
            case "paused":
                self._records.move_on(run_id, work.attempt, _PUT_DOWN)
            case "vanished" if work.requested is not None:
                # It had not begun when it was told, or did not listen: that is no fault of the run's.
                self._records.move_on(run_id, work.attempt, _PUT_DOWN)
            case "vanished":
                self._lose_run(job, run_id, work, outcome)
        # Last, because until then a successor would find its outcome there.
        work.task.close()
        del job.runs[run_id]
        self._sweep(self._records.run(run_id))

    def _export_of(self, job: ActiveJob, run_id: str, work: Work) -> Task | None:
        """Whoever makes the artifacts of a run whose training process is gone: an engine that died had begun that."""
        if work.task.actor_group.exports:
            return None
        acknowledged = self._records.next_event(job.id, run_id, work.attempt)
        return self._find_export(self._records.run(run_id), acknowledged)

    @staticmethod
    def _can_have_more_memory(work: Work) -> bool:
        """Whether a run that had too little shared its process or its GPU."""
        return work.task.actor_group.tasks > 1 or 0.0 < work.task.actor_group.gpu_share < 1.0

    @staticmethod
    def _error_of_work(job: ActiveJob, id: str, outcome: TaskOutcome) -> Json:
        """What the API shows of the failure of a run, or of the caches, with what was tried against it."""
        error = error_of(outcome)
        if id == _CACHES and outcome.error_type in _ABOUT_TEACHER:
            error["message"] = f"{_teacher_of(job)}: {error['message']}"
        tried = None
        if outcome.error_type == "OutOfMemory" and id == _CACHES and id in job.whole:
            tried = (
                "It had a whole GPU to itself, after it had shared one: use a GPU with more memory, or the CPU with "
                "training.device 'cpu' or RETORT_GPUS=0"
            )
        elif outcome.error_type == "OutOfMemoryError" and id != _CACHES:
            again = ", after it had shared one" if id in job.whole else ""
            tried = f"It had a process, and a whole GPU if it was on one, to itself{again}: use a smaller batch_size"
        elif outcome.error_type == "DeviceUnavailable":
            tried = "It was tried twice, in a fresh process each time"
        return error if tried is None else {**error, "message": f"{error['message']} ({tried})"}

    def _succeed(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        """List what the run has left."""
        attempt = self._folders.jobs / job.id / run_id / f"a{work.attempt}"
        try:
            artifacts = list_artifacts(attempt, self._folders.data_dir)
        except OSError as error:
            message = f"the run's artifacts cannot be listed: {error}"
            if (code := disk_error(error)) is not None:
                self._put_aside(run_id, work, self._disk.reason_of(code, message))
                return
            why = {"type": type(error).__name__, "message": message}
            self._records.move_run(run_id, work.attempt, State.FAILED, error=why)
            return
        self._records.record_result(run_id, work.attempt, artifacts, outcome.value or {})

    def _put_aside(self, run_id: str, work: Work, reason: Json) -> None:
        """A run has ended because of the disk: it is no failure and no loss."""
        self._disk.count(run_id)
        state = self._records.set_run_aside(run_id, work.attempt, reason)
        log.warning("run set aside", state=state, reason=reason["message"])

    def _sweep(self, run: RunRecord) -> None:
        """Take away what no later attempt, and nobody who retries the run, has a use for.

        What a disk does not let go of now is taken away with what the run leaves at its next end.
        """
        # A client may delete the run just now.
        with passing_over_disk_errors(), suppress(FileNotFoundError):
            self._remove_rests(run)

    def _remove_rests(self, run: RunRecord) -> None:
        if run.state in WORKING:
            return
        folder, has_succeeded = self._run_folder(run), run.state is State.SUCCEEDED
        sweep_attempts(folder, folder / f"a{run.attempt}" if has_succeeded else None, checkpoints=has_succeeded)
        with suppress(NotFound):
            # Of what has ended; it may be deleted meanwhile.
            while has_succeeded and run.retry_of is not None:
                run = self._records.run(run.retry_of)
                sweep_attempts(self._run_folder(run), None, checkpoints=True)

    def _lose_run(self, job: ActiveJob, run_id: str, work: Work, outcome: TaskOutcome) -> None:
        if not outcome.is_node_fault:
            # Whatever ended the process, the runs that were trained in it shall not end each other again. Where others
            # have the memory, several processes in the place of one would only take more.
            job.alone.add(run_id)
        backoff = job.lost(run_id, outcome.message or "", is_node_fault=outcome.is_node_fault)
        if backoff.faults > LOST_ATTEMPTS_MAX and job.states.get(run_id) is State.RUNNING:
            message = f"the run's process vanished {backoff.lost_attempts} times, last: {outcome.message}"
            error = {"type": outcome.error_type, "message": message}
            self._records.move_run(run_id, work.attempt, State.FAILED, error=error)
        else:
            self._records.move_on(run_id, work.attempt, _GONE, backoff=backoff)
            if not backoff.is_over:
                # As it is stored with the move: it is taken away when the run starts, or waits for something else.
                job.waits_for = {**job.waits_for, run_id: backoff.waits_for}
