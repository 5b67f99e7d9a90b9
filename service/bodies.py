"""JSON bodies of requests, validated beside the event loop: reading a job's methods can take a tenth of a second.

FastAPI validates a body on the event loop, where meanwhile nobody else is answered. Here it hands over what JSON made
of the body, and pydantic runs in a thread, one body at a time: Python's threads share one interpreter, and each
further one would let the event loop wait longer for its turn.
"""

from typing import Annotated, Any, TypeVar

import anyio.to_thread
from fastapi import Body, Depends
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError, WrapValidator

Model = TypeVar("Model", bound=BaseModel)
_VALIDATIONS = anyio.CapacityLimiter(1)
# Keeps the model's JSON schema and passes what is to be validated. With pydantic's SkipValidation the schema is copied
# into each operation.
_LATER = WrapValidator(lambda body, _validate: body)


def json_body(model: type[Model]) -> Any:  # noqa: ANN401  # as ``Depends`` is annotated
    """A dependency for the JSON body of a route: ``request: Annotated[JobRequest, json_body(JobRequest)]``.

    The body is described by the model's schema, as if the parameter had the model's type.

    Raises:
        RequestValidationError: in a request, with the places of all mistakes found.
    """

    async def read(body: Annotated[model, _LATER, Body()]) -> Model:  # type: ignore[valid-type]
        return await anyio.to_thread.run_sync(_validated, model, body, limiter=_VALIDATIONS)

    return Depends(read)


def _validated(model: type[Model], body: object) -> Model:
    try:
        return model.model_validate(body, from_attributes=True)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    # Outside of the block: see ``workers.methods.parse_method``.
    raise RequestValidationError([{**mistake, "loc": ("body", *mistake["loc"])} for mistake in mistakes], body=body)
