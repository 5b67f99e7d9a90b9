"""Queries of reports: jobs with what of their runs a report shows, fingerprints of their data, kept files of runs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import ArtifactRecord, EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord
from service.db.queries.packed_events import unpack
from service.db.states import State
from service.db.transitions import event_rows, existing
from service.errors import TooLarge
from workers.methods.names import distinct_names

# Matrices of a result that no report shows; of a thousand runs they take longer to parse than all the rest.
_UNSHOWN = ("$.evaluation.validation.confusion", "$.evaluation.test.confusion")
# Variables of one statement; SQLite takes no more than 32,766.
_IDS = 1000


class ReportedRun(NamedTuple):
    """Run as a report shows it: columns of ``RunRecord``; ``method`` is the label, numbered where it is of several."""

    id: str
    job_id: str
    student: str
    method: str
    method_spec: Json
    seed: int
    state: State
    metrics: Json | None
    result: Json | None


def jobs_and_runs(
    database: Database, job_ids: Sequence[str], runs_max: int | None = None
) -> tuple[list[JobRecord], list[ReportedRun]]:
    """Jobs, and all their runs in the order of jobs and plans, at one moment.

    Args:
        runs_max: most runs in all.

    Raises:
        NotFound: of the first job that is not there.
        TooLarge: they have more runs.
    """
    with database.read() as session:
        jobs = [existing(session, JobRecord, job_id) for job_id in job_ids]
        count = session.scalar(select(func.count()).where(RunRecord.job_id.in_(job_ids))) or 0
        if runs_max is not None and count > runs_max:
            raise TooLarge(
                f"the {len(jobs)} jobs have {count} runs, at most {runs_max} go into one table: name fewer jobs"
            )
        columns = [getattr(RunRecord, name) for name in ReportedRun._fields if name != "result"]
        query = select(*columns, _result(session)).order_by(RunRecord.index)
        runs = [
            ReportedRun._make(row) for job in jobs for row in session.execute(query.where(RunRecord.job_id == job.id))
        ]
    names = distinct_names([(run.method, run.method_spec) for run in runs])
    return jobs, [run._replace(method=name) for run, name in zip(runs, names, strict=True)]


def _result(session: Session) -> ColumnElement[Any]:
    """Column ``result``, without matrices in SQLite; PostgreSQL's jsonb would refuse texts of earlier versions."""
    if session.get_bind().dialect.name != "sqlite":
        return RunRecord.result.expression
    return func.json_remove(RunRecord.result, *_UNSHOWN, type_=RunRecord.result.type)


def files_of_runs(database: Database, run_ids: Iterable[str], name: str) -> list[ArtifactRecord]:
    """Artifacts of this name of runs' newest attempts."""
    ids, found = list(run_ids), list[ArtifactRecord]()
    with database.read() as session:
        for start in range(0, len(ids), _IDS):
            query = select(ArtifactRecord).join(RunRecord, RunRecord.id == ArtifactRecord.run_id)
            query = query.where(RunRecord.id.in_(ids[start : start + _IDS]), ArtifactRecord.name == name)
            found += session.scalars(query.where(ArtifactRecord.attempt == RunRecord.attempt))
    return found


def fingerprints_of_jobs(database: Database, job_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Fingerprints of the data that jobs were told of, by job and split, packed events included.

    They outlive caches and decoded copies. A job that has not prepared its data yet has none.
    """
    found: dict[str, dict[str, str]] = {}
    with database.read() as session:
        for job_id in job_ids:
            plain = (EventRecord.job_id == job_id) & (EventRecord.run_id == "") & (EventRecord.type == "dataset_ready")
            # In this order, as ``packed_events.events_of``: what is packed between the two queries is found.
            rows = {row.seq: row for row in event_rows(session, select(EventRecord).where(plain))}
            packed = (PackedEventsRecord.job_id == job_id) & (PackedEventsRecord.run_id == "")
            for some in session.scalars(select(PackedEventsRecord).where(packed)):
                rows |= {row.seq: row for row in unpack(some) if row.type == "dataset_ready"}
            # Of several attempts the last has made the results.
            told = [rows[seq].data for seq in sorted(rows)]
            found[job_id] = {str(data["split"]): str(data["fingerprint"]) for data in told if "fingerprint" in data}
    return found
