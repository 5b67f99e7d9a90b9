"""Route of the logs of runs, while they are written and afterwards; ``workers.logs`` has their format."""

import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.auth import READ
from service.api.dependencies import Context, Ctx
from service.api.problems import responses
from service.db.models import RunRecord
from service.errors import NotFound, RangeNotSatisfiable
from workers.logs import RUN_LOG

router = APIRouter(prefix="/runs", tags=["runs"], responses=responses(401, 403, 404, 422, 500, 503))

MEDIA_TYPE = "application/jsonl"
# One range; a request for several is answered with the whole, as RFC 9110 allows.
_RANGE = re.compile(r"bytes=(?:(?P<first>\d{1,18})-(?P<last>\d{1,18})?|-(?P<suffix>\d{1,18}))")
Attempt = Annotated[int | None, Query(ge=1, lt=2**31, description="which attempt; the newest one by default")]


@router.get(
    "/{run_id}/log",
    operation_id="get_run_log",
    summary="The log of a run",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {
            "description": "What was said so far, a JSON object a line",
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        206: {"description": "The part that Range has asked for: `bytes=N-` is what came after N bytes"},
        304: {"description": "If-None-Match names the present ETag: nothing was said since"},
        **responses(416),
    },
)
def get_run_log(run_id: str, request: Request, ctx: Ctx, attempt: Attempt = None) -> Response:
    """Of an attempt that runs, has failed, was stopped or lost, too; a log is 1 MiB at most."""
    run = ctx.queries.get(RunRecord, run_id)
    number = run.attempt if attempt is None else attempt
    # Read at once: it may grow while it is sent.
    content = _read(ctx, run, number)
    headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    part = _part(request, len(content))
    if part is None:
        return Response(content, media_type=MEDIA_TYPE, headers=headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(content)}"
    return Response(content[part], 206, media_type=MEDIA_TYPE, headers=headers)


def _read(ctx: Context, run: RunRecord, attempt: int) -> bytes:
    path: Path = ctx.settings.jobs_dir / run.job_id / run.id / f"a{attempt}" / RUN_LOG
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound("log", f"{run.id}/a{attempt}") from None


def _part(request: Request, size_bytes: int) -> slice | None:
    """Bytes that Range asks for; None is all of them. Raises RangeNotSatisfiable."""
    header = request.headers.get("range", "")
    found = _RANGE.fullmatch(header.replace(" ", ""))
    # What a client has of another state of the file would have to be compared; a log only grows.
    if found is None or "if-range" in request.headers:
        return None
    first, last, suffix = (None if text is None else int(text) for text in found.group("first", "last", "suffix"))
    start = max(0, size_bytes - (suffix or 0)) if first is None else first
    stop = size_bytes if last is None else min(last + 1, size_bytes)
    if start >= stop:
        raise RangeNotSatisfiable(header, size_bytes)
    return slice(start, stop)
