"""Rows of runs as the engine writes them: moves of their states, why they wait, results."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import select, update

from service.db.lease import LeaseQueries
from service.db.models import ArtifactRecord, JobRecord, Json, RunRecord
from service.db.scheduling import set_aside
from service.db.scheduling.backoff import Backoff
from service.db.states import TERMINAL, State
from service.db.transitions import add_event, assign, existing, runs_of, transition, works_on


class RunQueries(LeaseQueries):
    """The runs that the engine works on."""

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, RunRecord, run_id)

    def runs(self, job_id: str) -> list[RunRecord]:
        """The runs of a job in the order of its plan; empty if there is no such job."""
        with self.database.read() as session:
            return list(session.scalars(runs_of(job_id)))

    def move_run(
        self,
        run_id: str,
        attempt: int,
        wanted: State,
        *,
        error: Json | None = None,
        result: Json | None = None,
    ) -> bool:
        """Move a run's state on behalf of one attempt (0 for a run that never started).

        Returns:
            Whether it landed: False if a newer attempt has begun, if the table has no such move, or if the run shall
            be running, which begins an attempt and is ``start_attempts``'.
        """
        with self.write() as session:
            run = session.get(RunRecord, run_id)
            if run is None or run.attempt != attempt or wanted is State.RUNNING:
                return False
            landed = transition(session, run, wanted, {} if result is None else {"result": result}, error=error)
            if landed and wanted in TERMINAL:
                # It may have been the last one for which its job was to go on by itself.
                set_aside.follow(session, session.get_one(JobRecord, run.job_id))
            return landed

    def move_on(
        self,
        run_id: str,
        attempt: int,
        after: Mapping[State, State],
        *,
        needs_whole_gpu: bool = False,
        backoff: Backoff | None = None,
    ) -> State | None:
        """Move a run that nobody works on any more to the state that follows from what was wanted of it just now.

        Args:
            after: by the present state.
            needs_whole_gpu: from now on it is given nothing less.
            backoff: its new one, if it was lost; an event (``log``) says so.

        Returns:
            The new state; None if it did not land: a newer attempt has begun, or ``after`` has nothing for its state.
        """
        with self.write() as session:
            run = session.get(RunRecord, run_id)
            if run is None or run.attempt != attempt or run.state not in after:
                return None
            # The transition changes the row's state.
            wanted = after[run.state]
            fields: dict[str, object] = {"whole_gpu": True} if needs_whole_gpu else {}
            if backoff is not None:
                fields["backoff"] = backoff.model_dump(mode="json")
            if not transition(session, run, wanted, fields):
                return None
            if backoff is not None and wanted is State.LOST:
                add_event(session, run, {"type": "log", "level": "warning", "message": backoff.waits_for})
                reason = None if backoff.is_over else backoff.waits_for
                session.execute(update(RunRecord).where(RunRecord.id == run_id).values(waits_for=reason))
            return wanted

    def waits_for(self, job_id: str) -> dict[str, str]:
        """Stored reasons why runs of a job wait, by id: a client who pauses and resumes a run takes its reason away."""
        query = select(RunRecord.id, RunRecord.waits_for).where(RunRecord.job_id == job_id)
        with self.database.read() as session:
            return {id: reason for id, reason in session.execute(query) if reason is not None}

    def set_run_aside(self, run_id: str, attempt: int, reason: Json) -> State | None:
        """Set a run aside, see ``set_aside.put_run``."""
        with self.write() as session:
            return set_aside.put_run(session, run_id, attempt, reason)

    def runs_aside(self) -> list[tuple[str, str]]:
        """Ids of every run that is set aside, and of its job, see ``set_aside.waiting``."""
        with self.database.read() as session:
            return set_aside.waiting(session)

    def resume_set_aside(self, run_ids: Collection[str]) -> list[str]:
        """Queue runs that are set aside, see ``set_aside.resume``."""
        with self.write() as session:
            return set_aside.resume(session, run_ids)

    def record_waiting(self, job_id: str, reasons: Mapping[str, str]) -> None:
        """Store why runs of a job wait although it is their turn; those without a reason have none any more.

        A run that had none gets an event (``log``) with it, beside the column that follows every change.

        Args:
            reasons: by run id; of runs that do not wait (any more) they are left out.
        """
        with self.write() as session:
            for run in session.scalars(runs_of(job_id)):
                reason = reasons.get(run.id) if run.state in {State.QUEUED, State.LOST} else None
                if reason == run.waits_for:
                    continue
                if run.waits_for is None:
                    add_event(session, run, {"type": "log", "level": "info", "message": reason})
                assign(run, {"waits_for": reason})

    def record_result(self, run_id: str, attempt: int, artifacts: Sequence[Json], result: Json) -> bool:
        """End a run that has succeeded, and list the files that this attempt has left, both or neither.

        It has succeeded even if a pause or a cancellation was requested meanwhile.

        Args:
            artifacts: each ``{"name", "path", "size_bytes", "sha256", "media_type"}``, path relative to the data
                directory.

        Returns:
            Whether it landed: False if this attempt does not work on the run any more.
        """
        with self.write() as session:
            run = session.get(RunRecord, run_id)
            if not works_on(run, attempt):
                return False
            session.add_all(ArtifactRecord(run_id=run_id, attempt=attempt, **artifact) for artifact in artifacts)
            return transition(session, run, State.SUCCEEDED, {"result": result})
