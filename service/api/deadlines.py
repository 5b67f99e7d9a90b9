"""Deadlines of request bodies: how long a client may let the service wait for the next bytes of one.

Only waiting counts, not what the service does with the bytes: a slow disk is not the client's fault.
"""

import asyncio
from dataclasses import dataclass

from starlette.types import Message, Receive

from service.errors import SlowBody


@dataclass(frozen=True)
class Pace:
    """How fast a body has to come.

    Attributes:
        silence_s: without a byte, the first one included.
        lag_s: by so much it may fall behind ``bytes_per_s``.
    """

    silence_s: float
    lag_s: float
    bytes_per_s: float


class BodyDeadline:
    """A token bucket of seconds: waiting takes them out, bytes that arrive put them back, up to ``lag_s``."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._left_s = pace.lag_s
        self._received_bytes = 0

    async def next(self, receive: Receive) -> Message:
        """The next message of a body that is not whole yet. Raises SlowBody."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        try:
            async with asyncio.timeout(min(self._pace.silence_s, self._left_s)):
                message = await receive()
        except TimeoutError:
            raise self._slow() from None
        size = len(message.get("body", b""))
        self._received_bytes += size
        waited_s = clock() - started_s
        self._left_s = min(self._pace.lag_s, self._left_s - waited_s + size / self._pace.bytes_per_s)
        return message

    def _slow(self) -> SlowBody:
        pace = self._pace
        return SlowBody(
            f"the body stopped or came too slowly after {self._received_bytes} bytes: the next one has to come within "
            f"{pace.silence_s:g} s, and {pace.bytes_per_s * pace.lag_s:.0f} bytes in any {pace.lag_s:g} s; send it "
            "again over a faster way"
        )
