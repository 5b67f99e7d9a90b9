"""Events of workers, stored once each, with the progress of a job or run that follows from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, select

from service.db.lease import LeaseQueries
from service.db.models import EventRecord, JobRecord, Json, RunRecord
from service.db.transitions import assign, event_row, works_on

JOB_FIELDS = frozenset(
    {
        "stage",
        "inference",
        "caches",
        "teacher_forwards",
        "teacher_accuracy",
        "teacher_views_accuracy",
        "teacher_metrics",
        "backoff",
    }
)
RUN_FIELDS = frozenset({"epoch", "epochs", "progress", "metrics", "backoff"})


class EventQueries(LeaseQueries):
    """The events and the progress of what the engine works on."""

    def next_event(self, job_id: str, run_id: str | None, attempt: int) -> int:
        """The number from which a worker that was found again goes on: one more than the largest that is stored."""
        query = select(func.max(EventRecord.n)).where(
            EventRecord.job_id == job_id, EventRecord.run_id == (run_id or ""), EventRecord.attempt == attempt
        )
        with self.database.read() as session:
            largest = session.scalar(query)
        return 0 if largest is None else largest + 1

    def record_events(
        self,
        job_id: str,
        run_id: str | None,
        attempt: int,
        events: Sequence[tuple[int, Json]],
        *,
        progress: Mapping[str, Any] | None = None,
    ) -> int | None:
        """Store what a worker has emitted, and the progress that follows from it, in one transaction.

        Args:
            run_id: None for events of the job itself; ``attempt`` is then the job's.
            events: pairs of the number within the attempt and the event as JSON (with its ``type``). A number that
                is there already is left out: sending again is safe.
            progress: columns of the run (``epoch``, ``epochs``, ``progress``, ``metrics``) or of the job (see
                ``update_job``).

        Returns:
            How many events were new; None if this attempt does not work on it any more.
        """
        fields = dict(progress or {})
        check_fields(fields, RUN_FIELDS if run_id else JOB_FIELDS)
        with self.write() as session:
            owner = session.get(RunRecord, run_id) if run_id else session.get(JobRecord, job_id)
            if not works_on(owner, attempt):
                return None
            assign(owner, fields)
            # What the service adds of its own has no n.
            known = select(EventRecord.n).where(
                EventRecord.job_id == job_id,
                EventRecord.run_id == (run_id or ""),
                EventRecord.attempt == attempt,
                EventRecord.n.in_([n for n, _ in events]),
            )
            stored = set(session.scalars(known))
            new = {n: event for n, event in events if n not in stored}
            rows = [event_row(job_id, run_id, attempt, new[n], n) for n in sorted(new)]
            if rows:
                session.execute(insert(EventRecord), rows)
            return len(rows)


def check_fields(fields: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raises TypeError for a column that is not set in this way."""
    if unknown := sorted(set(fields) - allowed):
        raise TypeError(f"{', '.join(unknown)} cannot be set here, only {', '.join(sorted(allowed))}")
