"""Inbound connections of the API: deadlines, limits per address and in all, eviction of idle ones.

A connection is *idle* while no request of it is at work: its head is awaited, or the rest of a body that was refused.
Where there is no room for one more, the one that has been idle for longest is closed for it. Where none has been idle
for a moment, a few are let in even so (``SPARE``), for health checks alone. How long the body of a request may take is
for ``service.api.bodies.limits``, which can answer; here a connection can only be closed.

The files that the process may open bound their number: without one for its database it would answer nobody.
"""

import asyncio
import fcntl
import struct
import termios
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice

import h11
import structlog
from uvicorn import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from service.api.rate_limits import address_group
from service.api.sockets import Socket
from service.operations.open_files import open_files_max

# Beside connections: about 15 at rest, two for each of 40 connections to SQLite, those of uploads and inspections, and
# connections that were accepted and not counted yet, or closed and not gone yet (five turns of the event loop).
FILES_RESERVED = 144
TOTAL_MAX = 10_000
TOTAL_MIN = 8
# At a turn of the event loop. Three turns pass until a connection is read, and a health check on a spare one must not
# be pushed out by those that came after it, so this is less than a third of SPARE.
ACCEPTED_AT_ONCE = 4
SPARE = 16
# A connection that has been idle for less is closed for another one only where no spare one is left.
FRESH_S = 0.5
# What a client has to take, in each ``send_stall_s``, of an answer that waits for it: 1 KiB/s.
SENT_BYTES = 64 << 10
WARN_EVERY_S = 10.0
# Of the connections that have been idle for longest, in search of one that waits for nothing.
LOOKED_AT = 16
# In a request's state: it came over a spare connection.
IS_SPARE = "is_spare"
log = structlog.get_logger("service.api.connections")


