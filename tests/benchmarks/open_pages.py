"""Open pages as a browser keeps them: ``python -m tests.benchmarks.open_pages URL PATH PAGES``.

A process of its own. Each page is fetched, then its socket is opened with the handshake of NiceGUI's script; updates
are read and acknowledged every three seconds, pings answered. Prints ``open`` once all are; ends with its input.
Prints how many messages have come, last.
"""

import asyncio
import json
import re
import sys
from contextlib import suppress
from urllib.parse import urlencode

import httpx2
from websockets.asyncio.client import ClientConnection, connect

ACK_EVERY_S = 3.0
# Of engine.io and socket.io: a ping and its answer, the opening of a namespace, an event.
PING, PONG, CONNECT, CONNECTED, EVENT = "2", "3", "40", "40{", "42"


class OpenPage:
    """One page, from its first request on.

    Attributes:
        messages: events of its socket that have come.
    """

    def __init__(self, url: str, path: str) -> None:
        self._url = url
        self._path = path
        self.messages = 0

    async def open(self) -> None:
        """Fetch the page, and open its socket."""
        async with httpx2.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as client:
            page = await client.get(self._path)
            page.raise_for_status()
            cookies = "; ".join(f"{name}={value}" for name, value in page.cookies.items())
        [self._id] = re.findall(r"'client_id': '([0-9a-f-]+)'", page.text)
        ids = {"client_id": self._id, "document_id": "document", "tab_id": self._id, "next_message_id": 0}
        query = urlencode({"EIO": 4, "transport": "websocket", "implicit_handshake": "true", **ids})
        address = f"{self._url.replace('http', 'ws', 1)}/_nicegui_ws/socket.io/?{query}"
        headers = {"Origin": self._url, **({"Cookie": cookies} if cookies else {})}
        self._socket = await connect(address, additional_headers=headers, max_size=None, proxy=None)
        await self._socket.recv()
        await self._socket.send(CONNECT)
        while not str(await self._socket.recv()).startswith(CONNECTED):
            pass

    async def stay(self) -> None:
        """Read what comes, until cancelled."""
        acknowledging = asyncio.create_task(self._acknowledge(self._socket))
        async for message in self._socket:
            if message == PING:
                await self._socket.send(PONG)
            elif str(message).startswith(EVENT):
                self.messages += 1
        acknowledging.cancel()
        raise ConnectionError(f"the service has closed the socket of {self._path}")

    async def _acknowledge(self, socket: ClientConnection) -> None:
        while True:
            await asyncio.sleep(ACK_EVERY_S)
            body = {"client_id": self._id, "next_message_id": self.messages}
            await socket.send(f"{EVENT}{json.dumps(['ack', body])}")


async def stay_open(url: str, path: str, pages: int) -> int:
    """Open pages until the input ends; returns how many messages have come."""
    opened = [OpenPage(url, path) for _ in range(pages)]
    for page in opened:
        await page.open()
    sys.stdout.write("open\n")
    sys.stdout.flush()
    staying = asyncio.gather(*(page.stay() for page in opened))
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait((staying, ended), return_when=asyncio.FIRST_COMPLETED)
    if staying.done():
        await staying
    staying.cancel()
    with suppress(asyncio.CancelledError):
        await staying
    return sum(page.messages for page in opened)


def main() -> None:
    url, path, pages = sys.argv[1:]
    sys.stdout.write(f"{asyncio.run(stay_open(url, path, int(pages)))}\n")


if __name__ == "__main__":
    main()
