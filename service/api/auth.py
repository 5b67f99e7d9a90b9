"""Authentication and authorization: API keys and their scopes; without any key, this machine alone may call.

Without a key the service listens on loopback only, and turns away what a browser would send it from a page of another
origin or under a host name that somebody else controls. ``identify`` finds out who calls, before anything of a body is
read; ``authorize`` is the dependency of every route that is not open to all. A route says its scope itself, as one of
``READ``, ``WRITE`` and ``ADMIN`` (FastAPI's ``Security``), and the OpenAPI document shows it.
"""

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter, Depends, Request, Security
from fastapi.params import Security as SecurityParam
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection

from service.api.query_names import check_query
from service.db.keys.api_keys import KeyRing, any_live_key, digest_of_secret
from service.db.keys.scopes import THIS_MACHINE, Caller, Scope
from service.errors import BadKeyFile, Forbidden, ForeignOrigin, Unauthorized, UnsafeBinding
from service.settings import Settings
from workers.errors import InvalidText
from workers.text_files import read_text

KEY_MIN_CHARS = 16
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOGGED_IDS = ("job_id", "run_id")
_LOGGED_CHARS = 64
bearer = HTTPBearer(auto_error=False, description="An API key; none is asked for where there are none.")


def load_key_digest(path: Path | None) -> str | None:
    """SHA-256 (64 hex digits) of the key in the file's first line; None without a file.

    Raises:
        BadKeyFile: it cannot be read, or the key has fewer than 16 characters.
    """
    if path is None:
        return None
    try:
        key = read_text(path).partition("\n")[0].strip()
    except (OSError, InvalidText) as error:
        raise BadKeyFile(f"the API key file {path} cannot be read: {error}") from error
    if len(key) < KEY_MIN_CHARS:
        raise BadKeyFile(
            f"the first line of {path} has {len(key)} characters, a key has at least {KEY_MIN_CHARS}: "
            "write 32 random bytes in hex there, such as `openssl rand -hex 32` prints"
        )
    return digest_of_secret(key)


def has_keys(settings: Settings) -> bool:
    """Whether there is a key to this service: the key file's, or one in the database."""
    return settings.api_key_file is not None or any_live_key(settings.database)


def check_binding(settings: Settings) -> None:
    """Refuse to listen beyond this machine without a key.

    Raises:
        UnsafeBinding: naming the host and the ways out.
    """
    if not is_loopback(settings.host) and not has_keys(settings):
        raise UnsafeBinding(
            f"host {settings.host!r} is reachable from other machines and there is no API key: make one with "
            "`retort keys create NAME --scope admin`, set RETORT_API_KEY_FILE to a file with one, or use the host "
            "127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach, or call itself, ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def identify(request: HTTPConnection, ring: KeyRing) -> Caller:
    """Identify the caller of a request by its API key, or by its origin where there are no keys.

    Raises:
        Unauthorized: a key is asked for, and it is missing, wrong or revoked.
        ForeignOrigin: no key is asked for, and the request is not from this machine's own programs and pages.
    """
    scheme, secret = get_authorization_scheme_param(request.headers.get("Authorization"))
    given = secret.strip() if scheme.lower() == "bearer" else ""
    caller = await ring.find(given or None)
    if caller is None:
        if given:
            raise Unauthorized("the API key is not one of this service's, or it was revoked")
        raise Unauthorized("this service wants an API key: send `Authorization: Bearer KEY`")
    if caller is THIS_MACHINE:
        _check_origin(request)
    return caller


async def authorize(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Admit a request whose caller has the scope of the route; bind the ids of its path to its log lines.

    The names of its query are looked at here, for this is what every such route asks first.

    Raises:
        UnknownName: as ``check_query``.
        Forbidden: the key's scope is too small.
        Unauthorized, ForeignOrigin: as ``identify``.
    """
    state = request.state
    if state.refusal is not None:
        raise state.refusal
    check_scope(request, *needed.scopes)
    ids = {name: request.path_params[name][:_LOGGED_CHARS] for name in _LOGGED_IDS if name in request.path_params}
    structlog.contextvars.bind_contextvars(**ids)
    await check_query(request)


READ, WRITE, ADMIN = (Security(authorize, scopes=[scope.value]) for scope in Scope)
"""Dependencies of routes, one for each scope: ``@router.get(..., dependencies=[READ])``."""


def check_scope(request: Request, *needed: str) -> None:
    """Refuse a request whose caller is known, and whose scope does not cover the needed one. Raises Forbidden."""
    caller: Caller = request.state.caller
    for scope in needed:
        if not caller.scope.covers(Scope(scope)):
            raise Forbidden(
                f"the API key {caller.name!r} has the scope {caller.scope}, {request.method} needs {scope} here: "
                "use another key"
            )


def scopes_of(route: APIRoute) -> list[str]:
    """Scopes that a route asks for: one, or none where it is open to all."""
    return [scope for each in route.dependencies if isinstance(each, SecurityParam) for scope in each.scopes or ()]


def check_scopes(router: APIRouter) -> None:
    """Refuse to serve a route that says no scope: it would be open to whoever reaches it.

    Raises:
        ValueError: naming the first such route.
    """
    for route in router.routes:
        if isinstance(route, APIRoute) and len(scopes_of(route)) != 1:
            raise ValueError(
                f"the route {sorted(route.methods or ())} {route.path} says no scope: add dependencies=[READ]"
            )


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


Who = Annotated[Caller, Depends(_caller)]
"""The type of a route's parameter that receives who calls."""


def _check_origin(request: HTTPConnection) -> None:
    for header in ("host", "origin"):
        for value in request.headers.getlist(header):
            if not is_loopback(_host_of(value if header == "origin" else f"//{value}")):
                raise ForeignOrigin(
                    f"the {header} {value!r:.200} is not this machine; without an API key only it may call: use "
                    "http://127.0.0.1, or make a key with `retort keys create`"
                )


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
