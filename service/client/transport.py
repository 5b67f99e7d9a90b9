"""Requests to one service: repeated when the connection breaks, page by page, or as a stream. It knows no route.

A request that can be repeated without harm is repeated when the connection breaks; each try waits longer, and after a
bounded time without an answer it is an error of ``service.client.errors``. Times are seconds.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, TypedDict, Unpack
from urllib.parse import quote, urlsplit

import httpx2

from service.client.errors import ApiProblem, ServiceUnreachable, UnusableProxy, is_loopback, proxy_variables

DEFAULT_URL = "http://127.0.0.1:8765"
Document = dict[str, Any]

# The service sends a comment at least every 15 s while a stream is quiet.
STREAM_SILENCE_S = 45.0
# For so long a broken stream or download is resumed without any answer.
PATIENCE_S = 60.0

_PAGE = 100
# A proxy in front of a restarting service answers with these; the request did not get through.
_UNAVAILABLE = frozenset({502, 503, 504})
_BACKOFF_S = 0.2
_BACKOFF_MAX_S = 5.0
_REPEAT_S = 5.0
# For one request that checks an upload or re-reads a whole cache: work, not waiting.
LONG_S = 900.0


class Patience:
    """Backoff: waits longer and longer between tries, and gives up ``patience_s`` after the last answer."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.restore()

    def restore(self) -> None:
        """Start again, after an answer."""
        self._last_answer = time.monotonic()
        self._wait_s = _BACKOFF_S

    def spend(self, url: str, reason: Exception | str) -> None:
        """Wait after a try without an answer. Raises ServiceUnreachable when that would be too long."""
        if time.monotonic() + self._wait_s > self._last_answer + self._patience_s:
            raise ServiceUnreachable(url, reason)
        time.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, _BACKOFF_MAX_S)


class Options(TypedDict, total=False):
    """Options of an ``httpx2`` request that are used here."""

    params: Mapping[str, str]
    headers: Mapping[str, str]
    json: object
    data: Mapping[str, str]
    files: Mapping[str, tuple[str, BinaryIO, str]]
    timeout: float


class ServiceConnection:
    """Connection to one service: sends requests.

    Args:
        base_url: its address, e.g. ``http://127.0.0.1:8765``.
        api_key: sent as a bearer token; None for a service without keys.
        timeout_s: for one request that does not say otherwise.

    Raises:
        ValueError: ``base_url`` is not an http(s) address.
        UnusableProxy: the environment names a proxy that cannot be used.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not a service address; {DEFAULT_URL} would be one")
        self.base_url = base_url.rstrip("/")
        headers = {"User-Agent": "retort-client"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx2.Client(
                base_url=self.base_url, headers=headers, timeout=timeout_s, trust_env=not is_loopback(parts.hostname)
            )
        except (ImportError, ValueError, httpx2.InvalidURL):
            if not proxy_variables(base_url):
                raise
            raise UnusableProxy(self.base_url) from None

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def send(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> httpx2.Response:
        """Send a request, repeated for a while when the connection broke after it had begun.

        A connection that is refused at the first try is an error at once: nothing listens there, and
        a person is waiting. ``repeat=False`` is for requests that must not be made twice.

        Raises:
            ServiceUnreachable: no answer came. An answer is returned whatever its status.
        """
        patience = Patience(_REPEAT_S if repeat else 0.0)
        first = True
        while True:
            try:
                return self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                if first and isinstance(error, httpx2.ConnectError):
                    raise ServiceUnreachable(self.base_url, error) from error
                first = False
                patience.spend(self.base_url, error)

    def done(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> httpx2.Response:
        """Send a request; an answer of 400 or more is raised as ApiProblem."""
        response = self.send(method, path, repeat=repeat, **options)
        if response.is_error:
            raise ApiProblem.from_response(response)
        return response

    def json(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> Document:
        """Send a request as ``done`` does; returns the JSON object of the answer."""
        document: Document = self.done(method, path, repeat=repeat, **options).json()
        return document

    def pages(self, path: str, params: Mapping[str, str] | None = None) -> Iterator[Document]:
        """Yield every item of a list, page after page."""
        query = {**(params or {}), "limit": str(_PAGE)}
        while True:
            page = self.json("GET", path, params=query)
            yield from page["data"]
            if not page.get("has_more"):
                return
            query["after"] = page["last_id"]

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], silence_s: float) -> Iterator[httpx2.Response]:
        """Stream a GET whose body is read as it comes; ``silence_s`` without a byte breaks it.

        Raises:
            httpx2.TransportError: it broke, or the service is restarting (502, 503, 504): the
                caller resumes.
            ApiProblem: the service refused.
        """
        timeout = httpx2.Timeout(self._http.timeout.connect, read=silence_s)
        # A compressed body would have other byte positions than the file.
        headers = {**headers, "Accept-Encoding": "identity"}
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code in _UNAVAILABLE:
                raise httpx2.RemoteProtocolError(f"HTTP {response.status_code}")
            if response.is_error:
                response.read()
                raise ApiProblem.from_response(response)
            yield response


def path_part(text: str) -> str:
    """Quote ``text`` as one segment of a path."""
    return quote(text, safe="")


def job_or_run_path(job_or_run_id: str) -> str:
    """Path of a job or of a run, which the beginning of its id tells apart."""
    kind = "runs" if job_or_run_id.startswith("run_") else "jobs"
    return f"/v1/{kind}/{path_part(job_or_run_id)}"
