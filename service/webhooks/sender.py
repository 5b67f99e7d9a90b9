"""One request of a webhook: to an address that was looked up once and checked, without redirects, within a deadline.

The address is resolved and checked here, and the connection is made to that very address: a name that answers something
else a moment later (DNS rebinding) reaches nothing. TLS is for the name all the same.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio.to_thread
import httpx2

from service.db.webhook_outbox import ATTEMPT_S
from service.version import service_version
from service.webhooks.allowed import AllowedHosts

CONNECT_S = 5.0
_LOOKUPS_MAX = 8
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class WebhookSender:
    """Sends messages. Its coroutines belong to one event loop.

    Args:
        hosts: where they may go.
        resolve: addresses of a host, which is asked for a port of it; the system's resolver by default.
    """

    def __init__(self, hosts: AllowedHosts, resolve: Resolve | None = None) -> None:
        self._hosts = hosts
        self._resolve = resolve or self._look_up
        # The system's resolver takes no deadline: what hangs there is left to itself, and takes these threads alone.
        self._lookups = anyio.CapacityLimiter(_LOOKUPS_MAX)
        self._client = httpx2.AsyncClient(
            verify=httpx2.create_ssl_context(),
            # A proxy would resolve the name itself.
            trust_env=False,
            follow_redirects=False,
            # The whole attempt has a deadline.
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            # Connections are known by address, and one address may be of several names.
            limits=httpx2.Limits(max_keepalive_connections=0),
            headers={"User-Agent": f"retort/{service_version()}"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> int:
        """Send a message and return the status of the answer, of which nothing but the head is read.

        Raises:
            WebhookRefused: it may not be sent there.
            TimeoutError: there was no answer within ``ATTEMPT_S``, however much has come.
            OSError, httpx2.HTTPError: there was none for another reason.
        """
        self._hosts.check_url(url)
        target = httpx2.URL(url)
        async with asyncio.timeout(ATTEMPT_S):
            port = target.port or (443 if target.scheme == "https" else 80)
            addresses = self._hosts.allowed_addresses(target.host, await self._resolve(target.host, port))
            for address in addresses[:-1]:
                try:
                    return await self._post_to(address, target, body, headers)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    continue  # nothing was sent; there may be no route of this family
            return await self._post_to(addresses[-1], target, body, headers)

    async def _post_to(self, address: str, target: httpx2.URL, body: str, headers: Mapping[str, str]) -> int:
        own = {"Host": target.netloc.decode("ascii"), "Content-Type": "application/json"}
        async with self._client.stream(
            "POST",
            target.copy_with(host=address),
            content=body.encode(),
            headers={**own, **headers},
            extensions={"sni_hostname": target.host},
        ) as answer:
            return answer.status_code

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        def resolve() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [str(address[0]) for *_, address in found]

        return await anyio.to_thread.run_sync(resolve, abandon_on_cancel=True, limiter=self._lookups)
