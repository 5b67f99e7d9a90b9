"""Who may call: with a key file, whoever brings its key; without one, this machine alone.

The key is compared as a digest, in constant time. Without a key the service listens on loopback only, and turns away
what a browser would send it from a page of another origin or under a host name that somebody else controls.
"""

import hashlib
import hmac
import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.errors import BadKeyFile, ForeignOrigin, Unauthorized, UnsafeBinding
from service.settings import Settings

KEY_MIN_CHARS = 16
bearer = HTTPBearer(auto_error=False, description="The key of `RETORT_API_KEY_FILE`; none is asked for without it.")


def load_key_digest(path: Path | None) -> bytes | None:
    """SHA-256 of the key in the file's first line; None without a file.

    Raises:
        BadKeyFile: it cannot be read, or the key has fewer than 16 characters.
    """
    if path is None:
        return None
    try:
        key = path.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeyFile(f"the API key file {path} cannot be read: {error}") from error
    if len(key) < KEY_MIN_CHARS:
        raise BadKeyFile(
            f"the first line of {path} has {len(key)} characters, a key has at least {KEY_MIN_CHARS}: "
            "write 32 random bytes in hex there, such as `openssl rand -hex 32` prints"
        )
    return hashlib.sha256(key.encode()).digest()


def check_binding(settings: Settings) -> None:
    """Refuses to listen beyond this machine without a key.

    Raises:
        UnsafeBinding: naming the host and both ways out.
    """
    if settings.api_key_file is None and not is_loopback(settings.host):
        raise UnsafeBinding(
            f"host {settings.host!r} is reachable from other machines and no API key is set: set "
            "RETORT_API_KEY_FILE to a file with a key, or use the host 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach, or call itself, ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def authenticate(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Lets a request pass or raises.

    Raises:
        Unauthorized: a key is asked for, and it is missing or wrong.
        ForeignOrigin: no key is asked for, and the request is not from this machine's own programs and pages.
    """
    wanted: bytes | None = request.app.state.context.key_digest
    if wanted is None:
        _check_origin(request)
        return
    if given is None:
        raise Unauthorized("this service wants an API key: send `Authorization: Bearer KEY`")
    if not hmac.compare_digest(hashlib.sha256(given.credentials.encode()).digest(), wanted):
        raise Unauthorized("the API key is not the right one")


def _check_origin(request: Request) -> None:
    for header in ("host", "origin"):
        value = request.headers.get(header)
        name = urlsplit(value if header == "origin" else f"//{value}").hostname if value else None
        if value is not None and not is_loopback(name or ""):
            raise ForeignOrigin(
                f"the {header} {value!r:.200} is not this machine; without an API key only it may "
                "call: use http://127.0.0.1, or set RETORT_API_KEY_FILE"
            )
