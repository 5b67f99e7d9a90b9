"""ETag middleware: every document gets a validator and a checksum, and a client that has it already gets 304.

The ETag of a document is the SHA-256 of its bytes, as that of a download is, and so is its ``Repr-Digest``. Nothing
that this service says may be kept by a cache that others share, and a private one asks before it uses what it kept.
"""

import base64
import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REVALIDATE = "private, no-cache"
NEVER_KEEP = "no-store"
# In the state of a request: the digest of the answer's body, where it is known already.
SHA256 = "body_sha256"
# What RFC 9110 wants to see again in a 304, and what belongs to the exchange rather than to the document.
_KEPT = ("cache-control", "etag", "repr-digest", "vary")


def digest_headers(sha256: bytes) -> dict[str, str]:
    """Headers ``ETag`` and ``Repr-Digest`` (RFC 9530) of a representation with this digest (32 bytes)."""
    return {"ETag": f'"{sha256.hex()}"', "Repr-Digest": f"sha-256=:{base64.b64encode(sha256).decode()}:"}


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether the client has the representation with this ETag, by the weak comparison of RFC 9110."""
    given = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return bool(given & {etag, "*"})


class ConditionalGet:
    """Middleware that gives whole answers to GET a validator, and answers 304 to a client that names it.

    A stream has no length and passes through as it comes; what brings an ETag of its own is left alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the validator to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_get = scope["method"] == "GET"
        held: Message | None = None

        async def send_some(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                found = is_get and message["status"] < 400
                headers.setdefault("Cache-Control", REVALIDATE if found else NEVER_KEEP)
                if found and message["status"] == 200 and "content-length" in headers and "etag" not in headers:
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                if not message.get("more_body", False):
                    message = _validated(scope, start, message)
                await send(start)
            await send(message)

        await self.app(scope, receive, send_some)


def _validated(scope: Scope, start: Message, body: Message) -> Message:
    """Add the validator to the start of an answer; return its body, which is empty if the client has it."""
    headers = MutableHeaders(scope=start)
    known: bytes | None = scope.get("state", {}).get(SHA256)
    headers.update(digest_headers(known or hashlib.sha256(body.get("body", b"")).digest()))
    # The same address has tables as JSON and CSV, and events as JSON and as a stream.
    headers.add_vary_header("Accept")
    given = ",".join(Headers(scope=scope).getlist("if-none-match"))
    if not given or not etag_matches(given, headers["etag"]):
        return body
    start["status"] = 304
    start["headers"] = [(name, value) for name, value in start["headers"] if name.decode().lower() in _KEPT]
    return {**body, "body": b""}
