"""Deletion of jobs, runs, datasets and teachers, with their files: the rows first, the files afterwards.

The transaction that deletes the rows leaves a tombstone (``DeletedPathRecord``) for each file or folder that nobody
names any more, see ``tombstones``.

Nothing is deleted that live work needs: a job that has not ended, a run whose checkpoint a live retry may go on from or
whose weights a live job begins with, a dataset or teacher of a live job. Retries that have ended keep their epochs
(``packed_events.hand_over_epochs``) and become retries of what the deleted run was a retry of.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.deletions.first_weights import first_weights_in_use
from service.db.deletions.tombstones import Tombstones, bury, has_teacher
from service.db.job_teachers import live_users
from service.db.models import (
    DatasetRecord,
    DeletedSumRecord,
    EventRecord,
    JobRecord,
    PackedEventsRecord,
    RunRecord,
    TeacherRecord,
    utc_now,
)
from service.db.queries.api_queries import DATASET
from service.db.queries.packed_events import compact, hand_over_epochs
from service.db.states import LIVE
from service.db.transitions import existing, runs_of
from service.errors import Conflict
from service.settings import Settings
from workers.config.dataset import DatasetSpec
from workers.data.preparation import decoded
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset
from workers.texts import some_of

# With more events than this a job is compacted before it is deleted: one transaction holds up every other writer.
EVENTS_AT_ONCE = 20_000
_NAMED_MAX = 3


class Deleter:
    """Deletes for clients and for retention, in any process of the service.

    Args:
        database: migrated to head.
        settings: where the files are.

    Attributes:
        tombstones: of the files whose rows are gone.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self._settings = settings
        self.tombstones = Tombstones(database, settings)

    # -------------------------------------------------------------------------------------------------- jobs, runs

    def delete_job(self, job_id: str) -> int:
        """Delete a job that has ended: rows, events, idempotency keys, folders. Returns the bytes of its files.

        Raises:
            NotFound.
            Conflict: it has not ended, is pinned, or a live retry needs it.
        """
        with self.database.read() as session:
            check_job(session, existing(session, JobRecord, job_id))
            events = select(func.count()).select_from(EventRecord).where(EventRecord.job_id == job_id)
            is_long = (session.scalar(events) or 0) > EVENTS_AT_ONCE
        if is_long:
            compact(self.database, job_id)
        path = f"jobs/{job_id}"
        with self.database.write() as session:
            job = existing(session, JobRecord, job_id)
            check_job(session, job)
            runs = list(session.scalars(runs_of(job_id)))
            for run in runs:
                _unlink_run(session, run)
            children, parent = JobRecord.retry_of == job_id, job.retry_of
            session.execute(update(JobRecord).where(children).values(retry_of=parent))
            _add_sums(session, {**_sums_of_runs(runs), **_sums_of_job(job)})
            session.execute(delete(JobRecord).where(JobRecord.id == job_id))
            bury(session, [path])
        return self.tombstones.remove(path)

    def delete_run(self, run_id: str) -> int:
        """Delete a run of a job that has ended; the job's other runs stay. Returns the bytes of its files.

        Raises:
            NotFound.
            Conflict: its job has not ended or is pinned, or a live retry needs it.
        """
        with self.database.write() as session:
            run = existing(session, RunRecord, run_id)
            check_deletable(session, session.get_one(JobRecord, run.job_id), [run_id])
            path = f"jobs/{run.job_id}/{run_id}"
            _unlink_run(session, run)
            _add_sums(session, _sums_of_runs([run]))
            session.execute(delete(EventRecord).where(EventRecord.run_id == run_id))
            session.execute(delete(PackedEventsRecord).where(PackedEventsRecord.run_id == run_id))
            session.execute(delete(RunRecord).where(RunRecord.id == run_id))
            bury(session, [path])
        return self.tombstones.remove(path)

    def pin_job(self, job_id: str) -> JobRecord:
        """Keep a job from deletion and retention; pinning it again changes nothing. Raises NotFound."""
        with self.database.write() as session:
            job = existing(session, JobRecord, job_id)
            job.pinned_at = job.pinned_at or utc_now()
            return job

    def unpin_job(self, job_id: str) -> None:
        """Let a job be deleted again. Raises NotFound."""
        with self.database.write() as session:
            existing(session, JobRecord, job_id).pinned_at = None

    # ------------------------------------------------------------------------------------------ datasets, teachers

    def delete_dataset(self, dataset_id: str) -> None:
        """Forget the name of a dataset, and remove its decoded copies unless another name or a live job has them.

        Raises:
            NotFound.
            Conflict: a live job uses it.
        """
        with self.database.read() as session:
            spec = DATASET.validate_python(existing(session, DatasetRecord, dataset_id).spec)
        copies = copies_of(self._settings, spec)
        with self.database.write() as session:
            dataset = existing(session, DatasetRecord, dataset_id)
            paths = [f"datasets/{copy.name}" for copy in removable_copies(session, dataset, copies)]
            session.delete(dataset)
            bury(session, paths)
        for path in paths:
            self.tombstones.remove(path)

    def delete_teacher(self, teacher_id: str) -> None:
        """Delete a teacher, and its file unless another teacher has the same bytes.

        Raises:
            NotFound.
            Conflict: a live job uses it.
        """
        with self.database.write() as session:
            teacher = check_teacher(session, teacher_id)
            session.delete(teacher)
            session.flush()
            path = f"teachers/{teacher.sha256}.onnx"
            if not has_teacher(session, teacher.sha256):
                bury(session, [path])
        self.tombstones.remove(path)


