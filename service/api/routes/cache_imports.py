"""Route that imports logits as a cache.

An upload is streamed to disk and read in a confined process, and imported in another one (``workers.teacher.imports``).
"""

from collections.abc import Mapping

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from service.api.auth import WRITE
from service.api.bodies.import_fields import FIELDS, options_of
from service.api.bodies.multipart import Upload, incoming_file
from service.api.bodies.upload_sizes import logits_limit
from service.api.dependencies import INSPECTIONS_MAX, Context, Ctx
from service.api.problems import responses
from service.api.schemas.caches import Cache, CacheUpload, ImportedCache
from service.api.unprepared import check_prepared
from service.api.uploads import receive_in_turn
from service.errors import InvalidRequest, NotInstalled
from workers.config.task import Folders
from workers.teacher.imports.importing import import_in_process
from workers.teacher.imports.request import ImportOptions, ImportTask
from workers.teacher.imports.uploaded_file import read_upload

router = APIRouter(prefix="/caches", tags=["caches"], responses=responses(401, 403, 500, 503))
_IMPORTS = anyio.CapacityLimiter(INSPECTIONS_MAX)


@router.post(
    "",
    operation_id="import_cache",
    summary="Import logits as a cache",
    dependencies=[WRITE],
    status_code=201,
    responses={
        200: {"model": ImportedCache, "description": "The same logits were imported before"},
        **responses(400, 408, 409, 413, 422, 501, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": CacheUpload.model_json_schema()}},
        }
    },
)
async def import_cache(request: Request, ctx: Ctx, response: Response) -> ImportedCache:
    """Logits of a split of a dataset, from anywhere, as the form field `file`; a job names the cache in `caches`.

    Every sample needs a row of each view. What a teacher would be refused for (accuracy that chance explains, another
    order of classes) is refused, unless `accept_teacher` insists. The cache is pinned: nobody can make it anew. Of a
    large dataset that was not decoded yet 409, at once where `dataset` and `split` come before the file, unless
    `prepare` insists, before the file as well.
    """
    settings = ctx.settings

    def check_early(fields: Mapping[str, str]) -> None:
        # What has not come yet may say something else.
        if {"dataset", "split"} <= fields.keys():
            _checked(fields, ctx)

    upload = receive_in_turn(
        request,
        ctx,
        settings.teachers_dir,
        text_fields=FIELDS,
        limit=logits_limit(settings),
        before_file=check_early,
    )
    async with upload as received:
        shown, is_new = await anyio.to_thread.run_sync(_import, received, ctx, limiter=_IMPORTS)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/caches/{shown.key}"
    return shown


def _checked(fields: Mapping[str, str], ctx: Context) -> ImportOptions:
    """Statements of a client, on a dataset that can be used within this request."""
    options = options_of(fields, ctx.queries)
    if not options.prepare:
        check_prepared(options.dataset, options.decoded_split, ctx.settings)
    return options


def _import(upload: Upload, ctx: Context) -> tuple[ImportedCache, bool]:
    if upload.data is not None:
        raise InvalidRequest("logits are one file: leave the field `data` out", "#/data")
    settings = ctx.settings
    options = _checked(upload.fields, ctx)
    with incoming_file(settings.teachers_dir) as (target, _):
        try:
            rows = read_upload(
                upload.path,
                target,
                bytes_max=settings.logits_max_bytes,
                timeout_s=settings.import_timeout_s,
                check_room=ctx.check_disk,
            )
        except ModuleNotFoundError as error:
            raise NotInstalled("Parquet files need", str(error.name), "datasets") from error
        task = ImportTask(
            options=options,
            rows=rows,
            sha256=upload.sha256,
            folders=Folders(data_dir=settings.data_dir.resolve(), data_root=settings.data_root.resolve()),
            quota_bytes=settings.caches_max_bytes,
        )
        imported = import_in_process(task, settings.import_timeout_s)
    cache = Cache.of(ctx.catalog.get(imported.key))
    shown = ImportedCache(**dict(cache), accuracy=imported.accuracy, warnings=list(imported.warnings))
    return shown, imported.is_new
