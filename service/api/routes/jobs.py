"""Routes of jobs: post, preview, list. ``job_control`` has those that end, pause and repeat them."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.auth import READ, WRITE, Who
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import PAGE_DEFAULT, After, Ctx, Limit, document, page
from service.api.initial_weights import check_uploaded_weights, with_known_weights
from service.api.job_checks import check_plan, check_request, find_dataset, find_teachers
from service.api.job_documents import show, show_one, summarise
from service.api.job_filters import Order, Wanted, WantedRuns
from service.api.job_preview import preview_of
from service.api.problems import responses
from service.api.routes import runs
from service.api.schemas.base import Page
from service.api.schemas.job_labels import JobChanges
from service.api.schemas.jobs import (
    Job,
    JobPreview,
    JobRequest,
    JobSummary,
)
from service.api.schemas.runs import Run
from service.db.job_posting import Idempotency
from service.db.queries.api_queries import digest_of
from service.db.queries.job_search import JobOrder
from service.estimates.caches import samples_of

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


async def in_turn(request: Request, ctx: Ctx, dry_run: DryRun = False) -> AsyncIterator[None]:
    """Wait for other long requests of the same key, if this one reads a cache's statistics."""
    if not dry_run:
        yield
        return
    async with ctx.heavy.held(request.state.name):
        yield


@router.post(
    "",
    operation_id="create_job",
    summary="Post a job",
    dependencies=[WRITE, Depends(in_turn)],
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
    idempotency = None
    if idempotency_key is not None and not dry_run:
        idempotency = _idempotency(request, who.key_id or "", idempotency_key)
    # A repeated request is answered as before, even if the same job could not be made any more.
    row, is_new = ctx.queries.replay(idempotency), False
    if row is None:
        check_request(request, ctx)
        teachers = find_teachers(request, ctx)
        plan = with_known_weights(request.filled(find_dataset(request, ctx.queries)), ctx)
        checked = check_plan(plan, teachers, ctx.settings)
        weights = check_uploaded_weights(checked, ctx)
        if dry_run:
            response.status_code = 200
            return preview_of(checked, weights, ctx)
        ctx.check_disk()
        row, is_new = ctx.queries.add_job(
            checked.plan,
            checked.teacher,
            idempotency,
            priority=request.priority,
            parallel_runs=request.parallel_runs,
            key_id=who.key_id,
            tags=request.tags,
            note=request.note,
            webhook_url=None if request.webhook is None else str(request.webhook.url),
            teachers=teachers,
            samples=samples_of(checked.plan, checked.source),
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
    return document(show(*ctx.queries.job(job_id), ctx.queries))


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
