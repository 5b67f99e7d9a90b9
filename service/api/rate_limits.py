"""Rate and concurrency limits of callers: requests a second; requests, event streams and uploads at once.

The limits are per name: the id of an API key, or the address of a caller without one. What is remembered of a name is
forgotten once it is quiet, so memory is bounded by the rate of requests and not by the number of callers.
"""

import asyncio
import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from service.errors import TooManyRequests

NAMES_MAX = 10_000
BUSY_RETRY_S = 5
# Of IPv6: what one customer of a provider is given at least, 2 to the power of 64 addresses.
_IPV6_PREFIX = 64


class RateLimit:
    """Rate limit, a token bucket per name.

    It holds ``burst`` tokens, a request takes one, and ``per_s`` come back each second.

    Args:
        per_s: 0 lets everything pass.
        burst: requests that may come at once.
        clock: seconds that never go backwards.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self.burst = burst
        self._clock = clock
        # name -> (tokens, when they were counted), the one that was quiet for longest first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Number of names that are remembered."""
        return len(self._buckets)

    def take(self, name: str) -> None:
        """Take a token for a request. Raises TooManyRequests."""
        if not self.per_s:
            return
        now_s = self._clock()
        tokens, counted_s = self._buckets.pop(name, (float(self.burst), now_s))
        tokens = min(float(self.burst), tokens + (now_s - counted_s) * self.per_s)
        passes = tokens >= 1
        self._buckets[name] = (tokens - passes, now_s)
        self._forget(now_s)
        if not passes:
            raise TooManyRequests(
                f"at most {self.per_s:g} requests a second, and {self.burst} at once, are answered for one API key or "
                "address: slow down",
                math.ceil((1 - tokens) / self.per_s),
            )

    def _forget(self, now_s: float) -> None:
        full_after_s = self.burst / self.per_s
        while self._buckets:
            name, (_, counted_s) = next(iter(self._buckets.items()))
            if now_s - counted_s < full_after_s and len(self._buckets) <= NAMES_MAX:
                return
            del self._buckets[name]


class ConcurrencyLimit:
    """Concurrency limit: how many requests of a kind each name may have open.

    Args:
        at_once: of one name.
        what: they are, in the plural.
        advice: to whoever wants one more.
    """

    def __init__(self, at_once: int, what: str, advice: str) -> None:
        self.at_once = at_once
        self.what = what
        self.advice = advice
        self.open: Counter[str] = Counter()

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Count a request while it is open. Raises TooManyRequests."""
        if self.open[name] >= self.at_once:
            raise TooManyRequests(
                f"{self.at_once} {self.what} of one API key or address may be open at once: {self.advice}",
                BUSY_RETRY_S,
            )
        self.open[name] += 1
        try:
            yield
        finally:
            self.open[name] -= 1
            if not self.open[name]:
                del self.open[name]


class KeyedSemaphore:
    """Semaphore per name: so many at a time hold it, the others wait in line. Belongs to one event loop."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        # name -> its semaphore, and how many hold it or wait.
        self._lines: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def __len__(self) -> int:
        """Number of names that are remembered."""
        return len(self._lines)

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[None]:
        """Wait for a turn among those of the same name."""
        turn, users = self._lines.get(name) or (asyncio.Semaphore(self.at_once), 0)
        self._lines[name] = turn, users + 1
        try:
            async with turn:
                yield
        finally:
            _, users = self._lines.pop(name)
            if users > 1:
                self._lines[name] = turn, users - 1


def address_group(host: str) -> str:
    """Group under which an address counts: itself; of IPv6 its /64; of IPv4 written as IPv6 the IPv4 address."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_PREFIX), strict=False))
