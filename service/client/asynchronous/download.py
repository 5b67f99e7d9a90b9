"""Downloads of files by ranges: resumed after a broken connection, and checked against their SHA-256."""

import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

import anyio
import httpx2

from service.client.asynchronous.connection import ServiceConnection
from service.client.errors import DamagedDownload
from service.client.transport import PATIENCE_S, STREAM_SILENCE_S, Patience


async def download_file(
    connection: ServiceConnection,
    url: str,
    path: Path,
    *,
    digest: str,
    size_bytes: int,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Download ``url`` to ``path``, replaced if it exists; there is never half a file under that name.

    The bytes gather in a hidden file beside it, whose name holds the digest. When the connection or this process
    breaks, the next call goes on where it ended.

    Args:
        connection: to the service.
        url: below the service's address.
        path: its folder must exist.
        digest: the SHA-256 that the service has announced.
        size_bytes: likewise.
        on_bytes: called with the number of bytes there so far.

    Raises:
        DamagedDownload: the SHA-256 differs from the announced one; the bytes are deleted.
        ServiceUnreachable: after ``PATIENCE_S`` without an answer.
    """
    partial = path.with_name(f".{path.name}.{digest[:16]}.part")
    try:
        await _gather(connection, url, partial, digest=digest, size_bytes=size_bytes, on_bytes=on_bytes)
    except DamagedDownload:
        partial.unlink()
        raise
    partial.replace(path)


async def _gather(
    connection: ServiceConnection,
    url: str,
    partial: Path,
    *,
    digest: str,
    size_bytes: int,
    on_bytes: Callable[[int], None] | None,
) -> None:
    patience = Patience(PATIENCE_S)
    with partial.open("ab") as sink:
        while sink.tell() < size_bytes:
            try:
                async with aclosing(_fetch_rest(connection, url, digest, sink)) as sizes:
                    async for there in sizes:
                        patience.restore()
                        if on_bytes is not None:
                            on_bytes(there)
                reason: Exception | str = f"{url} ends early"
            except httpx2.TransportError as error:
                reason = error
            if sink.tell() < size_bytes:
                await anyio.sleep(patience.spend(connection.base_url, reason))
        sink.flush()
        await anyio.to_thread.run_sync(os.fsync, sink.fileno())
    found = await anyio.to_thread.run_sync(_sha256, partial)
    if found != digest:
        raise DamagedDownload(
            f"{url} arrived with SHA-256 {found}, the service announced {digest}: nothing was kept, download it again"
        )


async def _fetch_rest(connection: ServiceConnection, url: str, digest: str, sink: BinaryIO) -> AsyncGenerator[int]:
    """Append to ``sink`` what it lacks of the file; yields its size after each piece."""
    start = sink.tell()
    headers = {"Range": f"bytes={start}-", "If-Range": f'"{digest}"'} if start else {}
    async with connection.stream(url, headers, STREAM_SILENCE_S) as response:
        announced = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        if announced != digest:
            raise DamagedDownload(
                f"{url} is now SHA-256 {announced or 'unknown'}, it was listed as {digest}: "
                "it was replaced meanwhile, download it again"
            )
        if response.status_code != 206:
            sink.truncate(0)
        # No chunk size: bytes that httpx2 gathers for one are lost when the connection breaks.
        async for chunk in response.aiter_raw():
            sink.write(chunk)
            yield sink.tell()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
