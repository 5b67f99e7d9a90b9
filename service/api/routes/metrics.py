"""Route of metrics for Prometheus; ``service.api.metrics`` collects them."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.auth import READ
from service.api.metrics import MEDIA_TYPE, Metrics
from service.api.problems import responses

router = APIRouter(tags=["health"], responses=responses(401, 403, 500, 503))


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Metrics for Prometheus",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"description": "Prometheus's text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def get_metrics(request: Request) -> Response:
    """Jobs, runs, queue, teacher and caches out of the database; requests as this process has answered them."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(), headers={"Content-Type": MEDIA_TYPE})
