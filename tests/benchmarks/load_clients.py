"""Clients of one job: ``python -m tests.benchmarks.load_clients URL JOB POLLERS STREAMS SECONDS INTERVAL``.

A process of its own, so that its work is not the service's. Each poller asks for a document every INTERVAL seconds (0:
as soon as it has the last one), in turn the list of jobs, the job, its runs and its report; every second poller names
the ETag of what it has. Each stream reads the job's events from the first on, until the time is over and a new one has
come. Prints one JSON object: see ``Load``.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime

import httpx2

ROUTES = ("/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/runs", "/v1/jobs/{job}/report")
ERROR = "error"


class Load:
    """What the clients of one job measure.

    Attributes:
        requests: by route, the status (or ``error``) and seconds of each.
        streams: the numbers of the events of each, in the order they came.
        delays_s: from the moment that an event is told to its arrival.
        broken: streams that ended before the time.
    """

    def __init__(self, url: str, job: str, end_s: float, interval_s: float) -> None:
        self.url = url
        self.job = job
        self.end_s = end_s
        self.interval_s = interval_s
        self.requests: dict[str, list[tuple[str, float]]] = defaultdict(list)
        self.streams: list[list[int]] = []
        self.delays_s: list[float] = []
        self.broken = 0

    async def poll(self, number: int, of: int) -> None:
        """One client that asks again and again."""
        etags: dict[str, str] = {}
        next_s = time.monotonic() + self.interval_s * number / of
        async with httpx2.AsyncClient(base_url=self.url, timeout=30, trust_env=False, verify=False) as client:
            turn = number
            while next_s < self.end_s:
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
                route = ROUTES[turn % len(ROUTES)]
                headers = {"If-None-Match": etags[route]} if number % 2 and route in etags else {}
                started = time.perf_counter()
                try:
                    response = await client.get(route.format(job=self.job), headers=headers)
                    status = str(response.status_code)
                    etags[route] = response.headers.get("etag", "")
                except httpx2.HTTPError as error:
                    status = f"{ERROR}: {type(error).__name__}"
                self.requests[route].append((status, time.perf_counter() - started))
                # A client that was kept waiting does not ask twice at once.
                next_s = max(next_s + self.interval_s, time.monotonic())
                turn += 1

    async def follow(self) -> None:
        """One stream of events, until the time is over."""
        numbers: list[int] = []
        self.streams.append(numbers)
        path = f"/v1/jobs/{self.job}/events"
        began = time.time()
        async with httpx2.AsyncClient(base_url=self.url, timeout=30, trust_env=False, verify=False) as client:
            try:
                async with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                    response.raise_for_status()
                    async for number, told in events_of(response):
                        numbers.append(number)
                        if told > began:
                            self.delays_s.append(time.time() - told)
            except httpx2.HTTPError:
                pass
        if time.monotonic() < self.end_s:
            self.broken += 1

    async def run(self, pollers: int, streams: int) -> None:
        """All of them, to the end."""
        followers = [asyncio.create_task(self.follow()) for _ in range(streams)]
        await asyncio.gather(*(self.poll(number, pollers) for number in range(pollers)))
        await asyncio.sleep(max(0.0, self.end_s - time.monotonic()))
        # A machine that is busy with something else may have told nothing new so far.
        while not self.delays_s and not all(follower.done() for follower in followers):
            await asyncio.sleep(0.1)
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


async def events_of(response: httpx2.Response) -> AsyncIterator[tuple[int, float]]:
    """The number of each event of a stream, and when it was told (seconds since 1970)."""
    number = -1
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("data: ") and '"at"' in line:
            yield number, datetime.fromisoformat(json.loads(line[6:])["at"]).timestamp()


def main() -> None:
    url, job, pollers, streams, seconds, interval_s = sys.argv[1:]
    load = Load(url, job, time.monotonic() + float(seconds), float(interval_s))
    asyncio.run(load.run(int(pollers), int(streams)))
    told = ("requests", "streams", "delays_s", "broken")
    sys.stdout.write(json.dumps({name: getattr(load, name) for name in told}))


if __name__ == "__main__":
    main()
