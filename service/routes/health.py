"""Is the process alive, and can it do its work? No key is asked for: a load balancer has none."""

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from service.context import Context, Service
from service.db import LogGone
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
    reasons: list[str] = []
    try:
        if (reason := service.database.why_not_at_head()) is None:
            lease = service.records.lease()
            age_s = lease.age_s
            silence = lease.silence(service.settings.heartbeat_max_age_s)
            if failure := silence or gpu_reason(service.records.gpus()):
                reasons.append(failure)
        else:
            reasons.append(reason)
    except LogGone as error:
        reasons.append(str(error))
    except SQLAlchemyError as error:
        reasons.append(f"the database cannot be read ({type(error).__name__})")
    return Readiness(ready=not reasons, reasons=reasons, heartbeat_age_s=age_s)
