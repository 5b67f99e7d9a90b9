# Generated from asynchronous/connection.py by python -m tests.repository.documents: change it there.
"""Requests to one service: repeated when the connection breaks, page by page, or as a stream. It knows no route.

A request that can be repeated without harm is repeated when the connection breaks; each try waits longer, and after a
bounded time without an answer it is an error of ``service.client.errors``. Times are seconds.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, Unpack

import httpx2

from service.client.errors import ApiProblem, ServiceUnreachable, UnusableProxy, is_loopback, proxy_variables
from service.client.transport import UNAVAILABLE, Document, Options, Patience, host_of

Item = TypeVar("Item")

_PAGE = 100
_REPEAT_S = 5.0


class ServiceConnection:
    """Connection to one service: sends requests.

    Args:
        base_url: its address, e.g. ``http://127.0.0.1:8765``.
        api_key: sent as a bearer token; None for a service without keys.
        timeout_s: for one request that does not say otherwise.
        transport: of httpx2, in place of sockets; None opens sockets.

    Raises:
        ValueError: ``base_url`` is not an http(s) address.
        UnusableProxy: the environment names a proxy that cannot be used.
    """

    def __init__(
        self, base_url: str, api_key: str | None, timeout_s: float, transport: httpx2.BaseTransport | None = None
    ) -> None:
        trust_env = not is_loopback(host_of(base_url))
        self.base_url = base_url.rstrip("/")
        headers = {"User-Agent": "retort-client"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx2.Client(
                base_url=self.base_url, headers=headers, timeout=timeout_s, trust_env=trust_env, transport=transport
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
                wait_s = patience.spend(self.base_url, error)
            time.sleep(wait_s)

    def done(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> httpx2.Response:
        """Send a request; an answer of 400 or more is raised as ApiProblem."""
        response = self.send(method, path, repeat=repeat, **options)
        if response.is_error:
            raise ApiProblem.from_response(response)
        return response

    def json(self, method: str, path: str, *, repeat: bool = True, **options: Unpack[Options]) -> Document:
        """Send a request as ``done`` does; returns the JSON object of the answer."""
        response = self.done(method, path, repeat=repeat, **options)
        document: Document = response.json()
        return document

    def typed(
        self,
        method: str,
        path: str,
        made: Callable[[Document], Item],
        *,
        repeat: bool = True,
        **options: Unpack[Options],
    ) -> Item:
        """Send a request as ``done`` does; returns the JSON object of the answer as ``made`` makes it."""
        return made(self.json(method, path, repeat=repeat, **options))

    def pages(
        self, path: str, made: Callable[[Document], Item], params: Mapping[str, str] | None = None
    ) -> Iterator[Item]:
        """Yield every item of a list, page after page, as ``made`` makes it."""
        query = {**(params or {}), "limit": str(_PAGE)}
        while True:
            page = self.json("GET", path, params=query)
            for item in page["data"]:
                yield made(item)
            if not page.get("has_more"):
                return
            query["after"] = page["last_id"]

    def all(self, path: str, made: Callable[[Document], Item]) -> list[Item]:
        """Every item of a list, as ``made`` makes it."""
        found: list[Item] = []
        for item in self.pages(path, made):
            found.append(item)
        return found

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
            if response.status_code in UNAVAILABLE:
                raise httpx2.RemoteProtocolError(f"HTTP {response.status_code}")
            if response.is_error:
                response.read()
                raise ApiProblem.from_response(response)
            yield response
