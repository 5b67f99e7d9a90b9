"""Assembly of the HTTP API: ``create_app(settings)``. Importing this module starts and opens nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError

from service.api import problems
from service.api.auth import check_scopes
from service.api.bodies.json_bodies import BodyThread
from service.api.bodies.limits import BodyLimit, Pace
from service.api.bodies.multipart import sweep
from service.api.bodies.upload_sizes import BUFFER_BYTES, UPLOAD_EXTRA_BYTES
from service.api.dependencies import Context
from service.api.metrics import MeasureRequests, Metrics
from service.api.middleware.admission import AdmissionMiddleware
from service.api.middleware.etags import ConditionalGet
from service.api.middleware.request_context import HeadRequests, RequestContext
from service.api.middleware.response_cache import ResponseCache
from service.api.middleware.security_headers import PagePolicy, policies_of
from service.api.openapi import describe
from service.api.query_names import check_query
from service.api.routes import (
    added_runs,
    bad_pictures,
    cache_exports,
    cache_imports,
    caches,
    catalog,
    curves,
    datasets,
    deletions,
    events,
    extensions,
    gallery,
    gc,
    health,
    job_control,
    jobs,
    keys,
    metrics,
    pictures,
    reports,
    run_logs,
    runs,
    student_files,
    teachers,
    temperatures,
    webhooks,
)
from service.db.keys.api_keys import NOTE_USES_S, KeyRing
from service.db.webhook_outbox import WebhookOutbox
from service.paths import API_PREFIX, DOCS_PATH, IMPORT_PATH, REDOC_PATH, STUDENT_UPLOAD_PATH, UPLOAD_PATH
from service.settings import Settings
from service.version import service_version
from service.webhooks.dispatcher import WebhookDispatcher

BODY_BYTES_PER_S = 16 << 10
DESCRIPTION = """Distil students from a teacher whose logits are computed once.

1. `POST /v1/teachers` with an ONNX classifier.
2. `POST /v1/jobs` with the teacher, a dataset, and students x methods x seeds.
3. `GET /v1/jobs/{id}/events` with `Accept: text/event-stream`, then `GET /v1/jobs/{id}/report`.

Every error is `application/problem+json` (RFC 9457). Lists go on with `after=last_id` while `has_more`.

Where there are API keys, send `Authorization: Bearer KEY`. GET needs a key with the scope read; what changes something,
write; deleting a teacher, student file, dataset, cache, job or run, `/v1/gc` and `/v1/keys`, admin.
"""
log = structlog.get_logger("service.api.app")


def create_app(settings: Settings) -> FastAPI:
    """Create the application for these settings. The database must have been migrated when it starts.

    Raises:
        BadKeyFile: the API key file cannot be used.
        InvalidSettings: the hosts of webhooks cannot be used.
    """
    context = Context.of(settings)
    # Its programs come from the package, not from another host.
    app: FastAPI = FastAPIOffline(
        docs_url=DOCS_PATH,
        redoc_url=REDOC_PATH,
        title="Retort",
        version=service_version(),
        description=DESCRIPTION,
        lifespan=_lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.context = context
    app.state.body_thread = BodyThread()
    app.state.metrics = Metrics(context, app.version)
    problems.install(app)
    silence_s, upload_s = settings.body_stall_s, settings.upload_stall_s
    body = settings.body_max_bytes, Pace(silence_s, silence_s, BODY_BYTES_PER_S)
    pace = Pace(silence_s, upload_s, BUFFER_BYTES / upload_s)
    uploads = {
        UPLOAD_PATH: settings.teacher_max_bytes,
        IMPORT_PATH: settings.logits_max_bytes,
        STUDENT_UPLOAD_PATH: settings.student_file_max_bytes,
    }
    limits = {path: (most + UPLOAD_EXTRA_BYTES, pace) for path, most in uploads.items()}
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, default=body, paths=limits)
    app.add_middleware(ResponseCache, version=context.version)
    app.add_middleware(
        AdmissionMiddleware,
        ring=context.ring,
        rate=context.rate,
        requests=context.requests,
        streams=context.streams,
        uploads=context.uploads,
    )
    app.add_middleware(PagePolicy, policies=policies_of(app))
    app.add_middleware(ConditionalGet)
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestContext)
    app.add_middleware(MeasureRequests, metrics=app.state.metrics)
    # All others ask for a scope, and ``authorize`` looks at their queries.
    app.include_router(health.router, dependencies=[Depends(check_query)], responses=problems.responses(422))
    of_jobs = (jobs, added_runs, reports, curves, temperatures, runs, extensions, gallery, run_logs)
    modules = (
        *(teachers, student_files, datasets, pictures, bad_pictures, catalog, caches, cache_exports, cache_imports),
        *(*of_jobs, job_control, deletions, events, webhooks, gc, keys),
    )
    for router in (metrics.router, *(module.router for module in modules)):
        check_scopes(router)
    of_all = problems.responses(422, 429, 503)
    app.include_router(metrics.router, responses=of_all)
    for module in modules:
        app.include_router(module.router, prefix=API_PREFIX, responses=of_all)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    context.settings.make_folders()
    folders = (context.settings.teachers_dir, context.settings.student_files_dir)
    log.info("api starts", swept_uploads=sum(map(sweep, folders)))
    maintenance = asyncio.create_task(_maintain(context))
    async with WebhookDispatcher(context.settings, context.webhook_hosts, WebhookOutbox(context.database)):
        yield
    maintenance.cancel()
    await _note_uses_once(context.ring)
    context.version.close()
    context.database.close()
    log.info("api ended")


async def _maintain(context: Context) -> None:
    """Maintain the database periodically: note when keys were used, empty the write-ahead log."""
    while True:
        await asyncio.sleep(NOTE_USES_S)
        await _note_uses_once(context.ring)
        try:
            await asyncio.to_thread(context.database.checkpoint)
        except SQLAlchemyError as error:
            log.warning("the write-ahead log cannot be emptied", error=type(error).__name__)


async def _note_uses_once(ring: KeyRing) -> None:
    try:
        await ring.note_uses()
    except SQLAlchemyError as error:
        log.warning("when keys were used last cannot be noted", error=type(error).__name__)
