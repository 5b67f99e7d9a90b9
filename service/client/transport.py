"""The wire under ``service.client.client``: requests, pages, streams, and what to do when they break.

What can be repeated without harm is repeated when the connection breaks; each try waits longer,
and after a bounded time without an answer it is an error. It knows no route. Times are seconds.

::

    ClientError
    ├── ApiProblem            the service answered with a problem (RFC 9457)
    ├── ServiceUnreachable    (ConnectionError) nothing answers, or no longer
    ├── UnusableProxy         (ValueError) a proxy that the environment names, of a kind that cannot be used
    ├── DamagedDownload       (OSError) the bytes are not what the service had promised
    └── WaitTimeout           (TimeoutError) the job is still going
"""

import ipaddress
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import httpx2

DEFAULT_URL = "http://127.0.0.1:8765"
Document = dict[str, Any]

# The service sends a comment at least every 15 s while a stream is quiet.
STREAM_SILENCE_S = 45.0
# How long a stream or download that broke is taken up again, without any answer.
PATIENCE_S = 60.0

_PAGE = 100
# A proxy in front of a restarting service answers with these; the request did not get through.
_UNAVAILABLE = frozenset({502, 503, 504})
_BACKOFF_S = 0.2
_BACKOFF_MAX_S = 5.0
_REPEAT_S = 5.0


class ClientError(Exception):
    """Base of every error that the client raises on purpose."""


class ApiProblem(ClientError):
    """The service refused; ``str`` is one line that says what, where and what is allowed.

    Attributes:
        status: the HTTP status code.
        title: the kind of problem.
        detail: this occurrence of it; may be empty.
        errors: ``{"pointer": "#/training/epochs", "detail": ...}`` for each wrong field.
        request_id: what to look for in the service's log; None when the answer had none.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        errors: tuple[Mapping[str, str], ...] = (),
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        fields = "; ".join(
            f"{error.get('pointer', '#').removeprefix('#/') or 'body'}: {error.get('detail', '')}"
            for error in self.errors
        )
        text = fields or self.detail
        return f"{self.title}: {text}" if text else f"{self.title} (HTTP {self.status})"

    @classmethod
    def from_response(cls, response: httpx2.Response) -> Self:
        """Reads problem+json; anything else (a proxy's page, say) becomes its status line."""
        try:
            body = json.loads(response.content)
        except ValueError:
            body = None
        if not isinstance(body, dict) or "title" not in body:
            reason = response.reason_phrase or "no reason given"
            return cls(response.status_code, f"HTTP {response.status_code} {reason}")
        return cls(
            status=response.status_code,
            title=str(body["title"]),
            detail=str(body.get("detail") or ""),
            errors=tuple(body.get("errors") or ()),
            request_id=body.get("request_id"),
        )


class ServiceUnreachable(ClientError, ConnectionError):
    """Nothing answers at the address, or it stopped answering and did not come back."""

    def __init__(self, url: str, reason: object) -> None:
        self.url = url
        proxies = proxy_variables(url)
        named = f"; the environment names a proxy, {' and '.join(proxies)}" if proxies else ""
        super().__init__(
            f"no Retort service answers at {url} ({str(reason) or type(reason).__name__}{named}): start "
            "one with `retort serve`, or name another with --url or RETORT_URL"
        )


class UnusableProxy(ClientError, ValueError):
    """The environment names a proxy of a kind that cannot be used."""

    def __init__(self, url: str) -> None:
        names = proxy_variables(url)
        # Not its address, which may hold a password.
        super().__init__(
            f"a proxy that {' or '.join(names)} names cannot be used to reach {url}: http://HOST:PORT and "
            "https://HOST:PORT can, and socks5://HOST:PORT where the package socksio is installed; name such a one, or "
            f"leave it out: `env {' '.join(f'-u {name}' for name in names)} retort ...`"
        )


class DamagedDownload(ClientError, OSError):
    """The file that arrived is not the one the service had announced; it was not kept."""


class WaitTimeout(ClientError, TimeoutError):
    """The job had not ended in the time given; it goes on."""


def proxy_variables(url: str) -> list[str]:
    """The variables of the environment that name proxies; none do for this machine's own addresses."""
    if is_loopback(urlsplit(url).hostname or ""):
        return []
    kinds = ("all_proxy", "http_proxy", "https_proxy")
    return sorted(name for name, value in os.environ.items() if name.lower() in kinds and value)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address of this machine alone, which no proxy can reach.

    As the service itself has it, of which this module imports nothing.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Patience:
    """Waits longer and longer between tries, and gives up ``patience_s`` after the last answer."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.restore()

    def restore(self) -> None:
        """Something answered."""
        self._last_answer = time.monotonic()
        self._wait_s = _BACKOFF_S

    def spend(self, url: str, reason: Exception | str) -> None:
        """Nothing did: sleeps, or raises ServiceUnreachable when that would be too long."""
        if time.monotonic() + self._wait_s > self._last_answer + self._patience_s:
            raise ServiceUnreachable(url, reason)
        time.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, _BACKOFF_MAX_S)


class Options(TypedDict, total=False):
    """The arguments of an ``httpx2`` request that are used here."""

    params: Mapping[str, str]
    headers: Mapping[str, str]
    json: object
    data: Mapping[str, str]
    files: Mapping[str, tuple[str, BinaryIO, str]]
    timeout: float


class Connection:
    """Requests to one service.

    Args:
        base_url: where it is, e.g. ``http://127.0.0.1:8765``.
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
        """Gives the sockets back."""
        self._http.close()

    def send(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> httpx2.Response:
        """One request, repeated for a while when the connection broke after it had begun.

        A connection that is refused at the first try is told at once: nothing listens there, and
        a person is waiting. ``repeat=False`` is for what must not be done twice.

        Raises:
            ServiceUnreachable: no answer came. What the answer says is not judged here.
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
        """``send``, but an answer of 400 or more is raised as ApiProblem."""
        response = self.send(method, path, repeat=repeat, **options)
        if response.is_error:
            raise ApiProblem.from_response(response)
        return response

    def json(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> Document:
        """``done``, and the JSON object of its body."""
        document: Document = self.done(method, path, repeat=repeat, **options).json()
        return document

    def pages(self, path: str, params: Mapping[str, str] | None = None) -> Iterator[Document]:
        """Every item of a list, page after page."""
        query = {**(params or {}), "limit": str(_PAGE)}
        while True:
            page = self.json("GET", path, params=query)
            yield from page["data"]
            if not page.get("has_more"):
                return
            query["after"] = page["last_id"]

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], silence_s: float) -> Iterator[httpx2.Response]:
        """A GET whose body is read as it comes; ``silence_s`` without a byte breaks it.

        Raises:
            httpx2.TransportError: it broke, or the service is restarting (502, 503, 504): the
                caller knows from where to go on.
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


def parse_events(chunks: Iterable[bytes]) -> Iterator[Document | None]:
    """Reads a text/event-stream of JSON; None stands for a comment that keeps it alive.

    An event that the connection cut off has no empty line behind it and is dropped: the next
    connection brings it again.
    """
    fields: dict[str, str] = {}
    for line in _lines(chunks):
        if line.startswith(":"):
            yield None
        elif line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            again = name == "data" and name in fields
            fields[name] = f"{fields[name]}\n{value}" if again else value
        elif "data" in fields:
            yield {"type": fields.get("event", "message"), **json.loads(fields["data"])}
            fields = {}


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Not str.splitlines: it also splits at U+2028 and its like, which JSON strings may hold.
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
