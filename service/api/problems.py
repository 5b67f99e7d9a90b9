"""Problem documents (RFC 9457) of errors: one table from exception class to status, looked up along the class's MRO.

Nothing else in the project knows what HTTP status an error has. A new error class without an entry is answered as its
nearest base; what is not foreseen at all is a 500 whose detail stays in the log.
"""

import errno
import http
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from service import errors
from service.api.openapi import allowed_methods
from service.api.schemas.problems import FieldProblem, Problem
from service.db.connection.connections import LogGone
from service.db.database import DatabaseDiskError, DatabaseFull
from store import (
    AmbiguousKey,
    CacheBusy,
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    CachePinned,
    DiskFull,
    InvalidArgument,
    QuotaExceeded,
    RowOutOfRange,
    StoreError,
)
from workers.errors import (
    ContractViolation,
    DiskLow,
    InvalidDataset,
    InvalidJob,
    InvalidLogits,
    InvalidMethod,
    InvalidStudentFile,
    InvalidTeacher,
    RunsExist,
    SessionLost,
    UnknownName,
    UserError,
    WorkerError,
    first_line,
)
from workers.texts import storable, without_folders

MEDIA_TYPE = "application/problem+json"
URN = "urn:retort:problem:"
RETRY_AFTER_S = 5
_SHOWN_CHARS = 80
log = structlog.get_logger("service.http")
# Of a request: a body may hold a hundred thousand wrong values.
_FIELDS_MAX = 20


@dataclass(frozen=True)
class Kind:
    """Kind of problem: HTTP status, type and title.

    Attributes:
        status: HTTP status code.
        slug: last part of the problem's ``type``, never changed once published.
        title: the kind in words; the same for every occurrence.
        shows_message: whether the exception's text is meant for the client.
        headers: sent with it.
    """

    status: int
    slug: str
    title: str
    shows_message: bool = True
    headers: Mapping[str, str] | None = None


_BUSY = {"Retry-After": str(RETRY_AFTER_S)}
_NO_ROOM = Kind(507, "disk-full", "Not enough disk space")
_NO_STORAGE = Kind(503, "storage-unavailable", "Storage unavailable", headers=_BUSY)
_CONFLICT = Kind(409, "conflict", "Conflict")
_INTERNAL = Kind(500, "internal", "Internal error", shows_message=False)
_NO_DATABASE = Kind(503, "database-unavailable", "Database unavailable", shows_message=False, headers=_BUSY)

