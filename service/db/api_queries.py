"""What the API reads and writes: teachers, data sets, new jobs with their idempotency keys, retries, lists of all.

Lists are paged by key: ``after`` is the last id that was seen, so a page does not move when rows are added. The engine
has ``engine_queries`` for its half.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, defer

from service.db.database import Database
from service.db.models import (
    ArtifactRecord,
    DatasetRecord,
    EventRecord,
    IdempotencyRecord,
    JobRecord,
    Json,
    RunRecord,
    TeacherRecord,
    new_id,
)
from service.db.packed_events import events_of, metrics_by_epoch
from service.db.states import LIVE, State
from service.db.transitions import Row, event_rows, existing, is_id, runs_of
from service.errors import Conflict, IdempotencyMismatch, QueueFull
from workers.config.dataset import DatasetSpec
from workers.config.job import Plan

# What a retry has in common with what it tries again.
_KEPT_JOB = ("name", "teacher_id", "teacher", "plan", "priority", "parallel_runs")
_KEPT_RUN = ("index", "name", "student", "method", "method_spec", "seed", "epochs")
_NAMED_RUNS = 3
QUEUE_RETRY_S = 30
DATASET: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)


def digest_of(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON value, the same for every spelling of it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Idempotency:
    """An Idempotency-Key and the digest of the body that came with it.

    ``key_id`` is the API key that brought it, empty without one: what one key has made is no other's to see.
    """

    key_id: str
    key: str
    digest: str


class ApiQueries:
    """The rows that clients make and read.

    Args:
        database: migrated to head.
        key_live_jobs_max: jobs of one API key that have not ended; None for no limit.
    """

    def __init__(self, database: Database, key_live_jobs_max: int | None = None) -> None:
        self.database = database
        self._key_live_jobs_max = key_live_jobs_max

    # --------------------------------------------------------------------------------------------------- anything

    def get(self, table: type[Row], id: str) -> Row:
        """One row. Raises NotFound, also for what cannot be an id at all."""
        with self.database.read() as session:
            return existing(session, table, id)

    def page(self, table: type[Row], after: str | None, limit: int) -> tuple[list[Row], bool]:
        """Rows before the id ``after``, newest first, and whether there are more."""
        return self._page(select(table), table, after, limit)

    def jobs(self, state: State | None, after: str | None, limit: int) -> tuple[list[JobRecord], bool]:
        """Jobs, newest first, of one state or of all; their plans, which may be long, are not read."""
        query = select(JobRecord).options(defer(JobRecord.plan, raiseload=True))
        return self._page(
            query if state is None else query.where(JobRecord.state == state),
            JobRecord,
            after,
            limit,
        )

    def _page(self, query: Select[Row], table: type[Row], after: str | None, limit: int) -> tuple[list[Row], bool]:
        if after is not None:
            query = query.where(table.id < after)
        with self.database.read() as session:
            rows = list(session.scalars(query.order_by(table.id.desc()).limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    # --------------------------------------------------------------------------------------------------- teachers

    def add_teacher(self, teacher: TeacherRecord, place_file: Callable[[], None]) -> tuple[TeacherRecord, bool]:
        """Registers a teacher, or finds the one with the same ``identity``.

        Args:
            place_file: puts the file where it belongs, replacing an equal one; called inside the transaction, so that
                no deletion of another teacher with the same bytes can come between.

        Returns:
            The row that counts, and whether it is new.
        """
        with self.database.write() as session:
            query = select(TeacherRecord).where(TeacherRecord.identity == teacher.identity)
            known = session.scalars(query).one_or_none()
            place_file()
            if known is not None:
                return known, False
            session.add(teacher)
            return teacher, True

    # -------------------------------------------------------------------------------------------------- data sets

    def add_dataset(self, dataset: DatasetRecord) -> tuple[DatasetRecord, bool]:
        """Registers a data set, or finds the equal one of the same name.

        Raises:
            Conflict: the name is taken by another description.
        """
        with self.database.write() as session:
            known = session.scalars(_by_name(dataset.name)).one_or_none()
            if known is None:
                session.add(dataset)
                return dataset, True
            # As descriptions: what an older version has stored may lack a field that has a default.
            if DATASET.validate_python(known.spec) != DATASET.validate_python(dataset.spec):
                raise Conflict(
                    f"the name {dataset.name!r} belongs to {known.id}, which is another data set: "
                    "choose another name, or delete that one"
                )
            return known, False

    def find_dataset(self, name: str) -> DatasetRecord | None:
        """The data set of this id or name."""
        with self.database.read() as session:
            if is_id(name) and (found := session.get(DatasetRecord, name)) is not None:
                return found
            return session.scalars(_by_name(name)).one_or_none()

    def dataset_names(self) -> list[str]:
        """The names of all registered data sets."""
        with self.database.read() as session:
            return list(session.scalars(select(DatasetRecord.name)))

    # ------------------------------------------------------------------------------------------------------- jobs

    def replay(self, idempotency: Idempotency | None) -> JobRecord | None:
        """The job that this key has made before.

        Raises:
            IdempotencyMismatch: it came with another body.
        """
        if idempotency is None:
            return None
        with self.database.read() as session:
            return _replayed(session, idempotency)

    def add_job(
        self,
        plan: Plan,
        teacher: TeacherRecord,
        idempotency: Idempotency | None,
        *,
        priority: int = 0,
        parallel_runs: int | None = None,
        key_id: str | None = None,
    ) -> tuple[JobRecord, bool]:
        """Stores a job and its runs, all queued, together with its idempotency key.

        Args:
            priority: the highest is claimed first.
            parallel_runs: how many of its runs may be at work at once; None for as many as there is room for.
            key_id: of the API key that posts it.

        Returns:
            The job, and whether it is new: False if the key was used meanwhile.

        Raises:
            NotFound: the teacher was deleted meanwhile.
            IdempotencyMismatch: as ``replay``.
            QueueFull: the API key has as many live jobs as it may have.
        """
        with self.database.write() as session:
            if idempotency is not None and (known := _replayed(session, idempotency)) is not None:
                return known, False
            self._check_queue(session, key_id)
            existing(session, TeacherRecord, teacher.id)
            job = _new_job(plan, teacher)
            job.priority, job.parallel_runs, job.key_id = priority, parallel_runs, key_id
            session.add(job)
            session.flush()
            session.add_all(_new_runs(plan, job.id))
            if idempotency is not None:
                session.add(IdempotencyRecord(**vars(idempotency), job_id=job.id))
            return job, True

    def retry_job(self, job_id: str, check: Callable[[], None], key_id: str | None = None) -> tuple[JobRecord, bool]:
        """Makes a job of the runs of this one that failed or were cancelled, with the same plan and teacher.

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
            return self._retry(session, job, runs, check, key_id)

    def retry_run(self, run_id: str, check: Callable[[], None], key_id: str | None = None) -> tuple[JobRecord, bool]:
        """As ``retry_job``, of one run. Raises NotFound, Conflict and QueueFull."""
        with self.database.write() as session:
            run = existing(session, RunRecord, run_id)
            return self._retry(session, session.get_one(JobRecord, run.job_id), [run], check, key_id)

    def _retry(
        self,
        session: Session,
        job: JobRecord,
        runs: Sequence[RunRecord],
        check: Callable[[], None],
        key_id: str | None,
    ) -> tuple[JobRecord, bool]:
        def check_all() -> None:
            check()
            self._check_queue(session, key_id)

        return _retry(session, job, runs, check_all, key_id)

    def _check_queue(self, session: Session, key_id: str | None) -> None:
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

    def job(self, id: str) -> tuple[JobRecord, dict[str, State]]:
        """A job, and the state of each of its runs, by id, in the order of its plan. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, JobRecord, id), _states_of_runs(session, id)

    def job_and_runs(self, id: str) -> tuple[JobRecord, list[RunRecord]]:
        """A job and all its runs in the order of its plan. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, JobRecord, id), list(session.scalars(runs_of(id)))

    def states_of_runs(self, job_id: str) -> dict[str, State]:
        """The state of each run of a job, by id, in the order of its plan."""
        with self.database.read() as session:
            return _states_of_runs(session, job_id)

    def counts_of_runs(self, job_ids: Sequence[str]) -> dict[str, dict[State, int]]:
        """How many runs of these jobs are in each state that one is in, in one query."""
        query = select(RunRecord.job_id, RunRecord.state, func.count())
        query = query.where(RunRecord.job_id.in_(job_ids)).group_by(RunRecord.job_id, RunRecord.state)
        found: dict[str, dict[State, int]] = {job_id: {} for job_id in job_ids}
        with self.database.read() as session:
            for job_id, state, count in session.execute(query):
                found[job_id][state] = count
        return found

    def runs(self, job_id: str, after: str | None = None, limit: int | None = None) -> tuple[list[RunRecord], bool]:
        """Runs of a job in the order of its plan, those after the id ``after``. Raises NotFound for the job."""
        # Ids of a job's runs rise with their index, see new_id.
        query = select(RunRecord).where(RunRecord.job_id == job_id).order_by(RunRecord.id)
        if after is not None:
            query = query.where(RunRecord.id > after)
        with self.database.read() as session:
            existing(session, JobRecord, job_id)
            rows = list(session.scalars(query.limit(None if limit is None else limit + 1)))
        return rows[:limit], limit is not None and len(rows) > limit

    def user_of_cache(self, key: str) -> str | None:
        """The id of a job that has not ended and uses this cache; paused, say, it would have to infer it again."""
        query = select(JobRecord.id, JobRecord.caches).where(JobRecord.state.in_(LIVE))
        with self.database.read() as session:
            rows = session.execute(query).all()
        return next((id for id, caches in rows if key in (caches or {}).values()), None)

    # ------------------------------------------------------------------------------------- events, metrics, files

    def events(self, owner: JobRecord | RunRecord, after: int, limit: int) -> tuple[list[EventRecord], bool]:
        """Events of a job (its runs' included) or of a run, later than ``after``, oldest first."""
        with self.database.read() as session:
            rows = events_of(session, owner, after, limit + 1)
        return rows[:limit], len(rows) > limit

    def last_event(self) -> int:
        """The number of the newest event of all; 0 before the first."""
        with self.database.read() as session:
            return session.scalar(select(func.max(EventRecord.seq))) or 0

    def later_events(self, after: int, limit: int) -> list[EventRecord]:
        """Events of all jobs later than ``after``, oldest first."""
        query = select(EventRecord).where(EventRecord.seq > after).order_by(EventRecord.seq).limit(limit)
        with self.database.read() as session:
            return event_rows(session, query)

    def metrics(self, run_id: str) -> list[Json]:
        """The metrics of every epoch of a run, in order; of an epoch that was trained twice, the later ones.

        The epochs before the checkpoint from which a retry began are those of the run that it tries again. One whose
        event is damaged is left out.
        """
        with self.database.read() as session:
            run = existing(session, RunRecord, run_id)
            epochs = metrics_by_epoch(session, run_id)
            while run.retry_of and epochs and (began := min(epochs)) > 1:
                earlier_run = session.get(RunRecord, run.retry_of)
                if earlier_run is None:
                    # Deleted since this run was read: its epochs are this run's own by now.
                    return self.metrics(run_id)
                run = earlier_run
                earlier = metrics_by_epoch(session, run.id)
                epochs |= {epoch: metrics for epoch, metrics in earlier.items() if epoch < began}
        return [epochs[epoch] for epoch in sorted(epochs)]

    def artifacts(self, run_id: str) -> list[ArtifactRecord]:
        """The files of a run's newest attempt, by name. Raises NotFound."""
        with self.database.read() as session:
            run = existing(session, RunRecord, run_id)
            query = select(ArtifactRecord).where(ArtifactRecord.run_id == run_id, ArtifactRecord.attempt == run.attempt)
            return list(session.scalars(query.order_by(ArtifactRecord.name)))