def connections_max(wanted: int | None) -> int:
    """Limit of connections: as wanted, or ``TOTAL_MAX``; each may need a file beside its own, for a download."""
    total, files = wanted or TOTAL_MAX, open_files_max()
    if files is None:
        return total
    room = max(TOTAL_MIN, (files - FILES_RESERVED) // 2)
    if wanted is not None and room < wanted:
        log.warning("fewer connections than RETORT_CONNECTIONS_MAX", wanted=wanted, room=room, open_files=files)
    return min(total, room)


@dataclass(frozen=True)
class Waits:
    """Deadlines of a connection whose client is waited for, in seconds.

    Attributes:
        head_s: until the head of a request is whole.
        send_s: for ``SENT_BYTES`` of an answer to be taken, or what is left of it.
    """

    head_s: float
    send_s: float

    @property
    def look_s(self) -> float:
        """Interval at which a connection is checked."""
        return min(self.head_s, self.send_s) / 4


class Connections:
    """Table of the open connections of one server; evicts idle ones for new ones. Belongs to one event loop.

    Args:
        total: of all addresses together.
        of_address: of one address, or one /64 of IPv6; those of trusted proxies are not counted.
        waits: of each.

    Attributes:
        refused: how many were closed at once, and ``evicted`` how many for another one, since the start.
    """

    def __init__(self, total: int, of_address: int, waits: Waits) -> None:
        self.total = total
        self.of_address = of_address
        self.waits = waits
        self.refused = self.evicted = 0
        self._open: dict[Connection, str] = {}
        self._counts: Counter[str] = Counter()
        # The one that is idle for longest first.
        self._idle: dict[Connection, None] = {}
        self._warned_s = float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: "Connection", address: str) -> bool:
        """Count a new connection; return whether it is a spare one.

        Where not even a spare one is left it is closed. ``address`` is empty where it does not count.
        """
        self._open[connection] = address
        self._counts[address] += 1
        # Spare ones that have become idle, too: what is left of them would make spare ones of all that come.
        while (over := self._over(address)) > 0 and self._evict(address, FRESH_S):
            pass
        if over > SPARE and self._evict(address, 0.0):
            over = self._over(address)
        if over > SPARE:
            self.refused += 1
            self._end(connection)
        return over > 0

    def rest(self, connection: "Connection") -> None:
        """Count a connection as idle from now on."""
        if connection in self._open:
            self._idle[connection] = None

    def work(self, connection: "Connection") -> None:
        """Count a connection as busy: a request of it is at work."""
        self._idle.pop(connection, None)

    def leave(self, connection: "Connection") -> None:
        """Forget a closed connection; a second time this does nothing."""
        address = self._open.pop(connection, None)
        self._idle.pop(connection, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def _over(self, address: str) -> int:
        """Number of connections above the limit, of all or of this address."""
        of_all = len(self._open) - self.total
        return max(of_all, self._counts[address] - self.of_address) if address else of_all

    def _evict(self, address: str, after_s: float) -> bool:
        """Close the connection that has been idle longest, if for so long; one of this address if that has too many."""
        is_own = address and self._counts[address] > self.of_address
        found = list(islice((each for each in self._idle if not is_own or self._open[each] == address), LOOKED_AT))
        # One whose last answer is on its way only if there is no other: to abort it cuts that short.
        longest = next(
            (each for each in found if not each.transport.get_write_buffer_size()), found[0] if found else None
        )
        if longest is None or longest.idle_s() < after_s:
            return False
        self.evicted += 1
        self._end(longest)
        return True

    def _end(self, connection: "Connection") -> None:
        self.leave(connection)
        connection.transport.abort()
        now_s = connection.loop.time()
        if now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            log.warning(
                "no room for more connections: idle ones are closed",
                client=connection.client and connection.client[0],
                open=len(self._open),
                at_most=self.total,
                of_address=self.of_address,
                evicted=self.evicted,
                refused=self.refused,
            )


class Connection(H11Protocol):
    """Connection of uvicorn, counted and with deadlines: uvicorn itself waits for a client for ever.

    It is closed when it brings no whole head of a request in ``head_s``, or its client takes too little of an answer.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._table: Connections = config.app.state.context.connections  # type: ignore[union-attr]  # it takes names
        self._is_spare = False
        self._idle_since_s: float | None = None
        # When an answer began to wait for its client, and the bytes that were left of it then.
        self._unsent: tuple[float, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Count the new connection and begin to wait for a request."""
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        app = self.app
        is_proxy = isinstance(app, ProxyHeadersMiddleware) and host in app.trusted_hosts
        self._is_spare = self._table.enter(self, "" if is_proxy else address_group(host))
        if self._is_spare:
            self.app_state = {**self.app_state, IS_SPARE: True}
        self._rest()
        self._look()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; the connection is busy once the head of a request is whole."""
        super().data_received(data)
        if self._idle_since_s is not None and self.cycle is not None and not self.cycle.response_complete:
            self._idle_since_s = None
            self._table.work(self)
            if self._is_spare:
                self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand over to a ``Socket``, which has deadlines of its own and counts as this connection until it is lost."""
        self._next_look.cancel()
        self._table.work(self)
        super().handle_websocket_upgrade(event)
        socket = self.transport.get_protocol()
        if isinstance(socket, Socket):
            socket.on_lost = partial(self._table.leave, self)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._rest()

    def pause_writing(self) -> None:
        """Begin to measure a client that takes less than there is to send."""
        super().pause_writing()
        self._unsent = self._measured()

    def resume_writing(self) -> None:
        """End the measuring: the client has taken most of it."""
        super().resume_writing()
        self._unsent = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, whoever has closed it."""
        self._next_look.cancel()
        self._table.leave(self)
        super().connection_lost(exc)

    def idle_s(self) -> float:
        """Seconds since a request of it was at work."""
        return 0.0 if self._idle_since_s is None else self.loop.time() - self._idle_since_s

    def _rest(self) -> None:
        self._idle_since_s = self.loop.time()
        self._table.rest(self)

    def _measured(self) -> tuple[float, int]:
        """Present time and bytes that the client has yet to take: here, and in the kernel, which may hold MB."""
        left = self.transport.get_write_buffer_size()
        if left:
            file: int = self.transport.get_extra_info("socket").fileno()
            left += struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)))[0]
        return self.loop.time(), left

    def _look(self) -> None:
        """Close the connection when a deadline is over. Repeated until it is lost: cheaper than a timer a request."""
        waits, wait_s = self._table.waits, self._table.waits.look_s
        now_s, left = self._measured()
        # One that was closed with something left to send is gone only once that was taken.
        if self._unsent is None and self.transport.is_closing():
            self._unsent = now_s, left
        if self._unsent is not None and now_s - self._unsent[0] >= waits.send_s:
            if self._unsent[1] - left < SENT_BYTES:
                self.transport.abort()
            self._unsent = now_s, left
        # A request at work takes the time that it takes: its stream, its upload.
        if self._idle_since_s is not None and not self.transport.is_closing():
            rest_s = self._idle_since_s + waits.head_s - now_s
            if rest_s <= 0:
                self.transport.close()
            wait_s = min(wait_s, max(rest_s, 0.001))
        self._next_look = self.loop.call_later(wait_s, self._look)
