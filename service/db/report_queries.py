"""Queries of reports: jobs with the columns of their runs that a report shows, and the logits that runs have kept."""

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import load_only

from service.db.database import Database
from service.db.models import ArtifactRecord, JobRecord, RunRecord
from service.db.transitions import existing, runs_of
from service.errors import TooLarge

_SHOWN = (
    RunRecord.id,
    RunRecord.job_id,
    RunRecord.student,
    RunRecord.method,
    RunRecord.seed,
    RunRecord.state,
    RunRecord.metrics,
    RunRecord.result,
)
# Variables of one statement; SQLite takes no more than 32,766.
_IDS = 1000


def jobs_and_runs(
    database: Database, job_ids: Sequence[str], runs_max: int | None = None
) -> tuple[list[JobRecord], list[RunRecord]]:
    """Jobs, and all their runs in the order of jobs and plans, at one moment; of runs what a report shows.

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
        columns = load_only(*_SHOWN, raiseload=True)
        return jobs, [run for job in jobs for run in session.scalars(runs_of(job.id).options(columns))]


def files_of_runs(database: Database, run_ids: Iterable[str], name: str) -> list[ArtifactRecord]:
    """Artifacts of this name of runs' newest attempts."""
    ids, found = list(run_ids), list[ArtifactRecord]()
    with database.read() as session:
        for start in range(0, len(ids), _IDS):
            query = select(ArtifactRecord).join(RunRecord, RunRecord.id == ArtifactRecord.run_id)
            query = query.where(RunRecord.id.in_(ids[start : start + _IDS]), ArtifactRecord.name == name)
            found += session.scalars(query.where(ArtifactRecord.attempt == RunRecord.attempt))
    return found
