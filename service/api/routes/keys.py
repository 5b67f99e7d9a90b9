"""Routes of API keys: list, make, revoke; for admin keys alone. The first key is made with `retort keys create`."""

from typing import Annotated

from fastapi import APIRouter, Response

from service.api.auth import ADMIN, Who
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import PAGE_DEFAULT, After, Ctx, Limit, page
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.keys import Key, KeyRequest, NewKey
from service.db.keys.scopes import THIS_MACHINE
from service.db.models import KeyRecord
from service.errors import Forbidden

router = APIRouter(prefix="/keys", tags=["keys"], responses=responses(401, 403, 422, 500, 503), route_class=JsonRoute)


def show(row: KeyRecord) -> Key:
    """Document of a key's row, without its secret."""
    return Key.model_validate(row, from_attributes=True)


@router.post(
    "",
    operation_id="create_key",
    summary="Make an API key",
    dependencies=[ADMIN],
    status_code=201,
    responses=responses(400, 408, 413),
)
def create_key(request: Annotated[KeyRequest, json_body(KeyRequest)], ctx: Ctx, who: Who, response: Response) -> NewKey:
    """`secret` is shown here and never again."""
    if who == THIS_MACHINE:
        # Whoever makes the first key shuts out the others; a caller that nobody knows must not.
        raise Forbidden("the first key is made on the machine of the service itself: `retort keys create NAME`")
    row, secret = ctx.keys.issue(request.name, request.scope)
    ctx.ring.forget()
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return NewKey(**dict(show(row)), secret=secret)


@router.get("", operation_id="list_keys", summary="List API keys", dependencies=[ADMIN], response_model=Page[Key])
def list_keys(ctx: Ctx, after: After = None, limit: Limit = PAGE_DEFAULT) -> Response:
    """Newest first, the revoked ones too."""
    rows, has_more = ctx.keys.list(after, limit)
    return page(rows, has_more, show, lambda row: row.id)


@router.get("/{key_id}", operation_id="get_key", summary="One API key", dependencies=[ADMIN], responses=responses(404))
def get_key(key_id: str, ctx: Ctx) -> Key:
    """By its id."""
    return show(ctx.keys.get(key_id))


@router.delete(
    "/{key_id}",
    operation_id="revoke_key",
    summary="Revoke an API key",
    dependencies=[ADMIN],
    status_code=204,
    responses=responses(404),
)
def revoke_key(key_id: str, ctx: Ctx) -> None:
    """It is refused within seconds, for good. Revoking it again changes nothing."""
    ctx.keys.revoke(key_id)
    ctx.ring.forget()
