"""Context of the scheduler's parts: the database, the cluster, the disk, the active jobs, and what all of them ask."""

from collections.abc import Mapping
from pathlib import Path

import structlog

from service.db.engine_queries import EngineQueries
from service.db.models import RunRecord
from service.engine.active_jobs import ActiveJob
from service.engine.cache_leases import CacheLeases
from service.engine.capacity import Capacity, choose_capacity, slots_of
from service.engine.disk import EngineDisk
from service.errors import LeaseLost
from service.gpus import GpuWatch
from service.operations.readiness import EngineParts
from service.settings import Settings
from store import Catalog
from workers.cluster.outcomes import TaskOutcome
from workers.cluster.ray_cluster import Cluster
from workers.config.task import Folders
from workers.texts import without_folders

log = structlog.get_logger("retort.engine")


class EngineContext:
    """State and questions that the parts of one engine share.

    Args:
        settings: of this process.
        queries: the database, migrated, for a holder of the lease.
        parts: what is said of readiness.

    Attributes:
        disk: whether new work may begin, and what is set aside.
        jobs: those that this engine works on, by id.
        folders: where workers find and leave files.
        folder_names: what clients read in the place of absolute paths.
        leases: of the caches of jobs that have not ended.
        cluster, gpus, capacity: since ``connect``.
    """

    cluster: Cluster
    gpus: GpuWatch
    capacity: Capacity

    def __init__(self, settings: Settings, queries: EngineQueries, parts: EngineParts) -> None:
        self.settings = settings
        self.queries = queries
        self.disk = EngineDisk(settings, queries, parts)
        self.jobs: dict[str, ActiveJob] = {}
        self.folders = Folders(data_dir=settings.data_dir.resolve(), data_root=settings.data_root.resolve())
        self.folder_names = settings.folder_names
        self.leases = CacheLeases(Catalog(self.folders.caches))

    def connect(self, cluster: Cluster, gpus: GpuWatch) -> None:
        """Use this cluster from now on; no job of an earlier one is active any more.

        Raises:
            InvalidSettings: no run could ever start there.
        """
        self.cluster, self.gpus = cluster, gpus
        self.choose_capacity()
        self.jobs.clear()

    def choose_capacity(self) -> None:
        """Choose what runs get, by what is known of the GPUs, and log it."""
        cluster, report = self.cluster, self.gpus.report
        memory = None if report is None else report.memory_bytes
        self.capacity = chosen = choose_capacity(self.settings, cluster.cpus, cluster.gpus, memory)
        shares = {"run_cpus": chosen.run_cpus, "gpu_share": chosen.gpu_share if cluster.gpus else 0.0}
        log.info("runs at once", slots=chosen.slots, **shares, reason=chosen.reason)

    def record_capacity(self) -> None:
        """Store for estimates how many runs fit at once."""
        self.queries.record_capacity(slots_of(self.capacity).model_dump())

    def look_at_gpus(self) -> None:
        """Take the report of GPUs that were tried again, and choose anew what runs get, if none is under way."""
        self.gpus.begin_again()
        if self.gpus.poll() is not None:
            self.record_gpus()
            if not any(job.runs for job in self.jobs.values()):
                # What was chosen without knowing the memory of GPUs that work by now.
                self.choose_capacity()
                self.record_capacity()

    def record_gpus(self) -> None:
        """Store for health and doctor whether the GPUs work."""
        report = self.gpus.report
        if report is None:
            return
        self.queries.record_gpus(report.model_dump(mode="json"))
        self.disk.parts.set("gpu", report.reason)
        if report.reason is not None:
            log.error("GPUs do not work", reason=report.reason)
        elif report.promised:
            log.info("GPUs work", names=report.names, memory_bytes=report.memory_bytes)

    def record_waiting(self, job: ActiveJob, reasons: Mapping[str, str]) -> None:
        """Store why runs of a job wait although it is their turn, if that has changed."""
        # A client who pauses and resumes a run between two looks has changed what is stored, and no state.
        if reasons != job.waits_for or (reasons and reasons != self.queries.waits_for(job.id)):
            job.waits_for = reasons
            self.queries.record_waiting(job.id, reasons)

    def check_lease(self) -> None:
        """Ask for the lease before what no transaction can undo. Raises LeaseLost."""
        if self.queries.lease().holder != self.queries.holder:
            raise LeaseLost(f"{self.queries.holder} ends: another engine leads, and what runs is its")

    def shown(self, outcome: TaskOutcome | None) -> TaskOutcome | None:
        """An outcome without paths of this machine: clients read its message."""
        if outcome is None:
            return None
        return outcome.model_copy(update={"message": without_folders(outcome.message, self.folder_names)})

    def run_folder(self, run: RunRecord) -> Path:
        """The folder of a run, with one for each of its attempts."""
        return self.folders.jobs / run.job_id / run.id

    def forwards_in(self, job_id: str) -> Path:
        """The folder of the counters of what the teacher was run on for a job, see ``workers.teacher.forwards``."""
        return self.folders.jobs / job_id / "forwards"
