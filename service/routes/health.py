"""Is the process alive, and can it do its work? No key is asked for: a load balancer has none."""

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from service.context import Context, Service
from service.gpus import gpu_reason
from service.problems import responses
from service.schemas import Health, Readiness

router = APIRouter(tags=["health"], responses=responses(500))


@router.get("/healthz", operation_id="get_health", summary="Is the process alive?")
async def get_health() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Are jobs taken and worked on?",
    responses={503: {"model": Readiness, "description": "Not ready; `reasons` says why"}},
)
def get_readiness(service: Service, response: Response) -> Readiness:
    """Ready means: the database is at the newest migration, an engine has been heard of within 30 s, and the GPUs that
    it promises to runs work."""
    readiness = _readiness(service)
    response.status_code = 200 if readiness.ready else 503
    return readiness


def _readiness(service: Context) -> Readiness:
    age_s = None
    reasons = []
    try:
        if (reason := service.database.why_not_at_head()) is None:
            age_s = service.records.heartbeat_age_s()
            reasons += _engine_reasons(age_s, service.settings.heartbeat_max_age_s)
            if not reasons and (broken := gpu_reason(service.records.gpus())):
                reasons.append(broken)
        else:
            reasons.append(reason)
    except SQLAlchemyError as error:
        reasons.append(f"the database cannot be read ({type(error).__name__})")
    return Readiness(ready=not reasons, reasons=reasons, heartbeat_age_s=age_s)


def _engine_reasons(age_s: float | None, max_age_s: float) -> list[str]:
    if age_s is None:
        return ["no engine leads: start `retort engine`"]
    if age_s > max_age_s:
        return [f"the engine was last heard of {age_s:.0f} s ago, more than {max_age_s:g} s"]
    return []
