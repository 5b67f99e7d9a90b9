"""Routes of health: liveness and readiness. They need no key: a load balancer has none."""

from fastapi import APIRouter, Response

from service.api.dependencies import Ctx
from service.api.problems import responses
from service.api.schemas.health import Health
from service.operations.readiness import Readiness

router = APIRouter(tags=["health"], responses=responses(500))


@router.get("/healthz", operation_id="get_health", summary="Is the process alive?")
async def get_health() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Are jobs taken and worked on?",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready; `reasons` says why, `parts` of what"}},
)
def get_readiness(ctx: Ctx) -> Response:
    """Ready means: the database is at the newest migration, an engine has been heard of within 30 s, its Ray works and
    the GPUs that it promises to runs, the disk has room and can be written, and the clocks agree."""
    readiness = ctx.readiness.look()
    # Written at once: to have FastAPI check it once more would be half of what a request costs.
    content = readiness.model_dump_json().encode()
    return Response(content, 200 if readiness.ready else 503, media_type="application/json")
