"""Downloads of files: Range, If-Range and If-None-Match, with the SHA-256 as ETag and as Repr-Digest."""

import re
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.responses import Response

from service.api.middleware.etags import digest_headers, etag_matches
from service.errors import RangeNotSatisfiable

_PART = r"(?:\d{1,18}-\d{0,18}|-\d{1,18})"
_RANGE = re.compile(rf"bytes=\s*{_PART}(?:\s*,\s*{_PART})*\s*")


def download(path: Path, request: Request, *, name: str, sha256: str, media_type: str) -> Response:
    """Response with a file, or the part of it that the request asks for.

    Args:
        name: that a browser saves it under.
        sha256: of its bytes, 64 hex digits.

    Raises:
        RangeNotSatisfiable: the part does not exist.
    """
    # Nothing that is downloaded is ever shown as a page of this origin.
    headers = {**digest_headers(bytes.fromhex(sha256)), "X-Content-Type-Options": "nosniff"}
    if etag_matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    status = path.stat()
    response = FileResponse(path, media_type=media_type, filename=name, headers=headers, stat_result=status)
    if request.headers.get("if-range") in (None, headers["ETag"], response.headers["last-modified"]):
        _check_range(request.headers.get("range"), status.st_size)
    return response


def _check_range(header: str | None, size_bytes: int) -> None:
    """Refuse, as a problem, the ranges that FileResponse would refuse as plain text."""
    if header is None:
        return
    if not _RANGE.fullmatch(header):
        raise RangeNotSatisfiable(header, size_bytes)
    for part in header.strip().removeprefix("bytes=").split(","):
        first, _, last = part.strip().partition("-")
        start = int(first) if first else max(0, size_bytes - int(last))
        if start >= size_bytes or (first and last and int(last) < start):
            raise RangeNotSatisfiable(header, size_bytes)