KINDS: Mapping[type[Exception], Kind] = {
    errors.NotFound: Kind(404, "not-found", "Not found"),
    errors.Conflict: _CONFLICT,
    errors.InvalidRequest: Kind(422, "invalid-request", "Invalid request"),
    errors.MalformedBody: Kind(400, "malformed-body", "Malformed body"),
    errors.IdempotencyMismatch: Kind(422, "idempotency-mismatch", "Idempotency key reused"),
    errors.TooLarge: Kind(413, "too-large", "Content too large"),
    errors.SlowBody: Kind(408, "too-slow", "Body too slow"),
    errors.RangeNotSatisfiable: Kind(416, "range-not-satisfiable", "Range not satisfiable"),
    errors.Unauthorized: Kind(401, "unauthorized", "Unauthorized", headers={"WWW-Authenticate": "Bearer"}),
    errors.Forbidden: Kind(403, "forbidden", "Forbidden"),
    errors.ForeignOrigin: Kind(403, "foreign-origin", "Foreign origin"),
    errors.TooManyRequests: Kind(429, "too-many-requests", "Too many requests"),
    errors.NoRoom: Kind(503, "no-room", "No room for more connections", headers=_BUSY),
    errors.QueueFull: Kind(429, "queue-full", "Queue full"),
    errors.DiskFloor: _NO_ROOM,
    errors.NotInstalled: Kind(501, "not-installed", "Not installed here"),
    RequestValidationError: Kind(422, "invalid-request", "Invalid request"),
    InvalidTeacher: Kind(422, "invalid-teacher", "Invalid teacher"),
    InvalidDataset: Kind(422, "invalid-dataset", "Invalid dataset"),
    InvalidLogits: Kind(422, "invalid-logits", "Invalid logits"),
    InvalidMethod: Kind(422, "invalid-method", "Invalid method"),
    InvalidStudentFile: Kind(422, "invalid-student-file", "Invalid student file"),
    RunsExist: _CONFLICT,
    InvalidJob: Kind(422, "invalid-job", "Invalid job"),
    UnknownName: Kind(422, "unknown-name", "Unknown name"),
    ContractViolation: Kind(422, "contract-violation", "Teacher and dataset do not match"),
    UserError: Kind(422, "invalid-request", "Invalid request"),
    DiskLow: _NO_ROOM,
    SessionLost: Kind(503, "process-lost", "Process ended from outside", headers=_BUSY),
    WorkerError: _INTERNAL,
    CacheNotFound: Kind(404, "not-found", "Not found"),
    InvalidArgument: Kind(422, "invalid-request", "Invalid request"),
    AmbiguousKey: _CONFLICT,
    CacheBusy: _CONFLICT,
    CacheCorrupt: _CONFLICT,
    CacheIncomplete: _CONFLICT,
    CacheMismatch: _CONFLICT,
    CachePinned: _CONFLICT,
    RowOutOfRange: Kind(404, "not-found", "Not found"),
    DiskFull: _NO_ROOM,
    QuotaExceeded: Kind(507, "quota-exceeded", "No room for more caches"),
    StoreError: _INTERNAL,
    DatabaseFull: Kind(507, "database-full", "No room for the database", headers=_BUSY),
    DatabaseDiskError: replace(_NO_DATABASE, shows_message=True),
    LogGone: replace(_NO_DATABASE, shows_message=True),
    OperationalError: _NO_DATABASE,
    PoolTimeout: _NO_DATABASE,
    Exception: _INTERNAL,
}


def kind_of(error: Exception) -> Kind:
    """Kind of an exception: its class's entry, or that of the nearest base that has one."""
    if isinstance(error, HTTPException):
        status = http.HTTPStatus(error.status_code)
        slug = status.phrase.lower().replace(" ", "-").replace("'", "")
        return Kind(status.value, slug, status.phrase.capitalize(), headers=error.headers)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _NO_ROOM
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EIO):
        return _NO_STORAGE
    if isinstance(error, RequestValidationError) and _is_not_json(error):
        return KINDS[errors.MalformedBody]
    return next(KINDS[base] for base in type(error).__mro__ if base in KINDS)


def problem_response(request: Request, error: Exception) -> JSONResponse:
    """Response to a request that ended in ``error``."""
    # FastAPI wraps what goes wrong while a body is read, our limit included.
    if isinstance(error, HTTPException) and isinstance(error.__cause__, errors.ServiceError):
        error = error.__cause__
    if isinstance(error, RequestValidationError) and isinstance(error.body, bytes):
        # It was not looked at.
        error = _unread_body(request.headers.get("content-type"))
    kind = kind_of(error)
    if not kind.shows_message:
        # A database that is away fails every request: that is a line, and no trace.
        cause = {"exc_info": error} if kind is _INTERNAL else {"error": first_line(error)}
        log.error("unforeseen error", method=request.method, path=request.url.path, **cause)
    fields = list(islice(_fields(error), _FIELDS_MAX + 1))
    problem = Problem(
        type=URN + kind.slug,
        title=kind.title,
        status=kind.status,
        detail=without_folders(_detail(error, kind, fields), request.app.state.context.settings.folder_names),
        instance=request.url.path,
        request_id=request.state.request_id,
        errors=fields[:_FIELDS_MAX],
    )
    headers = {"Cache-Control": "no-store", **(kind.headers or {})}
    if kind.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names those of the first route that has the path.
        headers["Allow"] = ", ".join(allowed_methods(request.app, request.url.path))
    if isinstance(error, errors.RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, errors.TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_s)
    # A message may hold what the client sent, half a surrogate pair included; the address is given back as it came.
    content = {**storable(problem.model_dump(mode="python")), "instance": problem.instance}
    return AsciiProblem(content, status_code=kind.status, headers=headers)


