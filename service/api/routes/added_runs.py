"""Route that adds runs to a job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from service.api.added_runs import added_alone, check_added, preview_of_added
from service.api.auth import WRITE, Who
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import Ctx
from service.api.initial_weights import check_uploaded_weights
from service.api.job_documents import show_one
from service.api.problems import responses
from service.api.routes.jobs import DryRun, IdempotencyKey, in_turn
from service.api.schemas.added_runs import RunsRequest
from service.api.schemas.jobs import Job, JobPreview
from service.db.job_posting import Idempotency
from service.db.models import JobRecord
from service.db.queries.api_queries import digest_of

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403, 404, 500, 503), route_class=JsonRoute)


@router.post(
    "/{job_id}/runs",
    operation_id="add_runs",
    summary="Add runs to a job",
    dependencies=[WRITE, Depends(in_turn)],
    status_code=201,
    responses={
        200: {"model": Job | JobPreview, "description": "The same request again, or a dry run"},
        **responses(400, 408, 409, 413, 422, 507),
    },
)
def add_runs(
    job_id: str,
    request: Annotated[RunsRequest, json_body(RunsRequest)],
    ctx: Ctx,
    who: Who,
    response: Response,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
) -> Job | JobPreview:
    """Students x methods x seeds become further runs, on its caches; a job that has ended is queued again.

    Dataset, teacher, views and training stay. Runs that the job has are refused.
    """
    idempotency = None
    if idempotency_key is not None and not dry_run:
        body = {"add_runs_to": job_id, "runs": request.model_dump(mode="json")}
        idempotency = Idempotency(who.key_id or "", idempotency_key, digest_of(body))
    row, is_new = ctx.queries.replay(idempotency), False
    while row is None:
        job = ctx.queries.get(JobRecord, job_id)
        checked = check_added(job, request, ctx)
        weights = check_uploaded_weights(added_alone(checked), ctx)
        if dry_run:
            response.status_code = 200
            return preview_of_added(checked, weights, ctx)
        # None where somebody else has added runs since the job was read: they are looked at first.
        made = ctx.queries.add_runs(job, checked.plan, idempotency, ctx.check_disk)
        if made is not None:
            row, is_new = made
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return show_one(row, ctx.queries)
