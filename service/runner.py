"""The engine: takes jobs from the database, has them done on the cluster, and writes down what happened.

A single loop in a process of its own; the only writer of what workers tell, and the only one who moves states (a
client may cancel). It keeps nothing that it cannot find again: killed at any moment, its successor adopts the
unfinished jobs, whose committed blocks and checkpoints are where they were. One engine leads, by a lease in the
database; a second one waits for it.

How a piece of work ends decides what comes next: what raised has *failed* and is not tried again, what vanished is
*lost* and starts again from its checkpoint, at most ``LOSSES_MAX`` times without a finished epoch in between.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from service.errors import InvalidSettings
from service.holds import CacheHolds
from service.jobs import TERMINAL, State
from service.records import Records
from service.settings import Settings
from service.tables import JobRecord, Json, RunRecord
from store import Catalog
from workers.artifacts import ARTIFACTS, CHECKPOINT, MEDIA_TYPES
from workers.caching import CachePlan, file_sha256
from workers.cluster import Cluster, Task
from workers.config import Folders, JobSpec, RunSpec, TrainingOrder
from workers.outcomes import Numbered, Outcome
from workers.pipeline import order_run, share_out

log = structlog.get_logger("retort.engine")

LOSSES_MAX = 3
# Whatever the cause, kills of the engine included: a run that takes the engine down with it must end some time.
ATTEMPTS_MAX = 100
ACTIVE_JOBS_MAX = 8
# A task that was told to stop and has not after so long is killed: it stops at its next batch or block.
STOP_GRACE_S = 30.0


def job_spec(job: JobRecord, settings: Settings) -> JobSpec:
    """The job as the workers want it: its plan, with the teacher's file in place of its id."""
    teacher = job.teacher
    return JobSpec.model_validate(
        {
            **job.plan,
            "teacher": {
                "path": settings.teacher_path(teacher["sha256"]),
                "sha256": teacher["sha256"],
                "output": teacher["output"],
                "preprocessing": teacher["preprocessing"],
            },
        }
    )


def run_slots(settings: Settings, cpus: int, gpus: int) -> int:
    """How many runs fit at once: by cores, and on GPUs by whole shares of each.

    Raises:
        InvalidSettings: one run asks for more cores than there are, so none could ever start.
    """
    slots = int(cpus / settings.run_cpus)
    if slots < 1:
        raise InvalidSettings(
            f"RETORT_RUN_CPUS is {settings.run_cpus:g}, but the engine has {cpus} cores: a run would wait for ever. "
            f"Set it to {cpus} or less, or RETORT_CPUS to more"
        )
    return min(slots, gpus * int(1 / settings.gpu_share)) if gpus else slots


def error_of(outcome: Outcome) -> Json:
    """What the API shows of a failure."""
    return {"type": outcome.error_type, "message": outcome.message}


def list_artifacts(folder: Path, data_dir: Path) -> list[Json]:
    """Rows for ``Records.record_artifacts``: every file of a finished attempt, with its digest."""
    rows = []
    for path in sorted((folder / ARTIFACTS).iterdir()):
        rows.append(
            {
                "name": path.name,
                "path": path.relative_to(data_dir).as_posix(),
                "size_bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "media_type": MEDIA_TYPES[path.name],
            }
        )
    return rows


# ---------------------------------------------------------------------------------------- active work


@dataclass
class _Work:
    """A task under way. ``stopping_since`` is a ``time.monotonic`` value once it was told to stop."""

    task: Task
    attempt: int
    stopping_since: float | None = None

    def stop(self) -> None:
        """Tell it once, and kill it if it does not listen."""
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.task.stop()
        elif time.monotonic() - self.stopping_since > STOP_GRACE_S:
            self.task.close()


@dataclass
class _ActiveJob:
    """A job that this engine works on: its caches first, then its runs. ``alone``: runs that share no process."""

    id: str
    attempt: int
    spec: JobSpec
    progress: "_CacheProgress"
    caches: _Work | None = None
    plan: CachePlan | None = None
    runs: dict[str, _Work] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)