class AsciiProblem(JSONResponse):
    """Response of problem+json in ASCII: whatever a message quotes can be encoded."""

    media_type = MEDIA_TYPE

    def render(self, content: object) -> bytes:
        """Encode the body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")


def install(app: FastAPI) -> None:
    """Install ``problem_response`` for every exception of the table, and those of the framework."""
    for error in (*KINDS, HTTPException):
        if error is not Exception:
            app.add_exception_handler(error, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return problem_response(request, error)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Argument ``responses`` of a route for OpenAPI: its problems by status."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": http.HTTPStatus(status).phrase, "content": content} for status in statuses}


def _detail(error: Exception, kind: Kind, fields: Sequence[FieldProblem]) -> str:
    if isinstance(error, RequestValidationError):
        sentences = [f"{field.pointer}: {field.detail}" for field in fields[:_FIELDS_MAX]]
        return "; ".join([*sentences, "and more"] if len(fields) > _FIELDS_MAX else sentences)
    if isinstance(error, HTTPException):
        return f"{error.detail}: what there is, is described at /docs"
    if not kind.shows_message:
        return "The details are in the service's log, under the request id."
    return str(error)


def _fields(error: Exception) -> Iterator[FieldProblem]:
    if isinstance(error, errors.InvalidRequest) and error.pointer is not None:
        yield FieldProblem(pointer=error.pointer, detail=str(error))
    if isinstance(error, RequestValidationError):
        found = error.errors()
        # A list whose items are wrong is also reported as too short: its own fault is the items'.
        around = {tuple(item["loc"][:length]) for item in found for length in range(len(item["loc"]))}
        for item in found:
            if tuple(item["loc"]) not in around:
                yield FieldProblem(pointer=_pointer(item, error.body), detail=_explain(item))


def _pointer(item: Mapping[str, Any], body: object) -> str:
    """Pointer into the request: pydantic's location without the names of union members, which no body contains."""
    where, *steps = item["loc"]
    if where != "body":
        return "/".join(str(step) for step in item["loc"])
    pointer, node = "#", body
    for position, step in enumerate(steps):
        is_missing = item["type"] == "missing" and position == len(steps) - 1
        if is_missing or _has(node, step):
            pointer += "/" + str(step).replace("~", "~0").replace("/", "~1")
            node = None if is_missing else cast("Any", node)[step]
    return pointer


def _has(node: object, step: object) -> bool:
    if isinstance(node, list):
        return isinstance(step, int) and step < len(node)
    return isinstance(node, dict) and step in node


def _explain(item: Mapping[str, Any]) -> str:
    sentence = str(item["msg"]).removeprefix("Value error, ")
    given = item.get("input")
    if item["type"] == "union_tag_not_found":
        return f"the field {item['ctx']['discriminator']} is missing, which says what kind of thing this is"
    if item["type"] != "value_error" and isinstance(given, str | int | float | bool):
        return f"{sentence}; got {given!r:.{_SHOWN_CHARS}}"
    return sentence


def _unread_body(content_type: str | None) -> errors.InvalidRequest:
    found = (
        "there is no Content-Type" if content_type is None else f"the Content-Type is {content_type!r:.{_SHOWN_CHARS}}"
    )
    return errors.InvalidRequest(
        f"the body was not read as JSON, because {found}: send the header `Content-Type: application/json` (`curl -d` "
        "alone sends another; `-H 'Content-Type: application/json'` beside it, or `--json` instead)",
        "#",
    )


def _is_not_json(error: RequestValidationError) -> bool:
    return any(item["type"] == "json_invalid" for item in error.errors())
