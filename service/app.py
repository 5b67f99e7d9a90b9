"""The HTTP API, put together: ``create_app(settings)``. Importing this module starts and opens nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from service import problems
from service.auth import authenticate
from service.context import Context
from service.middleware import BodyLimit, RequestContext
from service.routes import caches, catalog, datasets, events, health, jobs, runs, teachers
from service.schemas import FieldProblem, Problem
from service.settings import MiB, Settings
from service.uploads import sweep

API_PREFIX = "/v1"
UPLOAD_PATH = f"{API_PREFIX}/teachers"
UPLOAD_EXTRA_BYTES = MiB  # boundaries, part headers and text fields beside the file
DESCRIPTION = """Distil students from a teacher whose logits are computed once.

1. `POST /v1/teachers` with an ONNX classifier.
2. `POST /v1/jobs` with the teacher, a data set, and students x methods x seeds.
3. `GET /v1/jobs/{id}/events` with `Accept: text/event-stream`, then `GET /v1/jobs/{id}/report`.

Every error is `application/problem+json` (RFC 9457). Lists go on with `after=last_id` while `has_more`.
"""
log = structlog.get_logger("service.app")


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings. The database must have been migrated when it starts.

    Raises:
        BadKeyFile: the API key file cannot be used.
    """
    context = Context.of(settings)
    app = FastAPI(
        title="Retort",
        version=_version(),
        description=DESCRIPTION,
        lifespan=_lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.context = context
    problems.install(app)
    upload_bytes = {UPLOAD_PATH: settings.teacher_max_bytes + UPLOAD_EXTRA_BYTES}
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, default_bytes=settings.body_max_bytes, paths_bytes=upload_bytes)
    app.add_middleware(RequestContext)
    app.include_router(health.router)
    for module in (teachers, datasets, catalog, caches, jobs, runs, events):
        app.include_router(module.router, prefix=API_PREFIX, dependencies=[Depends(authenticate)])
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    context.settings.make_folders()
    log.info("api starts", swept_uploads=sweep(context.settings.teachers_dir))
    yield
    context.database.close()
    log.info("api ended")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the problem that every route refers to."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            license_info=app.license_info,
        )
        schemas = app.openapi_schema["components"]["schemas"]
        for model in (Problem, FieldProblem):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            schemas[model.__name__] = schema
    return app.openapi_schema


def _version() -> str:
    try:
        return version("retort")
    except PackageNotFoundError:
        return "0+source"
