"""Route of garbage collection on demand; ``service.db.deletions.retention`` chooses what is deleted."""

from dataclasses import asdict, replace
from typing import Annotated

from fastapi import APIRouter

from service.api.auth import ADMIN
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import Ctx
from service.api.problems import responses
from service.api.schemas.gc import GcDecoded, GcJob, GcReport, GcRequest, GcUsage
from service.db.deletions.retention import Limits, Retention
from service.db.deletions.usage import usage

router = APIRouter(tags=["gc"], responses=responses(401, 403, 500, 503), route_class=JsonRoute)


@router.post(
    "/gc", operation_id="collect", summary="Collect garbage", dependencies=[ADMIN], responses=responses(400, 413, 422)
)
def collect(request: Annotated[GcRequest, json_body(GcRequest)], ctx: Ctx) -> GcReport:
    """Deletes ended jobs, decoded datasets and events beyond the limits: those given here, else those of the settings.

    Jobs that are pinned, have not ended or are needed by a live retry stay. A `dry_run` says what would go.
    """
    given = request.model_dump(exclude={"dry_run"}, exclude_none=True)
    limits = replace(Limits.of(ctx.settings), **given)
    done = Retention(ctx.settings, ctx.deletion).collect(limits, dry_run=request.dry_run)
    return GcReport(
        dry_run=request.dry_run,
        jobs=[GcJob(**asdict(job)) for job in done.jobs],
        decoded=[GcDecoded.model_validate(copy, from_attributes=True) for copy in done.decoded],
        compacted_jobs=done.compacted_jobs,
        compacted_events=done.compacted_events,
        rests_bytes=done.rests_bytes,
        files_bytes=done.files_bytes,
        usage=GcUsage(**asdict(usage(ctx.settings, ctx.deletion.database))),
    )