def _states_of_runs(session: Session, job_id: str) -> dict[str, State]:
    query = select(RunRecord.id, RunRecord.state).where(RunRecord.job_id == job_id).order_by(RunRecord.index)
    return {row.id: row.state for row in session.execute(query)}


def _by_name(name: str) -> Select[DatasetRecord]:
    return select(DatasetRecord).where(DatasetRecord.name == name)


def _replayed(session: Session, idempotency: Idempotency) -> JobRecord | None:
    known = session.get(IdempotencyRecord, (idempotency.key_id, idempotency.key))
    if known is None:
        return None
    if known.digest != idempotency.digest:
        raise IdempotencyMismatch(
            f"the Idempotency-Key {idempotency.key!r} came with another body before, for job {known.job_id}: "
            "use a new key for a new job"
        )
    return session.get_one(JobRecord, known.job_id)


def _new_job(plan: Plan, teacher: TeacherRecord) -> JobRecord:
    return JobRecord(
        id=new_id("job"),
        name=plan.name,
        teacher_id=teacher.id,
        teacher={
            "id": teacher.id,
            "name": teacher.name,
            "sha256": teacher.sha256,
            "output": teacher.output,
            "preprocessing": teacher.preprocessing,
        },
        plan=plan.model_dump(mode="json"),
    )


def _new_runs(plan: Plan, job_id: str) -> list[RunRecord]:
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


def _retry(
    session: Session, job: JobRecord, runs: Sequence[RunRecord], check: Callable[[], None], key_id: str | None
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
    if session.get(TeacherRecord, job.teacher_id) is None:
        raise Conflict(f"the teacher {job.teacher_id} of {job.id} was deleted: upload it again and post a new job")
    check()
    again = JobRecord(
        id=new_id("job"), retry_of=job.id, key_id=key_id, **{name: getattr(job, name) for name in _KEPT_JOB}
    )
    session.add(again)
    session.flush()
    kept = [{name: getattr(run, name) for name in _KEPT_RUN} for run in left]
    made = [
        RunRecord(id=new_id("run"), job_id=again.id, retry_of=run.id, **same)
        for run, same in zip(left, kept, strict=True)
    ]
    session.add_all(made)
    return again, True
