"""Routes of jobs: post, preview, list. ``job_control`` has those that end, pause and repeat them."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.auth import READ, WRITE, Who
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.cost import cost_of
from service.api.dependencies import PAGE_DEFAULT, After, Ctx, Limit, document, page
from service.api.job_checks import check_job, labels_of, picture_size, student_size
from service.api.job_filters import Order, Wanted, WantedRuns
from service.api.job_warnings import gradient_warnings_of_plan
from service.api.problems import responses
from service.api.routes import runs
from service.api.schemas.base import Page
from service.api.schemas.costs import Cost
from service.api.schemas.job_labels import JobChanges
from service.api.schemas.jobs import (
    Inference,
    Job,
    JobPreview,
    JobProgress,
    JobRequest,
    JobSummary,
    PlannedRun,
    TeacherForwards,
    ViewSizes,
)
from service.api.schemas.labels import LabelsPreview
from service.api.schemas.runs import ErrorInfo, Run, SetAside
from service.api.schemas.webhooks import WebhookDelivery
from service.db.api_queries import ApiQueries, digest_of
from service.db.backoff import read_backoff
from service.db.job_posting import Idempotency, evaluation_run
from service.db.job_search import JobOrder
from service.db.models import JobRecord, Json, TeacherRecord
from service.db.states import State
from service.db.webhook_outbox import WebhookOutbox
from workers.config.dataset import thumbnail_warnings
from workers.config.job import Plan
from workers.config.teacher import Preprocessing

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403, 500, 503), route_class=JsonRoute)

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="the same key with the same body gives the same job, however often it is sent",
    ),
]


DryRun = Annotated[bool, Query(description="check it and show its runs and its cost, but make nothing")]


async def _in_turn(request: Request, ctx: Ctx, dry_run: DryRun = False) -> AsyncIterator[None]:
    """Wait for other long requests of the same key, if this one reads a cache's statistics."""
    if not dry_run:
        yield
        return
    async with ctx.heavy.held(request.state.name):
        yield


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
        eta=runs.eta_of(row),
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
    return _show(row, queries.states_of_runs(row.id), queries)


def _show(row: JobRecord, runs: Mapping[str, State], queries: ApiQueries) -> Job:
    summary = summarise(row, Counter(runs.values()))
    whole = {**dict(summary), "teacher_metrics": row.teacher_metrics}
    delivery = WebhookOutbox(queries.database).of_job(row.id)
    webhook = None if delivery is None else WebhookDelivery.of(delivery)
    return Job(**whole, plan=row.plan, run_ids=list(runs), webhook=webhook)


@router.post(
    "",
    operation_id="create_job",
    summary="Post a job",
    dependencies=[WRITE, Depends(_in_turn)],
    status_code=201,
    responses={
        200: {"model": Job | JobPreview, "description": "The same request again, or a dry run"},
        **responses(400, 408, 413, 422, 507),
    },
)
def create_job(
    request: Annotated[JobRequest, json_body(JobRequest)],
    ctx: Ctx,
    who: Who,
    response: Response,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
) -> Job | JobPreview:
    """Students x methods x seeds become runs. Everything that can be known now is checked now."""
    if dry_run:
        plan, teacher, source = check_job(request, ctx)
        response.status_code = 200
        labels, warnings = labels_of(plan, teacher, source)
        warnings += gradient_warnings_of_plan(plan, teacher.sha256, ctx.settings.caches_dir)
        return _preview(plan, teacher, labels, warnings, cost=cost_of(plan, teacher, source, ctx))
    idempotency = None
    if idempotency_key is not None:
        idempotency = _idempotency(request, who.key_id or "", idempotency_key)
    # A repeated request is answered as before, even if the same job could not be made any more.
    row, is_new = ctx.queries.replay(idempotency), False
    if row is None:
        plan, teacher, source = check_job(request, ctx)
        ctx.check_disk()
        row, is_new = ctx.queries.add_job(
            plan,
            teacher,
            idempotency,
            priority=request.priority,
            parallel_runs=request.parallel_runs,
            key_id=who.key_id,
            tags=request.tags,
            note=request.note,
            webhook_url=None if request.webhook is None else str(request.webhook.url),
            samples={str(split): count for split, count in source.samples.items()},
        )
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return show_one(row, ctx.queries)


