"""API's queries: teachers, datasets, jobs, runs, events and artifacts, one by one and in pages.

Lists are paged by key: ``after`` is the last id that was seen, so a page does not move when rows are added. The engine
has ``engine_queries`` for its half, new jobs are in ``job_posting``, new runs of jobs in ``run_additions``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from service.db.ids import is_id
from service.db.job_labels import SEARCHED, search_text
from service.db.models import (
    ArtifactRecord,
    DatasetRecord,
    EventRecord,
    JobRecord,
    Json,
    RunRecord,
    TeacherRecord,
)
from service.db.queries.cache_use import caches_of_live_jobs
from service.db.queries.job_search import JobFilter, JobOrder, RunFilter, find_jobs
from service.db.queries.packed_events import events_before, events_of, metrics_by_epoch
from service.db.run_additions import RunAdditions
from service.db.states import State
from service.db.transitions import Row, assign, event_rows, existing
from service.errors import Conflict
from workers.config.dataset import DatasetSpec

DATASET: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)


def digest_of(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON value, the same for every spelling of it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ApiQueries(RunAdditions):
    """The rows that clients make and read.

    Args:
        database: migrated to head.
        key_live_jobs_max: jobs of one API key that have not ended; None for no limit.
    """

    # --------------------------------------------------------------------------------------------------- anything

    def get(self, table: type[Row], id: str) -> Row:
        """One row. Raises NotFound, also for what cannot be an id at all."""
        with self.database.read() as session:
            return existing(session, table, id)

    def page(self, table: type[Row], after: str | None, limit: int, name: str | None = None) -> tuple[list[Row], bool]:
        """Rows before the id ``after``, newest first, and whether there are more; ``name`` is a part of their names."""
        query = select(table)
        if name is not None:
            query = query.where(_has_in_name(table, name))
        if after is not None:
            query = query.where(table.id < after)
        with self.database.read() as session:
            rows = list(session.scalars(query.order_by(table.id.desc()).limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def jobs(
        self, wanted: JobFilter | None, after: str | None, limit: int, order: JobOrder = JobOrder.NEWEST
    ) -> tuple[list[JobRecord], bool]:
        """Jobs that a filter lets through, all without one, see ``job_search.find_jobs``."""
        with self.database.read() as session:
            return find_jobs(session, wanted or JobFilter(), order, after=after, limit=limit)

    def change_job(self, id: str, changes: Mapping[str, object]) -> JobRecord:
        """Change ``name``, ``tags`` or ``note`` of a job, whatever its state. Raises NotFound."""
        with self.database.write() as session:
            job = existing(session, JobRecord, id)
            assign(job, changes)
            job.search_text = search_text({name: getattr(job, name) for name in SEARCHED})
            return job

    # --------------------------------------------------------------------------------------------------- teachers

    def add_teacher(self, teacher: TeacherRecord, place_file: Callable[[], None]) -> tuple[TeacherRecord, bool]:
        """Register a teacher, or find the one with the same ``identity``.

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

    # -------------------------------------------------------------------------------------------------- datasets

    def add_dataset(self, dataset: DatasetRecord) -> tuple[DatasetRecord, bool]:
        """Register a dataset, or find the equal one of the same name.

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
                    f"the name {dataset.name!r} belongs to {known.id}, which is another dataset: "
                    "choose another name, or delete that one"
                )
            return known, False

    def find_dataset(self, name: str) -> DatasetRecord | None:
        """The dataset of this id or name."""
        with self.database.read() as session:
            if is_id(name) and (found := session.get(DatasetRecord, name)) is not None:
                return found
            return session.scalars(_by_name(name)).one_or_none()

    def dataset_names(self) -> list[str]:
        """The names of all registered datasets."""
        with self.database.read() as session:
            return list(session.scalars(select(DatasetRecord.name)))

    # ------------------------------------------------------------------------------------------------------- jobs

    def job(self, id: str) -> tuple[JobRecord, dict[str, State]]:
        """A job, and the state of each of its runs, by id, in the order of its plan. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, JobRecord, id), _states_of_runs(session, id)

    def states_of_runs(self, job_id: str) -> dict[str, State]:
        """The state of each run of a job, by id, in the order of its plan."""
        with self.database.read() as session:
            return _states_of_runs(session, job_id)

    def counts_of_runs(self, job_ids: Sequence[str]) -> dict[str, dict[State, int]]:
        """Counts of the runs of these jobs by state, in one query."""
        query = select(RunRecord.job_id, RunRecord.state, func.count())
        query = query.where(RunRecord.job_id.in_(job_ids)).group_by(RunRecord.job_id, RunRecord.state)
        found: dict[str, dict[State, int]] = {job_id: {} for job_id in job_ids}
        with self.database.read() as session:
            for job_id, state, count in session.execute(query):
                found[job_id][state] = count
        return found

    def runs(
        self, job_id: str, after: str | None = None, limit: int | None = None, wanted: RunFilter | None = None
    ) -> tuple[list[RunRecord], bool]:
        """Runs of a job in the order of its plan, those after the id ``after``. Raises NotFound for the job."""
        # Ids of a job's runs rise with their index, see new_id.
        query = select(RunRecord).where(RunRecord.job_id == job_id).order_by(RunRecord.id)
        if wanted is not None:
            query = query.where(*wanted.conditions)
        if after is not None:
            query = query.where(RunRecord.id > after)
        with self.database.read() as session:
            existing(session, JobRecord, job_id)
            rows = list(session.scalars(query.limit(None if limit is None else limit + 1)))
        return rows[:limit], limit is not None and len(rows) > limit

    def user_of_cache(self, key: str) -> str | None:
        """The id of a job that has not ended and uses this cache; paused, say, it would have to infer it again."""
        with self.database.read() as session:
            found = caches_of_live_jobs(session)
        return next((id for id, keys in found.items() if key in keys), None)

    # ------------------------------------------------------------------------------------- events, metrics, files

    def events(
        self, owner: JobRecord | RunRecord, after: int, limit: int, *, before: int | None = None
    ) -> tuple[list[EventRecord], bool]:
        """Events of a job (its runs' included) or of a run, later than ``after``, oldest first.

        With ``before`` those that are earlier than it, newest first and without progress, see ``events_before``.
        """
        with self.database.read() as session:
            if before is None:
                rows = events_of(session, owner, after, limit + 1)
            else:
                rows = events_before(session, owner, after=after, before=before, limit=limit + 1)
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


def _has_in_name(table: type[Row], part: str) -> ColumnElement[bool]:
    """Whether a name holds this, case aside; SQLite knows the case of ASCII alone."""
    # A key, too, has a name, and no list of them is asked for one.
    name = table.name
    return or_(func.lower(name).contains(part.lower(), autoescape=True), name.contains(part, autoescape=True))


def _by_name(name: str) -> Select[DatasetRecord]:
    return select(DatasetRecord).where(DatasetRecord.name == name)
