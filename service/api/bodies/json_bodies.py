"""JSON bodies of requests, parsed in a thread beside the event loop: 1 MiB takes a tenth of a second.

FastAPI parses and validates a body on the event loop, where meanwhile nobody else is answered. Here both happen in a
thread, for one body at a time: Python's threads share one interpreter, and each further one would let the event loop
wait longer for its turn.
"""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

import anyio.to_thread
from fastapi import Body, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError, WrapValidator
from starlette.types import Scope

from service.api.auth import check_scope, scopes_of
from service.errors import MalformedBody

Arguments = ParamSpec("Arguments")
Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
# Keeps the model's JSON schema and passes what is to be validated. With pydantic's SkipValidation the schema is copied
# into each operation.
_LATER = WrapValidator(lambda body, _validate: body)


class BodyThread:
    """Run functions on bodies beside the event loop of its application, one at a time."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)

    async def run(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **_: Arguments.kwargs
    ) -> Result:
        """Call a function as soon as no other body is read; return its result or raise its exception."""
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._limiter)


def thread_of(scope: Scope) -> BodyThread:
    """Thread for bodies of the application that answers."""
    thread: BodyThread = scope["app"].state.body_thread
    return thread


def parse_json(text: str | bytes, what: str = "the body") -> Any:  # noqa: ANN401  # JSON as it comes
    """Parse a JSON text in which no object may have a name twice: readers differ in which one they take.

    Raises:
        MalformedBody: one has.
        json.JSONDecodeError: it is no JSON.
    """

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        collected = dict(pairs)
        if len(collected) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            name = next(name for name in counts if counts[name] > 1)
            raise MalformedBody(f"{what} has an object with {counts[name]} members {name!r:.80}: keep one of them")
        return collected

    return json.loads(text, object_pairs_hook=collect)


class JsonRoute(APIRoute):
    """Route whose JSON body ``json_body`` parses, not the event loop: ``APIRouter(route_class=JsonRoute)``.

    FastAPI reads a body before it looks at dependencies, so the scope of the caller is looked at here first.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Handler that checks the scope of the caller before the body is read."""
        answer, needed = super().get_route_handler(), scopes_of(self)

        async def handle(request: Request) -> Response:
            check_scope(request, *needed)
            return await answer(_Request(request.scope, request.receive))

        return handle


@dataclass(frozen=True)
class _Unparsed:
    """Text of a JSON body that waits to be parsed: Python's collector would look through all that are parsed."""

    text: bytes


class _Request(Request):
    async def json(self) -> Any:  # noqa: ANN401  # as starlette has it
        return _Unparsed(await self.body())


def json_body(model: type[Model]) -> Any:  # noqa: ANN401  # as ``Depends`` is annotated
    """Dependency for the JSON body of a ``JsonRoute``: ``request: Annotated[JobRequest, json_body(JobRequest)]``.

    The body is described by the model's schema, as if the parameter had the model's type.

    Raises:
        RequestValidationError: in a request, with the places of all mistakes found.
    """

    # The annotation is a value here: FastAPI reads it when the route is made.
    async def read(request: Request, body: Annotated[model, _LATER, Body()]) -> Model:  # type: ignore[valid-type]
        return await thread_of(request.scope).run(_validated, model, body)

    return Depends(read)


def _validated(model: type[Model], given: object) -> Model:
    body = given
    try:
        if isinstance(given, _Unparsed):
            body = parse_json(given.text)
        return model.model_validate(body, from_attributes=True)
    except ValidationError as error:
        mistakes = [{**mistake, "loc": ("body", *mistake["loc"])} for mistake in error.errors(include_url=False)]
    except json.JSONDecodeError as error:
        # As FastAPI has it.
        wrong = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}
        mistakes, body = [{**wrong, "ctx": {"error": error.msg}}], error.doc
    # Outside of the block: see ``workers.methods.catalog.parse_method``.
    raise RequestValidationError(mistakes, body=body)
