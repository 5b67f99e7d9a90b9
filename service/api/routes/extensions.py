"""Route that gives a run that has succeeded more epochs."""

from typing import Annotated

from fastapi import APIRouter, Response

from service.api.auth import WRITE, Who
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import Ctx
from service.api.extension import check_extended
from service.api.job_documents import show_one
from service.api.problems import responses
from service.api.routes.jobs import IdempotencyKey
from service.api.schemas.extensions import ExtensionRequest
from service.api.schemas.jobs import Job
from service.db.job_posting import Idempotency
from service.db.models import JobRecord, RunRecord
from service.db.queries.api_queries import digest_of

router = APIRouter(prefix="/runs", tags=["runs"], responses=responses(401, 403, 404, 500, 503), route_class=JsonRoute)


@router.post(
    "/{run_id}/extend",
    operation_id="extend_run",
    summary="Extend a run to more epochs",
    dependencies=[WRITE],
    status_code=201,
    responses={
        200: {"model": Job, "description": "The same request again"},
        **responses(400, 408, 409, 413, 422, 507),
    },
)
def extend_run(
    run_id: str,
    request: Annotated[ExtensionRequest, json_body(ExtensionRequest)],
    ctx: Ctx,
    who: Who,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """A new job of this one run, which has kept its checkpoint; its end is that of a run of all epochs, bit for bit.

    Refused where it would not be: the best epoch's or averaged weights, early stopping, and schedules without steps,
    unless a `learning_rate` is stated: the added epochs are then a warm restart, and the run of all epochs has it, too.
    """
    idempotency = None
    if idempotency_key is not None:
        body = {"extend": run_id, "request": request.model_dump(mode="json")}
        idempotency = Idempotency(who.key_id or "", idempotency_key, digest_of(body))
    row, is_new = ctx.queries.replay(idempotency), False
    if row is None:
        run = ctx.queries.get(RunRecord, run_id)
        job = ctx.queries.get(JobRecord, run.job_id)
        checked = check_extended(run, job, request, ctx)
        ctx.check_disk()
        row, is_new = ctx.queries.add_job(
            checked.plan,
            checked.teacher,
            idempotency,
            priority=job.priority,
            key_id=who.key_id,
            tags=job.tags or [],
            note=job.note,
            teachers=checked.chosen,
            samples=job.samples,
        )
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return show_one(row, ctx.queries)