def _idempotency(request: JobRequest, key_id: str, key: str) -> Idempotency:
    """Return an Idempotency-Key with the digest of its request, and those that earlier versions have stored of it.

    The one with recipes has taken ``identity()`` as it is, the one before a dump. A dump does not tell a body that
    leaves training and views out from one with ``{}``: so this version's digests differ from all of theirs.
    """
    identity = request.identity()
    earlier = digest_of(identity), digest_of(request.model_dump(mode="json"))
    return Idempotency(key_id, key, digest_of({"digest_version": 2, "identity": identity}), earlier)


def _preview(
    plan: Plan, teacher: TeacherRecord, labels: LabelsPreview, warnings: Sequence[str], *, cost: Cost
) -> JobPreview:
    planned = [
        PlannedRun(name=run.name, student=run.student.name, method=run.method.label, seed=run.seed)
        for run in plan.runs()
    ]
    if plan.evaluate:
        planned = [PlannedRun(**evaluation_run(teacher))]
    preprocessing = Preprocessing.model_validate(teacher.preprocessing)
    return JobPreview(
        teacher=teacher.id,
        plan=plan,
        runs=planned,
        views=ViewSizes(student=student_size(plan), teacher=preprocessing.size or picture_size(plan)),
        labels=labels,
        warnings=[*plan.warnings, *thumbnail_warnings(plan.dataset, preprocessing.size), *warnings],
        cost=cost,
    )


@router.get(
    "",
    operation_id="list_jobs",
    summary="List jobs",
    dependencies=[READ],
    response_model=Page[JobSummary],
    responses=responses(404, 422),
)
def list_jobs(
    ctx: Ctx,
    wanted: Wanted,
    sort: Order = JobOrder.NEWEST,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
) -> Response:
    """Newest first unless `sort` says otherwise; what was posted and the ids of the runs are shown for one job.

    Filters hold together. A page goes on behind the present place of the job `after`; with `sort` it must be there.
    """
    rows, has_more = ([], False) if wanted is None else ctx.queries.jobs(wanted, after, limit, sort)
    counts = ctx.queries.counts_of_runs([row.id for row in rows])
    return page(rows, has_more, lambda row: summarise(row, counts[row.id]), lambda row: row.id)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="One job",
    dependencies=[READ],
    response_model=Job,
    responses=responses(404, 422),
)
def get_job(job_id: str, ctx: Ctx) -> Response:
    """State, stage, progress, plan, and the ids of its runs."""
    return document(_show(*ctx.queries.job(job_id), ctx.queries))


@router.patch(
    "/{job_id}",
    operation_id="change_job",
    summary="Change name, tags or note of a job",
    dependencies=[WRITE],
    responses=responses(400, 404, 408, 413, 422),
)
def change_job(job_id: str, changes: Annotated[JobChanges, json_body(JobChanges)], ctx: Ctx) -> Job:
    """Replaces what is given and leaves the rest, in any state of the job. Neither its plan nor its results change."""
    return show_one(ctx.queries.change_job(job_id, changes.given), ctx.queries)


@router.get(
    "/{job_id}/runs",
    operation_id="list_runs",
    summary="Runs of a job",
    dependencies=[READ],
    response_model=Page[Run],
    responses=responses(404, 422),
)
def list_runs(job_id: str, ctx: Ctx, wanted: WantedRuns, after: After = None, limit: Limit = PAGE_DEFAULT) -> Response:
    """In the order of the plan: students slowest, seeds fastest."""
    rows, has_more = ctx.queries.runs(job_id, after, limit, wanted)
    return page(rows, has_more, runs.show, lambda row: row.id)