def copies_of(settings: Settings, spec: DatasetSpec) -> list[decoded.Copy]:
    """Decoded copies of a dataset."""
    work_dir, key = settings.datasets_dir, None
    # Where the pictures are gone, or others than they were, the copy is found by its description.
    with suppress(InvalidDataset, OSError):
        key = examine(spec, settings.data_root, work_dir).key()
    ours = decoded.fingerprints_of(work_dir, spec, key)
    return [copy for copy in decoded.copies(work_dir) if copy.fingerprint in ours]


def removable_copies(
    session: Session, dataset: DatasetRecord, copies: Iterable[decoded.Copy]
) -> Sequence[decoded.Copy]:
    """Those copies that go with the name of a dataset: no other name or live job has them.

    Raises:
        Conflict: a live job uses it.
    """
    spec = DATASET.validate_python(dataset.spec)
    users = [job_id for job_id, used in _datasets_of_live_jobs(session) if _is_same(used, spec)]
    refuse_in_use(f"dataset {dataset.id}", users)
    others = session.scalars(select(DatasetRecord.spec).where(DatasetRecord.id != dataset.id))
    if any(_is_same(DATASET.validate_python(other), spec) for other in others):
        return []
    used = decoded_in_use(session)
    return [copy for copy in copies if copy.fingerprint not in used]


def check_teacher(session: Session, teacher_id: str) -> TeacherRecord:
    """The teacher, which may be deleted. Raises NotFound; Conflict: a live job uses it."""
    teacher = existing(session, TeacherRecord, teacher_id)
    refuse_in_use(f"teacher {teacher_id}", live_users(session, teacher_id))
    return teacher


def decoded_in_use(session: Session) -> set[str]:
    """Fingerprints of the decoded data that live jobs were told of."""
    found = select(EventRecord.data).join(JobRecord, JobRecord.id == EventRecord.job_id)
    found = found.where(JobRecord.state.in_(LIVE), EventRecord.run_id == "", EventRecord.type == "dataset_ready")
    return {str(data.get("fingerprint")) for data in session.scalars(found)}


