"""Adding runs to a job: their rows and the job's new plan, in one transaction."""

from collections.abc import Callable

from service.db import webhook_outbox
from service.db.job_posting import Idempotency, JobPosting, check_uploads, keep_key, new_runs, replayed
from service.db.job_teachers import check_teachers
from service.db.models import JobRecord
from service.db.states import TERMINAL, State
from service.db.transitions import add_event, existing, transition
from service.errors import Conflict
from workers.config.job import Plan
from workers.texts import some_of

_NAMED_RUNS = 3


class RunAdditions(JobPosting):
    """New runs of jobs that are there."""

    def add_runs(
        self, seen: JobRecord, plan: Plan, idempotency: Idempotency | None, check: Callable[[], None]
    ) -> tuple[JobRecord, bool] | None:
        """Add the runs of ``plan`` to a job that its own plan does not have; one that has ended is queued again.

        Those of a paused job are paused, too.

        Args:
            seen: the job's row, of whose plan ``plan`` was made.
            check: called before anything is made, inside the transaction; what it raises is passed on.

        Returns:
            The job, and whether the runs are new: False if the key was used meanwhile. None if the job has another
            plan by now: nothing was done.

        Raises:
            NotFound: the job was deleted meanwhile, or an uploaded file of a student.
            Conflict: it is being cancelled, or a teacher of it was deleted.
            IdempotencyMismatch: as ``replay``.
            QueueFull: it has ended, and its API key has as many live jobs as it may have.
        """
        with self.database.write() as session:
            if idempotency is not None and (known := replayed(session, idempotency)) is not None:
                return known, False
            job = existing(session, JobRecord, seen.id)
            if job.plan != seen.plan:
                return None
            if job.state is State.CANCELLING:
                raise Conflict(
                    f"no runs can be added to {job.id}: it is being cancelled; once it has ended they can be"
                )
            check_teachers(session, job)
            check_uploads(session, [student for block in plan.added for student in block.students])
            check()
            if job.state in TERMINAL:
                self.check_queue(session, job.key_id)
            job.plan = plan.model_dump(mode="json")
            runs = new_runs(plan, job.id, ())[-plan.added[-1].count :]
            session.add_all(runs)
            session.flush()
            if job.state in {State.PAUSING, State.PAUSED}:
                for run in runs:
                    transition(session, run, State.PAUSED, {"set_aside": job.set_aside})
            elif job.state in TERMINAL:
                again = dict.fromkeys(("finished_at", "error", "stage", "eta"))
                transition(session, job, State.QUEUED, again)
                webhook_outbox.renew(session, job.id)
            names = some_of([repr(run.name) for run in runs], _NAMED_RUNS)
            message = f"{len(runs)} {'run was' if len(runs) == 1 else 'runs were'} added: {names}"
            add_event(session, job, {"type": "log", "level": "info", "message": message})
            keep_key(session, idempotency, job.id)
            return job, True