class Engine:
    """One leading engine's work; ``tick`` does what is to be done now and never waits.

    Args:
        settings: of this process.
        records: the database, migrated.
        cluster: where work is done.
        holder: this engine's name in the lease.
    """

    def __init__(self, settings: Settings, records: Records, cluster: Cluster, holder: str) -> None:
        self._settings = settings
        self._records = records
        self._cluster = cluster
        self._holder = holder
        self._jobs: dict[str, _ActiveJob] = {}
        data_dir = settings.data_dir.resolve()
        self._folders = Folders(data_dir=data_dir, data_root=settings.data_root.resolve())
        self._holds = CacheHolds(Catalog(self._folders.caches))
        self._slots = run_slots(settings, cluster.cpus, cluster.gpus)

    # -------------------------------------------------------------------------------------- the loop's parts

    def recover(self) -> None:
        """Adopt what an earlier engine left unfinished; its runs are lost and start again."""
        unfinished = self._records.unfinished_jobs()
        # All of them before the first one makes room for itself.
        for job in unfinished:
            self._holds.take(job.id, (job.caches or {}).values())
        for job in unfinished:
            adopted = self._records.adopt_job(job.id, self._holder)
            if adopted is None:
                self._forget(job.id)
                continue
            for run in self._records.runs(job.id):
                if run.state in {State.RUNNING, State.CANCELLING}:
                    self._records.move_run(run.id, run.attempt, State.LOST)
            log.info("job adopted", job_id=job.id, attempt=adopted.attempt)
            self._begin(adopted)

    def tick(self) -> None:
        """Advance every job by what has happened since the last call, and claim new ones."""
        for job in list(self._jobs.values()):
            self._advance(job)
        while len(self._jobs) < ACTIVE_JOBS_MAX:
            claimed = self._records.claim_job(self._holder)
            if claimed is None:
                return
            log.info("job claimed", job_id=claimed.id)
            self._begin(claimed)

    # --------------------------------------------------------------------------------------------- one job

    def _begin(self, record: JobRecord) -> None:
        try:
            spec = job_spec(record, self._settings)
        except (ValueError, LookupError) as error:
            # Stored by another version, say. Raised from here it would stop the engine at every start.
            self._fail(record.id, record.attempt, {"type": type(error).__name__, "message": str(error)})
            return
        spent = (record.teacher_forwards or {}).get("run", 0)
        job = _ActiveJob(record.id, record.attempt, spec, _CacheProgress(spent))
        self._jobs[job.id] = job
        if not self._records.is_cancelling(job.id):
            self._build_caches(job)

    def _build_caches(self, job: _ActiveJob) -> None:
        settings = self._settings
        task = self._cluster.build_caches(job.spec, self._folders, settings.gpu_share, settings.caches_max_bytes)
        job.caches = _Work(task, job.attempt)

    def _advance(self, job: _ActiveJob) -> None:
        cancelling = self._records.is_cancelling(job.id)
        if cancelling:
            for work in [job.caches, *job.runs.values()]:
                if work is not None:
                    work.stop()
        if job.caches is not None:
            self._poll_caches(job, job.caches)
        for run_id, work in list(job.runs.items()):
            self._poll_run(job, run_id, work)
        if job.id not in self._jobs:
            return
        if cancelling:
            if job.caches is None and not job.runs:
                self._end_cancelled(job)
        elif job.plan is not None and self._free_slots() > 0:
            self._start_runs_or_end(job)

    def _free_slots(self) -> int:
        crews = {work.task.crew for job in self._jobs.values() for work in job.runs.values()}
        return self._slots - sum(crew.size for crew in crews)

    def _poll_caches(self, job: _ActiveJob, work: _Work) -> None:
        events, outcome = work.task.poll()
        if events:
            progress = job.progress.columns(events)
            self._records.record_events(job.id, None, job.attempt, events, progress=progress)
        if outcome is None:
            return
        if outcome.value is not None:
            self._take_caches(job, outcome.value)
        # Its process holds the caches, so it ends after they were taken.
        work.task.close()
        job.caches = None
        if outcome.kind == "failed":
            self._fail(job.id, job.attempt, error_of(outcome))
        elif outcome.kind == "vanished" and not self._records.is_cancelling(job.id):
            self._retry_caches(job, outcome)

    def _take_caches(self, job: _ActiveJob, value: Json) -> None:
        """The caches are complete: from here on they are held for the job's runs."""
        job.plan = CachePlan.model_validate(value["plan"])
        caches = {"train": job.plan.train_cache.key, "test": job.plan.test_cache.key}
        self._holds.take(job.id, caches.values())
        spent = job.progress.spent_before
        self._records.update_job(
            job.id,
            attempt=job.attempt,
            stage="training",
            caches=caches,
            teacher_forwards={
                "run": value["teacher_forwards"] + spent,
                "avoided": value["teacher_forwards_avoided"] - spent,
            },
            teacher_accuracy=value["teacher_accuracy"],
        )

    def _retry_caches(self, job: _ActiveJob, outcome: Outcome) -> None:
        losses = job.losses["caches"] = job.losses.get("caches", 0) + 1
        log.warning("inference vanished", job_id=job.id, losses=losses, reason=outcome.message)
        if losses > LOSSES_MAX:
            self._fail(job.id, job.attempt, error_of(outcome))
            return
        # A new attempt, because a new actor numbers its events from the start; the state stays what it is.
        adopted = self._records.adopt_job(job.id, self._holder)
        if adopted is None:
            self._forget(job.id)
            return
        job.attempt = adopted.attempt
        job.progress = _CacheProgress((adopted.teacher_forwards or {}).get("run", 0))
        self._build_caches(job)

    def _fail(self, job_id: str, attempt: int, error: Json) -> None:
        """The job ends before its runs could: they are cancelled, saying why."""
        why = {"type": "JobFailed", "message": f"the job failed before this run could end: {error['message']}"}
        for run in self._records.runs(job_id):
            if run.state not in TERMINAL:
                self._records.move_run(run.id, run.attempt, State.CANCELLED, error=why)
        self._records.move_job(job_id, State.FAILED, error=error, attempt=attempt)
        log.warning("job failed", job_id=job_id, error=error)
        self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        self._holds.release(job_id)
        self._jobs.pop(job_id, None)

    def _end_cancelled(self, job: _ActiveJob) -> None:
        for run in self._records.runs(job.id):
            if run.state not in TERMINAL:
                self._records.move_run(run.id, run.attempt, State.CANCELLED)
        self._records.move_job(job.id, State.CANCELLED, attempt=job.attempt)
        log.info("job cancelled", job_id=job.id)
        self._forget(job.id)

    # -------------------------------------------------------------------------------------------- its runs

    def _start_runs_or_end(self, job: _ActiveJob) -> None:
        """Fill free slots with the job's waiting runs; without any left, the job is over."""
        runs = self._records.runs(job.id)
        waiting = [run for run in runs if run.state in {State.QUEUED, State.LOST}]
        specs = job.spec.runs()
        actors = job.spec.training.actors
        if actors > self._slots:
            message = (
                f"training.actors is {actors}, but the engine has room for {self._slots} at once: "
                f"use {self._slots} or fewer, or give the engine more with RETORT_CPUS or RETORT_GPUS"
            )
            self._fail(job.id, job.attempt, {"type": "TooFewSlots", "message": message})
            return
        by_index = {run.index: run for run in waiting}
        alone = {run.index for run in waiting if run.id in job.alone}
        together = [specs[run.index] for run in waiting]
        for group in share_out(together, self._free_slots() // actors, job.spec.largest_group, alone):
            self._start_runs(job, [by_index[spec.index] for spec in group], group)
        if not waiting and not job.runs:
            self._end(job, runs)

    def _start_runs(self, job: _ActiveJob, runs: Sequence[RunRecord], specs: Sequence[RunSpec]) -> None:
        """Start runs that share their batches, or a single one, in one process."""
        begun = [
            (run.id, attempt, self._order(job, job.plan, run, spec, attempt))
            for run, spec in zip(runs, specs, strict=True)
            if job.plan is not None and (attempt := self._next_attempt(run)) is not None
        ]
        if not begun:
            return
        orders = [order for _, _, order in begun]
        tasks = self._cluster.train(orders, self._settings.run_cpus, self._settings.gpu_share)
        for (run_id, attempt, order), task in zip(begun, tasks, strict=True):
            job.runs[run_id] = _Work(task, attempt)
            told = {"attempt": attempt, "name": order.run.name, "group": len(begun)}
            log.info("run started", job_id=job.id, run_id=run_id, **told)

    def _next_attempt(self, run: RunRecord) -> int | None:
        """The number of the run's next attempt, which begins; None if it may not have one."""
        if run.attempt >= ATTEMPTS_MAX:
            error = {"type": "TooManyAttempts", "message": f"the run did not end in {run.attempt} attempts"}
            self._records.move_run(run.id, run.attempt, State.FAILED, error=error)
            return None
        return self._records.start_attempt(run.id)

    def _order(self, job: _ActiveJob, plan: CachePlan, run: RunRecord, spec: RunSpec, attempt: int) -> TrainingOrder:
        folder = self._folders.jobs / job.id / run.id
        return order_run(
            job.spec,
            plan,
            spec,
            self._folders,
            folder / f"a{attempt}",
            threads=max(1, int(self._settings.run_cpus)),
            earlier=tuple(folder / f"a{number}" for number in range(1, attempt)),
            told_epoch=run.epoch,
            memory_fraction=self._settings.gpu_share,
            checkpoint_s=self._settings.checkpoint_s,
        )

    def _poll_run(self, job: _ActiveJob, run_id: str, work: _Work) -> None:
        events, outcome = work.task.poll()
        if events:
            progress = _run_progress(events)
            self._records.record_events(job.id, run_id, work.attempt, events, progress=progress)
            if "epoch" in progress:
                job.losses.pop(run_id, None)
        if outcome is None:
            return
        work.task.close()
        del job.runs[run_id]
        log.info("run ended", job_id=job.id, run_id=run_id, kind=outcome.kind, message=outcome.message)
        match outcome.kind:
            case "done":
                self._succeed(job, run_id, work, outcome)
            case "failed" if outcome.error_type == "OutOfMemoryError" and work.task.crew.tasks > 1:
                # Alone on its GPU it may fit.
                self._lose_run(job, run_id, work, outcome)
            case "failed":
                self._records.move_run(run_id, work.attempt, State.FAILED, error=error_of(outcome))
            case "stopped":
                self._records.move_run(run_id, work.attempt, State.CANCELLED)
            case "vanished":
                self._lose_run(job, run_id, work, outcome)

    def _succeed(self, job: _ActiveJob, run_id: str, work: _Work, outcome: Outcome) -> None:
        """List what the run has left; its checkpoints have done their duty."""
        folder = self._folders.jobs / job.id / run_id
        try:
            artifacts = list_artifacts(folder / f"a{work.attempt}", self._folders.data_dir)
        except (OSError, KeyError) as error:
            why = {"type": type(error).__name__, "message": f"the run's artifacts cannot be listed: {error}"}
            self._records.move_run(run_id, work.attempt, State.FAILED, error=why)
            return
        self._records.record_artifacts(run_id, work.attempt, artifacts)
        if self._records.move_run(run_id, work.attempt, State.SUCCEEDED, result=outcome.value):
            for checkpoint in folder.glob(f"a*/{CHECKPOINT}"):
                checkpoint.unlink(missing_ok=True)

    def _lose_run(self, job: _ActiveJob, run_id: str, work: _Work, outcome: Outcome) -> None:
        if work.stopping_since is not None:
            # It was killed because it did not stop: that is what was wanted.
            self._records.move_run(run_id, work.attempt, State.CANCELLED)
            return
        # Whatever ended the process, the runs that were trained in it shall not end each other again.
        job.alone.add(run_id)
        losses = job.losses[run_id] = job.losses.get(run_id, 0) + 1
        if losses > LOSSES_MAX:
            message = f"the run's process vanished {losses} times, last: {outcome.message}"
            error = {"type": outcome.error_type, "message": message}
            self._records.move_run(run_id, work.attempt, State.FAILED, error=error)
        else:
            self._records.move_run(run_id, work.attempt, State.LOST)

    def _end(self, job: _ActiveJob, runs: Sequence[RunRecord]) -> None:
        failed = [run for run in runs if run.state is State.FAILED]
        if failed:
            first = (failed[0].error or {}).get("message")
            message = f"{len(failed)} of {len(runs)} runs failed; the first, {failed[0].name!r}: {first}"
            error = {"type": "RunsFailed", "message": message}
            self._records.move_job(job.id, State.FAILED, error=error, attempt=job.attempt)
        elif any(run.state is State.CANCELLED for run in runs):
            self._records.move_job(job.id, State.CANCELLED, attempt=job.attempt)
        else:
            self._records.move_job(job.id, State.SUCCEEDED, attempt=job.attempt)
        log.info("job ended", job_id=job.id, failed=len(failed), runs=len(runs))
        self._forget(job.id)


# ------------------------------------------------------------------------------------------- progress


class _CacheProgress:
    """What a job's events say of its caches and of the teacher's work, over all events of one attempt.

    Attributes:
        spent_before: forward passes that earlier attempts have run.
    """

    def __init__(self, spent_before: int) -> None:
        self.spent_before = spent_before
        self._contract = 0
        self._inferred: dict[str, int] = {}
        self._keys: dict[str, str] = {}

    def columns(self, events: Sequence[Numbered]) -> Mapping[str, Any]:
        """Columns of the job that follow from its events."""
        columns: dict[str, Any] = {}
        for _, event in events:
            match event["type"]:
                case "stage":
                    columns["stage"] = event["stage"]
                case "contract_checked":
                    self._contract = event["forwards"]
                case "inference_progress":
                    self._keys[event["split"]] = event["cache"]
                    self._inferred[event["split"]] = event["rows_inferred"]
                    columns["caches"] = dict(self._keys)
                    if event["split"] == "train":
                        names = ("rows_done", "rows_total", "rows_per_s", "eta_s")
                        columns["inference"] = {name: event[name] for name in names}
        run = self.spent_before + self._contract + sum(self._inferred.values())
        # What is avoided is known when both caches are complete.
        return {**columns, "teacher_forwards": {"run": run, "avoided": 0}}


def _run_progress(events: Sequence[Numbered]) -> Mapping[str, Any]:
    """Columns of the run that follow from its events."""
    progress: dict[str, Any] = {}
    for _, event in events:
        match event["type"]:
            case "step":
                names = ("epoch", "step", "steps", "loss", "images_per_s")
                progress["progress"] = {name: event[name] for name in names}
            case "epoch":
                progress |= {"epoch": event["epoch"], "metrics": event["metrics"], "progress": None}
    return progress
