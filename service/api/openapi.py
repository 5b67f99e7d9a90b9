"""OpenAPI document: FastAPI's description of the routes, and what holds for all of them.

A header is never null, every answer says which request it is of, every document can be asked for on a condition.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from service.api.schemas.problems import FieldProblem, Problem

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": TEXT,
    "description": "the ETag of what the client has: 304 if that is still it",
}
_REQUEST_ID = {"X-Request-Id": {"description": "what to look for in the log", "required": True, "schema": TEXT}}
_LOCATION = {"Location": {"description": "where it is", "required": True, "schema": TEXT}}
_CHALLENGE = {"WWW-Authenticate": {"description": "how to bring a key", "required": True, "schema": TEXT}}
_RETRY = {"Retry-After": {"description": "seconds to wait", "required": True, "schema": {"type": "integer"}}}
_HEADERS_OF = {"201": _LOCATION, "401": _CHALLENGE, "429": _RETRY}


def describe(app: FastAPI) -> Json:
    """OpenAPI document of an application, made at the first call."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            license_info=app.license_info,
        )
        document["components"]["schemas"] |= {model.__name__: _schema(model) for model in (Problem, FieldProblem)}
        for method, operation in _operations(document):
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _without_null(parameter["schema"])
            if method == "get":
                _make_conditional(operation)
            for status, response in operation["responses"].items():
                response["headers"] = response.get("headers", {}) | _REQUEST_ID | _HEADERS_OF.get(status, {})
        app.openapi_schema = document
    return app.openapi_schema


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Methods that routes have for this path, in alphabetical order; HEAD is answered where GET is."""
    routes = [route for route in iter_route_contexts(app.routes) if route.path_regex.match(path)]
    methods = {method for route in routes for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _schema(model: type[Problem | FieldProblem]) -> Json:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    for item in document["paths"].values():
        yield from item.items()


def _without_null(schema: Json) -> Json:
    """Schema of a parameter without null: it is there or not, and the text ``null`` is a value like any other."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if not kinds:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else {**rest, "anyOf": kinds}


def _make_conditional(operation: Json) -> None:
    found = operation["responses"]["200"]
    # A stream of events has neither.
    always = "text/event-stream" not in found["content"]
    etag = {"ETag": {"description": "of this very content", "required": always, "schema": TEXT}}
    digest = {"Repr-Digest": {"description": "its SHA-256 (RFC 9530)", "required": always, "schema": TEXT}}
    found["headers"] = found.get("headers", {}) | etag | digest
    unchanged = {"description": "If-None-Match names the present ETag", "headers": dict(etag)}
    operation["responses"] = {**operation["responses"], "304": unchanged}
    operation.setdefault("parameters", []).append(IF_NONE_MATCH)
