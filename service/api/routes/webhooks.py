"""Route of webhooks: how far the deliveries of all jobs are. Posting a job with a webhook makes one."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.auth import READ
from service.api.dependencies import PAGE_DEFAULT, After, Ctx, Limit, page
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.webhooks import JobWebhook
from service.db.webhook_outbox import DeliveryStatus, WebhookOutbox

router = APIRouter(prefix="/webhooks", tags=["webhooks"], responses=responses(401, 403, 422, 500, 503))


@router.get(
    "", operation_id="list_webhooks", summary="List webhooks", dependencies=[READ], response_model=Page[JobWebhook]
)
def list_webhooks(
    ctx: Ctx,
    status: Annotated[DeliveryStatus | None, Query(description="only those of this status")] = None,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
) -> Response:
    """Deliveries of all jobs with a webhook, newest first; of one given up with the reason in `last_error`."""
    rows, has_more = WebhookOutbox(ctx.database).list(status, after, limit)
    return page(rows, has_more, JobWebhook.of, lambda row: row.id)
