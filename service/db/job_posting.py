"""Posting and retrying jobs: their rows, the Idempotency-Key they came with, and how many of a key may be live."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db import webhook_outbox
from service.db.database import Database
from service.db.ids import new_id
from service.db.job_teachers import ChosenTeacher, check_teachers, document_of, imported_keys, name_of
from service.db.models import IdempotencyRecord, JobRecord, Json, RunRecord, TeacherRecord
from service.db.states import LIVE, State
from service.db.student_file_record import StudentFileRecord
from service.db.transitions import existing, runs_of
from service.errors import Conflict, IdempotencyMismatch, QueueFull
from workers.config.initial_weights import UploadedWeights
from workers.config.job import Plan, StudentSpec
from workers.students.catalog import plain_name
from workers.students.program import is_uploaded

# What a retry has in common with what it tries again.
_KEPT_JOB = ("name", "tags", "note", "teacher_id", "teacher", "plan", "priority", "parallel_runs", "samples")
_KEPT_RUN = ("index", "name", "student", "method", "method_spec", "seed", "epochs")
_NAMED_RUNS = 3
# Characters of the column.
_STUDENT_MAX = 128
QUEUE_RETRY_S = 30


@dataclass(frozen=True)
class Idempotency:
    """An Idempotency-Key and the digest of the body that came with it.

    Attributes:
        key_id: of the API key that brought it, empty without one: what one key has made is no other's to see.
        earlier_digests: of the same body, as earlier versions have taken them. No ``digest`` of this version is among
            them, so they are of keys that were stored before the upgrade alone.
    """

    key_id: str
    key: str
    digest: str
    earlier_digests: tuple[str, ...] = ()


class JobPosting:
    """New jobs of clients.

    Args:
        database: migrated to head.
        key_live_jobs_max: jobs of one API key that have not ended; None for no limit.
    """

    def __init__(self, database: Database, key_live_jobs_max: int | None = None) -> None:
        self.database = database
        self._key_live_jobs_max = key_live_jobs_max

    def replay(self, idempotency: Idempotency | None) -> JobRecord | None:
        """The job that this key has made before.

        Raises:
            IdempotencyMismatch: it came with another body.
        """
        if idempotency is None:
            return None
        with self.database.read() as session:
            return replayed(session, idempotency)

    def add_job(
        self,
        plan: Plan,
        teacher: TeacherRecord,
        idempotency: Idempotency | None,
        *,
        priority: int = 0,
        parallel_runs: int | None = None,
        key_id: str | None = None,
        tags: Sequence[str] = (),
        note: str = "",
        webhook_url: str | None = None,
        samples: Json | None = None,
        teachers: Sequence[ChosenTeacher] = (),
    ) -> tuple[JobRecord, bool]:
        """Store a job and its runs, all queued, together with its labels and idempotency key.

        Args:
            priority: the highest is claimed first.
            parallel_runs: how many of its runs may be at work at once; None for as many as there is room for.
            key_id: of the API key that posts it.
            webhook_url: where its end is told, see ``webhook_outbox``; None for nowhere.
            samples: pictures of each split of its dataset; None where nobody has looked.
            teachers: all of several, ``teacher`` first; none where there is one.

        Returns:
            The job, and whether it is new: False if the key was used meanwhile.

        Raises:
            NotFound: the teacher, or a file of first weights, was deleted meanwhile.
            IdempotencyMismatch: as ``replay``.
            QueueFull: the API key has as many live jobs as it may have.
        """
        teachers = teachers or (ChosenTeacher(teacher),)
        with self.database.write() as session:
            if idempotency is not None and (known := replayed(session, idempotency)) is not None:
                return known, False
            self.check_queue(session, key_id)
            for each in teachers:
                if not each.caches:
                    existing(session, TeacherRecord, each.record.id)
            check_uploads(session, plan.all_students)
            job = _new_job(plan, teachers)
            job.priority, job.parallel_runs, job.key_id = priority, parallel_runs, key_id
            job.tags, job.note, job.samples = list(tags) or None, note, samples
            session.add(job)
            session.flush()
            session.add_all(new_runs(plan, job.id, teachers))
            webhook_outbox.register(session, job.id, webhook_url)
            keep_key(session, idempotency, job.id)
            return job, True

    def retry_job(self, job_id: str, check: Callable[[], None], key_id: str | None = None) -> tuple[JobRecord, bool]:
        """Make a job of the runs of this one that failed or were cancelled, with the same plan and teacher.

        Each run is retried once: what an earlier retry has taken stays out.

        Args:
            check: called before anything is made, inside the transaction; what it raises is passed on.
            key_id: of the API key that asks.

        Returns:
            The job, and whether it is new: False if all of these runs were retried before; then the newest job that
            has taken some.

        Raises:
            NotFound.
            Conflict: no run of it has failed or was cancelled, or its teacher was deleted.
            QueueFull: the API key has as many live jobs as it may have.
        """
        with self.database.write() as session:
            job = existing(session, JobRecord, job_id)
            runs = list(session.scalars(runs_of(job_id)))
            return self._retry(session, job, runs, check, key_id=key_id)

    def retry_run(self, run_id: str, check: Callable[[], None], key_id: str | None = None) -> tuple[JobRecord, bool]:
        """Make a job of one run that failed or was cancelled; raises what ``retry_job`` raises."""
        with self.database.write() as session:
            run = existing(session, RunRecord, run_id)
            return self._retry(session, session.get_one(JobRecord, run.job_id), [run], check, key_id=key_id)

    def _retry(
        self,
        session: Session,
        job: JobRecord,
        runs: Sequence[RunRecord],
        check: Callable[[], None],
        *,
        key_id: str | None,
    ) -> tuple[JobRecord, bool]:
        """The job that tries those of these runs again that failed or were cancelled, and whether it is new."""
        ended = [run for run in runs if run.state in {State.FAILED, State.CANCELLED}]
        if not ended:
            found = ", ".join(f"{run.id} {run.state}" for run in runs[:_NAMED_RUNS])
            raise Conflict(f"only what has failed or was cancelled can be retried, and there is {found}")
        taken = select(RunRecord.retry_of, RunRecord.job_id).where(RunRecord.retry_of.in_([run.id for run in ended]))
        retried = {row.retry_of: row.job_id for row in session.execute(taken)}
        left = [run for run in ended if run.id not in retried]
        if not left:
            return session.get_one(JobRecord, max(retried.values())), False
        check_teachers(session, job)
        check()
        self.check_queue(session, key_id)
        again = JobRecord(
            id=new_id("job"),
            retry_of=job.id,
            caches=imported_keys(job.teacher),
            key_id=key_id,
            **{name: getattr(job, name) for name in _KEPT_JOB},
        )
        session.add(again)
        session.flush()
        kept = [{name: getattr(run, name) for name in _KEPT_RUN} for run in left]
        made = [
            RunRecord(id=new_id("run"), job_id=again.id, retry_of=run.id, **same)
            for run, same in zip(left, kept, strict=True)
        ]
        session.add_all(made)
        webhook_outbox.copy_to_retry(session, job.id, again.id)
        return again, True

    def check_queue(self, session: Session, key_id: str | None) -> None:
        """Raise QueueFull if this API key has as many live jobs as it may have."""
        if self._key_live_jobs_max is None:
            return
        live = (JobRecord.key_id == key_id) & JobRecord.state.in_(LIVE)
        count = session.scalar(select(func.count()).select_from(JobRecord).where(live)) or 0
        if count >= self._key_live_jobs_max:
            raise QueueFull(
                f"{count} jobs of this API key (or of all callers without one) have not ended, at most "
                f"{self._key_live_jobs_max} may wait or be worked on: wait for one, or cancel one",
                QUEUE_RETRY_S,
            )


def replayed(session: Session, idempotency: Idempotency) -> JobRecord | None:
    """The job that an Idempotency-Key was used for; None if it was not. Raises IdempotencyMismatch."""
    known = session.get(IdempotencyRecord, (idempotency.key_id, idempotency.key))
    if known is None:
        return None
    if known.digest not in (idempotency.digest, *idempotency.earlier_digests):
        raise IdempotencyMismatch(
            f"the Idempotency-Key {idempotency.key!r} came with another body before, for job {known.job_id}: "
            "use a new key for a new job"
        )
    return session.get_one(JobRecord, known.job_id)


def keep_key(session: Session, idempotency: Idempotency | None, job_id: str) -> None:
    """Keep for what job an Idempotency-Key was used, if one was."""
    if idempotency is not None:
        own = {"key_id": idempotency.key_id, "key": idempotency.key, "digest": idempotency.digest}
        session.add(IdempotencyRecord(**own, job_id=job_id))


def check_uploads(session: Session, students: Sequence[StudentSpec]) -> None:
    """Raise NotFound if an uploaded file of a student, or of its first weights, is there no more."""
    for student in students:
        if isinstance(student.init, UploadedWeights):
            existing(session, StudentFileRecord, student.init.upload)
        if is_uploaded(student.name):
            existing(session, StudentFileRecord, plain_name(student.name))


def _new_job(plan: Plan, teachers: Sequence[ChosenTeacher]) -> JobRecord:
    teacher = document_of(teachers)
    return JobRecord(
        id=new_id("job"),
        name=plan.name,
        teacher_id=teachers[0].record.id,
        teacher=teacher,
        caches=imported_keys(teacher),
        plan=plan.model_dump(mode="json"),
    )


def evaluation_run(teachers: Sequence[ChosenTeacher]) -> Json:
    """Name, student, method and seed of the one run of a job that evaluates a teacher, or several as one."""
    called = name_of([each.record.name for each in teachers])
    return {"name": f"evaluation of {called}", "student": called[:_STUDENT_MAX], "method": "evaluation", "seed": 0}


def new_runs(plan: Plan, job_id: str, teachers: Sequence[ChosenTeacher]) -> list[RunRecord]:
    """Rows of all runs of a plan, not in a session; an evaluation's is named after the teachers."""
    if plan.evaluate:
        # One run, so that it is paused, resumed, retried and reported as all others are; see ``run_start``.
        columns = {**evaluation_run(teachers), "method_spec": {}, "epochs": 1}
        return [RunRecord(id=new_id("run"), job_id=job_id, index=0, **columns)]
    return [
        RunRecord(
            id=new_id("run"),
            job_id=job_id,
            index=run.index,
            name=run.name,
            student=run.student.name,
            method=run.method.label,
            method_spec=run.method.model_dump(mode="json"),
            seed=run.seed,
            epochs=plan.training.epochs,
        )
        for run in plan.runs()
    ]
