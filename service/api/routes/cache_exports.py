"""Route of a cache as one file: npz, Parquet or Zarr."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import READ
from service.api.dependencies import Ctx, Heavy
from service.api.file_downloads import download
from service.api.problems import responses
from service.api.routes.caches import Key
from service.operations.exports import export_bytes, export_once, facts_of
from service.paths import EXPORT_SUFFIXES
from store.export import ExportFormat

router = APIRouter(prefix="/caches", tags=["caches"], responses=responses(401, 403, 404, 409, 422, 500))
_MEDIA_TYPES: dict[ExportFormat, str] = {
    "npz": "application/zip",
    "parquet": "application/vnd.apache.parquet",
    "zarr": "application/zip",
}
_SHOWN_DIGITS = 12


@router.get(
    "/{key}/export",
    operation_id="export_cache",
    summary="A cache as one file",
    dependencies=[READ, Heavy],
    response_class=Response,
    responses={
        200: {"description": "The file; its ETag is its SHA-256", "content": {"*/*": {}}},
        206: {"description": "The part that Range has asked for"},
        304: {"description": "If-None-Match names the present ETag"},
        **responses(416, 501, 507),
    },
)
def export_cache(
    key: Key,
    request: Request,
    ctx: Ctx,
    format: Annotated[ExportFormat, Query(description="`zarr` is a zip of the cache as it is stored")] = "npz",
) -> Response:
    """Logits, statistics and, while the decoded dataset is there, sample ids and labels.

    Every byte is compared with its checksum before the first one is sent: of a large cache the first request takes as
    long as reading and writing it. Serves Range, If-Range and If-None-Match; Repr-Digest carries the SHA-256.
    """
    entry = ctx.catalog.get(key)
    spec = ctx.catalog.spec(key)
    facts = facts_of(ctx.settings.datasets_dir, spec)
    made = export_once(
        ctx.settings.exports_dir,
        ctx.settings.caches_dir,
        key,
        format,
        facts=facts,
        check_room=lambda: ctx.check_disk(export_bytes(spec, format, entry.size_bytes, facts)),
    )
    name = f"{key[:_SHOWN_DIGITS]}-{spec.split}{EXPORT_SUFFIXES[format]}"
    return download(made.path, request, name=name, sha256=made.sha256, media_type=_MEDIA_TYPES[format])
