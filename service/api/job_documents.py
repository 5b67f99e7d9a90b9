"""Documents of jobs, made of their rows: one by itself, and as it stands in a list."""

from collections import Counter
from collections.abc import Mapping

from service.api.routes.runs import eta_of
from service.api.schemas.job_teachers import JobTeacher
from service.api.schemas.jobs import Inference, Job, JobProgress, JobSummary, TeacherForwards
from service.api.schemas.runs import ErrorInfo, SetAside
from service.api.schemas.webhooks import WebhookDelivery
from service.db.job_teachers import members_of
from service.db.models import JobRecord, Json
from service.db.queries.api_queries import ApiQueries
from service.db.scheduling.backoff import read_backoff
from service.db.states import State
from service.db.webhook_outbox import WebhookOutbox


def summarise(row: JobRecord, counts: Mapping[State, int]) -> JobSummary:
    """Document of a job's row in a list, without the teacher's accuracy of each class; ``counts`` are of its runs."""
    return JobSummary(
        id=row.id,
        name=row.name,
        tags=row.tags or [],
        note=row.note,
        state=row.state,
        stage=row.stage,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=ErrorInfo.model_validate(row.error) if row.error else None,
        set_aside=SetAside.model_validate(row.set_aside) if row.set_aside else None,
        progress=JobProgress(
            inference=Inference.model_validate(row.inference) if row.inference else None,
            runs={state: counts.get(state, 0) for state in State},
        ),
        teacher=row.teacher_id,
        teacher_sha256=row.teacher["sha256"],
        teachers=[
            JobTeacher(**{name: each.get(name) or None for name in JobTeacher.model_fields})
            for each in members_of(row.teacher)
        ],
        caches=row.caches,
        teacher_forwards=forwards(row),
        teacher_accuracy=row.teacher_accuracy,
        teacher_views_accuracy=row.teacher_views_accuracy,
        teacher_metrics=_without_classes(row.teacher_metrics),
        waits_for=_waits_for(row),
        priority=row.priority,
        parallel_runs=row.parallel_runs,
        retry_of=row.retry_of,
        pinned=row.pinned_at is not None,
        eta=eta_of(row),
    )


def _without_classes(metrics: Json | None) -> Json | None:
    """Drop what a page of jobs would have thousands of numbers of."""
    if metrics is None:
        return None
    return {
        split: {name: value for name, value in of_split.items() if name != "per_class"}
        for split, of_split in metrics.items()
    }


def forwards(row: JobRecord) -> TeacherForwards | None:
    """Teacher forward passes of a job; None before any is known."""
    stored = row.teacher_forwards
    # Earlier versions have stored what a cache costs beyond what it spares as a negative number.
    return TeacherForwards(run=stored["run"], avoided=max(0, stored["avoided"])) if stored else None


def _waits_for(row: JobRecord) -> str | None:
    backoff = read_backoff(row.backoff) if row.state is State.RUNNING else None
    return None if backoff is None or backoff.is_over else backoff.waits_for


def show_one(row: JobRecord, queries: ApiQueries) -> Job:
    """Document of a job's row, with the ids and states of its runs."""
    return show(row, queries.states_of_runs(row.id), queries)


def show(row: JobRecord, runs: Mapping[str, State], queries: ApiQueries) -> Job:
    """Document of a job's row, with these ids and states of its runs."""
    summary = summarise(row, Counter(runs.values()))
    whole = {**dict(summary), "teacher_metrics": row.teacher_metrics}
    delivery = WebhookOutbox(queries.database).of_job(row.id)
    webhook = None if delivery is None else WebhookDelivery.of(delivery)
    return Job(**whole, plan=row.plan, run_ids=list(runs), webhook=webhook)
