"""Limits of request bodies: size, pace and nesting, enforced while a body is read.

Of the pace only waiting for the client counts, not what the service does with the bytes: a slow disk is not the
client's fault.
"""

import asyncio
import re
from dataclasses import dataclass

import numpy as np
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import SAFE_METHODS
from service.api.bodies.json_bodies import thread_of
from service.errors import InvalidRequest, MalformedBody, SlowBody, TooLarge

JSON_DEPTH_MAX = 64
# One that never ends counts to the end, as it does for a parser; nothing here backtracks.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


@dataclass(frozen=True)
class Pace:
    """Pace at which a body has to arrive.

    Attributes:
        silence_s: without a byte, the first one included.
        lag_s: by so much it may fall behind ``bytes_per_s``.
    """

    silence_s: float
    lag_s: float
    bytes_per_s: float


class BodyDeadline:
    """Deadline of a body, a bucket of seconds: waiting takes them out, bytes put them back, up to ``lag_s``."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._left_s = pace.lag_s
        self._received_bytes = 0

    async def next(self, receive: Receive) -> Message:
        """Receive the next message of a body that is not whole yet. Raises SlowBody."""
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


def check_depth(body: bytes) -> None:
    """Check the nesting and encoding of JSON text without parsing it.

    Raises:
        InvalidRequest: arrays and objects lie more than 64 deep in each other.
        MalformedBody: it is not UTF-8, as JSON between programs is (RFC 8259, 8.1), or holds a NUL, as UTF-16 does.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise MalformedBody("the body holds a NUL byte: send JSON in UTF-8")
    brackets = _STRING.sub(b"", body).translate(None, delete=_NO_BRACKET)
    depth = np.cumsum(_STEP[np.frombuffer(brackets, np.uint8)], dtype=np.int64)
    if depth.size and depth.max() > JSON_DEPTH_MAX:
        raise InvalidRequest(
            f"the body's arrays and objects lie {depth.max()} deep in each other, at most {JSON_DEPTH_MAX} are allowed",
            "#",
        )


class BodyLimit:
    """Middleware that ends the reading of a body that is too large, too slow or nested too deep.

    The size counts as announced, and as it arrives.

    Args:
        default: limit in bytes and pace, for every path but those of ``paths``.
        paths: those of single paths, whose bodies are no JSON.
    """

    def __init__(self, app: ASGIApp, default: tuple[int, Pace], paths: dict[str, tuple[int, Pace]]) -> None:
        self.app = app
        self.default = default
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the body raises where the application reads it.

        Where no body is asked for, a stream may have begun: it ends as if its client had left.

        Raises:
            TooLarge, SlowBody: the limits.
            InvalidRequest, MalformedBody: as ``check_depth``.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit_bytes, pace = self.paths.get(scope["path"], self.default)
        announced = Headers(scope=scope).get("content-length", "")
        announced_bytes = int(announced) if announced.isdecimal() else 0
        is_json = scope["path"] not in self.paths
        deadline: BodyDeadline | None = BodyDeadline(pace)
        received_bytes = 0
        text = bytearray()

        async def receive_some() -> Message:
            nonlocal received_bytes, deadline
            if announced_bytes <= limit_bytes:
                try:
                    message = await (deadline.next(receive) if deadline is not None else receive())
                except SlowBody:
                    if scope["method"] in SAFE_METHODS:
                        return {"type": "http.disconnect"}
                    raise
                if not message.get("more_body", False):
                    deadline = None
                body = message.get("body", b"")
                received_bytes += len(body)
                if received_bytes <= limit_bytes:
                    # What is not of the body says that the client has left, which a stream waits for.
                    if is_json and message["type"] == "http.request":
                        text.extend(body)
                        if not message.get("more_body", False):
                            await thread_of(scope).run(check_depth, bytes(text))
                    return message
            size = f"{announced_bytes}" if announced_bytes else "more"
            raise TooLarge(f"the body has {size} bytes, at most {limit_bytes} are allowed here")

        await self.app(scope, receive_some, send)