def live_retries(session: Session, run_ids: Collection[str]) -> list[str]:
    """Jobs with a live run that tries one of these again, or tries a retry of one again: it may take its checkpoint."""
    found, wanted = set[str](), set(run_ids)
    while wanted:
        retries = select(RunRecord.id, RunRecord.job_id, RunRecord.state).where(RunRecord.retry_of.in_(wanted))
        rows = session.execute(retries).all()
        found |= {row.job_id for row in rows if row.state in LIVE}
        wanted = {row.id for row in rows}
    return sorted(found)


def check_job(session: Session, job: JobRecord) -> None:
    check_deletable(session, job, session.scalars(select(RunRecord.id).where(RunRecord.job_id == job.id)).all())


def check_deletable(session: Session, job: JobRecord, run_ids: Sequence[str]) -> None:
    """Raises Conflict."""
    if job.state in LIVE:
        raise Conflict(f"job {job.id} is {job.state}: cancel it, wait until it has ended, then delete")
    if job.pinned_at is not None:
        raise Conflict(f"job {job.id} is pinned: unpin it (DELETE /v1/jobs/{job.id}/pin), then delete")
    if retries := live_retries(session, run_ids):
        raise Conflict(
            f"job {job.id} is tried again by {some_of(retries, _NAMED_MAX)}, which may go on from its checkpoints: "
            "cancel that, or wait for its end, then delete"
        )
    in_use = first_weights_in_use(session)
    for run_id in run_ids:
        refuse_in_use(f"run {run_id}, with whose weights students begin,", in_use.get(run_id, ()))


def _unlink_run(session: Session, run: RunRecord) -> None:
    """Have whatever tries this run again do without it."""
    retry = session.scalars(select(RunRecord).where(RunRecord.retry_of == run.id)).one_or_none()
    if retry is None:
        return
    hand_over_epochs(session, run.id, retry)
    # Each run is retried at most once, so this one has to let go before another may take its place.
    parent, run.retry_of = run.retry_of, None
    session.flush()
    retry.retry_of = parent
    session.flush()


def _sums_of_runs(runs: Iterable[RunRecord]) -> dict[str, float]:
    pairs = [(run.attempt, run.lost_attempts) for run in runs]
    return {"run_attempts": sum(begun for begun, _ in pairs), "run_attempts_lost": sum(lost for _, lost in pairs)}


def _sums_of_job(job: JobRecord) -> dict[str, float]:
    forwards = job.teacher_forwards or {}
    ran = float(forwards.get("run") or 0)
    has_caches = job.teacher_accuracy is not None or job.teacher_metrics is not None
    is_complete = has_caches and job.teacher_forwards is not None
    return {
        "teacher_forwards": ran,
        # Earlier versions have stored what a cache costs beyond what it spares as a negative number.
        "teacher_forwards_avoided": max(0.0, float(forwards.get("avoided") or 0)),
        "cache_hits": float(is_complete and ran == 0),
        "cache_misses": float(is_complete and ran > 0),
    }


def _add_sums(session: Session, sums: dict[str, float]) -> None:
    for name, value in sums.items():
        row = session.get(DeletedSumRecord, name)
        if row is None:
            row = DeletedSumRecord(name=name, value=0.0)
            session.add(row)
        row.value += value


def refuse_in_use(what: str, job_ids: Sequence[str]) -> None:
    """Refuse the deletion of what live jobs use. Raises Conflict."""
    if job_ids:
        raise Conflict(f"{what} is used by job {some_of(job_ids, _NAMED_MAX)}: cancel that, or wait for its end")


def _datasets_of_live_jobs(session: Session) -> list[tuple[str, DatasetSpec]]:
    live = select(JobRecord.id, JobRecord.plan["dataset"]).where(JobRecord.state.in_(LIVE)).order_by(JobRecord.id)
    return [(job_id, DATASET.validate_python(spec)) for job_id, spec in session.execute(live)]


def _is_same(one: DatasetSpec, other: DatasetSpec) -> bool:
    """Whether two descriptions are of the same pictures, however they are stored."""
    return one.content_description() == other.content_description()
