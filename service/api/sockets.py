"""WebSocket of the page: uvicorn's protocol, which closes a socket whose client answers no ping.

Without the package ``websockets``, of the extra ``page``, there are no sockets.
"""

import asyncio
import logging
from collections.abc import Callable

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
except ImportError:
    WebSocketsSansIOProtocol = asyncio.Protocol  # type: ignore[assignment, misc]  # never served

_QUIET = logging.getLogger(__name__)
_QUIET.setLevel(logging.WARNING)
# A message of the browser: an event of an element with its values, a form at most.
MESSAGE_BYTES_MAX = 1 << 20


class Socket(WebSocketsSansIOProtocol):
    """WebSocket that calls ``on_lost`` when it is lost, whoever has closed it."""

    on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin as uvicorn does, which would log the address with the secret id of the page."""
        super().connection_made(transport)
        self.logger = _QUIET

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever counts it, then end as uvicorn does."""
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)
