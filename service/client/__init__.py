"""The Python client of the API: ``Client`` blocks, ``AsyncClient`` is for ``async`` code, with the same methods."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.client.asynchronous.client import AsyncClient
    from service.client.client import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    """Import a client when it is asked for: most processes need one of the two, or only the types."""
    if name == "Client":
        from service.client.client import Client

        return Client
    if name == "AsyncClient":
        from service.client.asynchronous.client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
