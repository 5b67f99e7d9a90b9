"""Requests of the client, as far as waiting has no part in them: addresses, options, patience. It knows no route.

Times are seconds.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypedDict
from urllib.parse import quote, urlsplit

from service.client.errors import ServiceUnreachable

DEFAULT_URL = "http://127.0.0.1:8765"
Document = dict[str, Any]

# The service sends a comment at least every 15 s while a stream is quiet.
STREAM_SILENCE_S = 45.0
# For so long a broken stream or download is resumed without any answer.
PATIENCE_S = 60.0
# For one request that checks an upload or re-reads a whole cache: work, not waiting.
LONG_S = 900.0
# Of an uploaded file, beside that: it may be read and written five times, at 64 MiB in a second from a slow disk.
_UPLOADED_BYTES_PER_S = 12 << 20
# For an import: reading the file and importing it may each take RETORT_IMPORT_TIMEOUT_S, 3,600 s by default.
IMPORT_S = 2 * 3600.0 + LONG_S
# A proxy in front of a restarting service answers with these; the request did not get through.
UNAVAILABLE = frozenset({502, 503, 504})

_BACKOFF_S = 0.2
_BACKOFF_MAX_S = 5.0


class Patience:
    """Backoff: waits longer and longer between tries, and gives up ``patience_s`` after the last answer."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.restore()

    def restore(self) -> None:
        """Start again, after an answer."""
        self._last_answer = time.monotonic()
        self._wait_s = _BACKOFF_S

    def spend(self, url: str, reason: Exception | str) -> float:
        """Return for how long to wait after a try without an answer.

        Raises:
            ServiceUnreachable: that would be too long.
        """
        if time.monotonic() + self._wait_s > self._last_answer + self._patience_s:
            raise ServiceUnreachable(url, reason)
        wait_s = self._wait_s
        self._wait_s = min(2 * wait_s, _BACKOFF_MAX_S)
        return wait_s


class Options(TypedDict, total=False):
    """Options of an ``httpx2`` request that are used here."""

    params: Mapping[str, str]
    headers: Mapping[str, str]
    json: object
    data: Mapping[str, str]
    files: Mapping[str, tuple[str, BinaryIO, str]]
    timeout: float


def upload_s(*paths: Path | None) -> float:
    """Seconds without an answer after which an upload of these files is given up; None stands for none."""
    return LONG_S + sum(path.stat().st_size for path in paths if path is not None) / _UPLOADED_BYTES_PER_S


def host_of(base_url: str) -> str:
    """Host of a service's address. Raises ValueError when it is not an http(s) address."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{base_url!r} is not a service address; {DEFAULT_URL} would be one")
    return parts.hostname


def path_part(text: str) -> str:
    """Quote ``text`` as one segment of a path."""
    return quote(text, safe="")


def job_or_run_path(job_or_run_id: str) -> str:
    """Path of a job or of a run, which the beginning of its id tells apart."""
    kind = "runs" if job_or_run_id.startswith("run_") else "jobs"
    return f"/v1/{kind}/{path_part(job_or_run_id)}"
