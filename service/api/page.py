"""The page beside the API: sessions around the whole application, and the page's own paths behind all others."""

import importlib.util
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from service.api.dependencies import Context
from service.api.middleware.page_session import PageSession
from service.operations.private_files import create_secret
from service.settings import Settings


def is_page_installed() -> bool:
    """Whether the extra ``page`` is there."""
    return all(importlib.util.find_spec(name) for name in ("nicegui", "websockets"))


def add_page(app: FastAPI, settings: Settings) -> None:
    """Serve the page from an application, beside its API. Once in a process."""
    # It loads NiceGUI, which a service without the page does not.
    with _without_socket_clients():
        from service.page.mount import mount_page

    context: Context = app.state.context
    mount_page(app)
    app.add_middleware(PageSession, ring=context.ring, sockets=context.streams, secret=_session_secret(settings))


@contextmanager
def _without_socket_clients() -> Iterator[None]:
    """Hide what engineio imports for its clients alone, where it is installed: half a second of the start and 15 MB."""
    hidden = [name for name in ("aiohttp", "requests") if name not in sys.modules]
    # None makes the import an ImportError, which engineio expects.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # see above
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _session_secret(settings: Settings) -> str:
    """Secret that signs sessions; made at the first start, and kept: a restart logs nobody out."""
    path = settings.page_secret_path
    if not path.exists():
        create_secret(path, secrets.token_urlsafe(32))
    return path.read_text().strip()
