"""Reception of an upload: what it announces is looked at first, then it is streamed to disk and takes its turn."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import Request

from service.api.bodies.multipart import Upload, receive
from service.api.bodies.upload_sizes import UploadLimit, check_announced
from service.api.dependencies import Context


@asynccontextmanager
async def receive_in_turn(
    request: Request,
    context: Context,
    folder: Path,
    *,
    text_fields: Mapping[str, int],
    limit: UploadLimit,
    before_file: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> AsyncIterator[Upload]:
    """Receive a file, and hold one of the caller's inspections for it; the arguments are those of ``receive``.

    Raises:
        TooLarge: it announces, or has, more than the limit.
        DiskFloor: the disk has no room for it.
    """
    announced_bytes = int(request.headers.get("content-length", "0"))
    check_announced(announced_bytes, limit)
    # Below the reserve it looks through the caches for what can be freed.
    await anyio.to_thread.run_sync(context.check_disk, limit.disk_bytes(announced_bytes))
    upload = receive(
        request,
        folder,
        text_fields=text_fields,
        limit=limit,
        check_room=context.check_disk,
        before_file=before_file,
    )
    async with upload as received, context.inspections.held(request.state.name):
        yield received
