"""Active jobs of an engine, and the tasks of each on the cluster. Kept in memory alone."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from service.db.models import JobRecord, Json, RunRecord
from service.db.scheduling.backoff import Backoff, after_loss, read_backoff
from service.db.states import State
from service.engine.allocation import Need
from service.engine.progress import CacheProgress
from workers.cluster.actor_group import ActorGroup
from workers.cluster.actors import Task
from workers.cluster.outcomes import Share
from workers.config.job import JobSpec
from workers.teacher.cache_plan import CachePlan

# A task that was asked to stop and has not after so long is killed: it stops at its next batch or block.
STOP_GRACE_S = 30.0
LOST_ATTEMPTS_MAX = 3
# Each is looked at several times a second. Beyond the first number only what would otherwise wait for others is taken.
ACTIVE_JOBS_MAX = 8
ACTIVE_JOBS_EVER_MAX = 64
# Of one API key, urgent ones included: whatever they do, as many again are there for others.
KEY_ACTIVE_JOBS_MAX = 32
# What a job's caches are counted under, beside its runs.
CACHES = "caches"
# What becomes of a run by what was wanted of it, when its process is gone and when it has put its work down.
GONE = MappingProxyType({State.RUNNING: State.LOST, State.PAUSING: State.PAUSED, State.CANCELLING: State.CANCELLED})
PUT_DOWN = MappingProxyType({**GONE, State.RUNNING: State.QUEUED})


def share_of(need: Need) -> Json:
    """``RunRecord.share``: what each process of a run is given."""
    return {"processes": need.processes, "cpus": need.cpus, "gpu_share": need.gpu_share}


@dataclass
class Work:
    """A task under way.

    Attributes:
        is_trained: whether all that is left of a run is its artifacts, whoever makes them.
        requested: pausing or cancelling, once it was asked to.
        requested_at: when, a ``time.monotonic`` value.
    """

    task: Task
    attempt: int
    is_trained: bool = False
    requested: State | None = None
    requested_at: float = 0.0

    def request_stop(self, wanted: State) -> None:
        """Have it pause or stop if the state says so, by asking it once, and kill it if it does not react."""
        if wanted not in {State.PAUSING, State.CANCELLING}:
            return
        if self.requested is wanted:
            if time.monotonic() - self.requested_at > STOP_GRACE_S:
                self.task.kill()
            return
        self.requested, self.requested_at = wanted, time.monotonic()
        if wanted is State.PAUSING:
            self.task.pause()
        else:
            self.task.stop()

    def request_end(self, wanted: State) -> None:
        """Have a run pause or stop, if that is wanted; one that only writes its artifacts is ended at once.

        An export listens to nobody, for seconds or minutes. What it has half-written is swept away, and its last
        checkpoint is there for whoever resumes it. Where other runs share its process, it listens between the files.
        """
        self.request_stop(wanted)
        if self.requested is not None and self.is_trained and self.task.actor_group.open_tasks == 1:
            self.task.kill()


@dataclass
class ActiveJob:
    """A job that this engine works on: its caches first, then its runs.

    Attributes:
        state, states: of the job and of its runs, as of the last look; None is a job that is gone.
        caches: the process that builds its caches, if there is one.
        has_built: whether this engine has begun its caches before.
        cache_plan: once its caches are complete; what its runs are trained on.
        known: runs that are in ``spec``, by id.
        checked: runs whose students and methods were checked when this engine completed the caches.
        checking: those that ``caches`` checks now.
        checks_apart: whether each block of runs is checked by itself, since a check of several has failed.
        runs: the processes that train its runs or write their artifacts, by run id.
        backoffs: of runs, and of ``caches``, that were lost since they last came on; stored, too.
        alone: runs that share no process.
        whole: runs, and ``caches``, that share no GPU either: a share of one was too small. Those of runs are stored.
        waits_for: what was stored last of why runs wait although it is their turn, by id.
        without_device: runs, and ``caches``, that have failed once because their GPU does not work.
    """

    record: JobRecord
    attempt: int
    spec: JobSpec
    progress: CacheProgress
    state: State | None
    states: Mapping[str, State] = field(default_factory=dict)
    caches: Work | None = None
    has_built: bool = False
    cache_plan: CachePlan | None = None
    known: set[str] = field(default_factory=set)
    checked: set[str] = field(default_factory=set)
    checking: frozenset[str] = frozenset()
    checks_apart: bool = False
    runs: dict[str, Work] = field(default_factory=dict)
    backoffs: dict[str, Backoff] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    without_device: set[str] = field(default_factory=set)
    waits_for: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, record: JobRecord, runs: Sequence[RunRecord], spec: JobSpec, progress: CacheProgress) -> Self:
        """A claimed or adopted job, with what is stored of its runs."""
        planned = 1 if spec.evaluate else sum(block.count for block in spec.blocks)
        whole = {run.id for run in runs if run.whole_gpu}
        stored = {CACHES: record.backoff, **{run.id: run.backoff for run in runs}}
        return cls(
            record,
            record.attempt,
            spec,
            progress,
            state=record.state,
            # Others were added since the plan was read.
            known={run.id for run in runs if run.index < planned},
            whole=whole,
            alone={*whole},
            waits_for={run.id: run.waits_for for run in runs if run.waits_for is not None},
            backoffs={id: backoff for id, json in stored.items() if (backoff := read_backoff(json)) is not None},
        )

    @property
    def id(self) -> str:
        """Of the job."""
        return self.record.id

    @property
    def actor_groups(self) -> set[ActorGroup]:
        """The processes that train its runs; those that only write artifacts hold nothing."""
        return {work.task.actor_group for work in self.runs.values() if not work.task.actor_group.exports}

    def held(self) -> Iterator[tuple[str, Share]]:
        """Shares of the machine that its processes hold or have asked for, each with a name for a person."""
        for actor_group in self.actor_groups:
            names = [run_id for run_id, work in self.runs.items() if work.task.actor_group is actor_group]
            yield from ((f"run {' and '.join(names)}", share) for share in actor_group.shares)
        if self.caches is not None:
            yield from ((f"the inference of job {self.id}", share) for share in self.caches.task.actor_group.shares)

    @property
    def waiting(self) -> list[str]:
        """Runs that nobody trains and somebody wants, in the order of the plan."""
        return [run_id for run_id, state in self.states.items() if state in {State.QUEUED, State.LOST}]

    @property
    def unchecked(self) -> list[str]:
        """Runs that wait for the caches: all of them at first, and those that were added later."""
        return [run_id for run_id in self.waiting if run_id in self.known and run_id not in self.checked]

    @property
    def ready(self) -> list[str]:
        """Runs that may start, in the order of the plan: they were checked, and their backoff is over."""
        return [run_id for run_id in self.waiting if run_id in self.checked and self.may_start(run_id)]

    def may_start(self, id: str) -> bool:
        """Whether a run, or ``caches``, is not kept from starting by what was lost of it."""
        return id not in self.backoffs or self.backoffs[id].is_over

    def lost(self, id: str, last: str, *, is_node_fault: bool) -> Backoff:
        """Count one more loss of a run, or of ``caches``."""
        self.backoffs[id] = after_loss(self.backoffs.get(id), last, is_node_fault=is_node_fault)
        return self.backoffs[id]


def has_turn(active: Collection[ActiveJob], job: JobRecord) -> bool:
    """Whether to take this job as well: nobody's jobs shall keep those of another key, or urgent ones, waiting."""
    if len(active) < ACTIVE_JOBS_MAX:
        return True
    own = sum(other.record.key_id == job.key_id for other in active)
    is_urgent = all(job.priority > other.record.priority for other in active)
    return own == 0 or (is_urgent and own < KEY_ACTIVE_JOBS_MAX)
