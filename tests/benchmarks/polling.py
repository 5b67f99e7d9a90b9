"""How many polls a second an API answers: ``python -m tests.benchmarks.polling [--against TREE ...] [--seconds N]``.

200 clients with a connection each ask as soon as they have their answer, in turn for the list of jobs, a job, its runs
and its report; every second client names the ETag of what it has. The same on a database that nobody writes to, on one
with a commit every 20 ms, and, there too, with every client asking for another job, which nobody changes, or which each
commit changes. APIs of this tree and of others (checkouts of another version, say) take turns, each on a database of
its own making, so that their ratio can be told on a busy machine; CPU time a request hardly depends on who else is
there. Clients, in this process, are on the same machine.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from service.cli.processes.supervisor import free_port
from service.cli.render import console, table
from service.db.database import Database, upgrade_to_head
from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from tests.benchmarks.load import METHODS, percentile_ms
from tests.support.filled import fill
from tests.support.service_helpers import make_plan, teacher_row

TREE = Path(__file__).resolve().parents[2]
JOBS = 200
COMMIT_EVERY_S = 0.02
WARM_S = 1.0
DOCUMENTS = ("", "/runs", "/report")
# Nobody's documents show either.
COMMIT = "UPDATE engine SET holder = hex(randomblob(4))"
COMMIT_TO_ALL_JOBS = "UPDATE jobs SET holder = hex(randomblob(4))"


@dataclass
class Polls:
    """What clients have seen: seconds of each request, and the answers that were neither 200 nor 304."""

    end_s: float
    seconds: list[float] = field(default_factory=list)
    errors: int = 0


class Client(asyncio.Protocol):
    """One client: asks, reads the answer, asks again. An HTTP library would take more of the machine than the API."""

    def __init__(self, polls: Polls, number: int, paths: Sequence[str], closed: asyncio.Future[None]) -> None:
        self._polls, self._number, self._paths, self._closed = polls, number, paths, closed
        self._turn = number
        self._etags: dict[str, bytes] = {}
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks first."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if time.monotonic() > self._polls.end_s:
            self._transport.close()
            return
        self._path = self._paths[self._turn % len(self._paths)]
        self._turn += 1
        known = self._etags.get(self._path) if self._number % 2 else None
        condition = b"If-None-Match: " + known + b"\r\n" if known else b""
        self._began_s = time.perf_counter()
        self._transport.write(f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode() + condition + b"\r\n")

    def data_received(self, data: bytes) -> None:
        """Asks again when the answer is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        status = first.split(b" ")[1]
        if len(body) < (0 if status == b"304" else int(headers[b"content-length"])):
            return
        self._polls.seconds.append(time.perf_counter() - self._began_s)
        self._polls.errors += status not in (b"200", b"304")
        self._etags[self._path] = headers.get(b"etag", b"")
        self._received = b""
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._closed.set_result(None)


async def poll(port: int, clients: int, seconds: float, paths: Sequence[Sequence[str]]) -> Polls:
    """All clients at once, each with its list of paths."""
    loop = asyncio.get_running_loop()
    polls, closed = Polls(time.monotonic() + seconds), [loop.create_future() for _ in range(clients)]
    for number in range(clients):
        own = paths[number % len(paths)]
        await loop.create_connection(partial(Client, polls, number, own, closed[number]), "127.0.0.1", port)
    await asyncio.gather(*closed)
    return polls


@contextmanager
def api_of(tree: Path, folder: Path, database: Path) -> Iterator[tuple[int, int]]:
    """The port and process id of an API that runs a tree's code."""
    port = free_port()
    line = [sys.executable, "-m", "service.cli", "api", "--port", str(port)]
    line += ["--data-dir", str(folder / f"data-{port}"), "--data-root", str(folder)]
    settings = {"RETORT_DATABASE_URL": f"sqlite:///{database}", "RETORT_REQUESTS_PER_S": "0", "PYTHONPATH": str(tree)}
    log = (folder / f"{port}.log").open("ab")
    with log, subprocess.Popen(line, env=os.environ | settings, cwd=tree, stdout=log, stderr=log) as process:
        try:
            while process.poll() is None:
                try:
                    asyncio.run(poll(port, 1, 0.1, [["/healthz"]]))
                    break
                except OSError:
                    time.sleep(0.1)
            if process.poll() is not None:
                raise RuntimeError(f"the API of {tree} has ended: {Path(log.name).read_text()[-2000:]}")
            yield port, process.pid
        finally:
            process.terminate()


@contextmanager
def writing(database: Path, statement: str) -> Iterator[None]:
    """A process that commits a statement to a database every 20 ms."""
    code = f"""if True:
        import sqlite3, time
        connection = sqlite3.connect({str(database)!r}, isolation_level=None, timeout=10)
        while True:
            connection.execute({statement!r})
            time.sleep({COMMIT_EVERY_S})
    """
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)


def cpu_s(pid: int) -> float:
    """Seconds of CPU time that a process has taken."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def stocked_by(tree: Path, database: Path) -> list[str]:
    """Makes a database by a tree's code, whose tables may be others; returns the ids of its jobs."""
    code = f"import pathlib, {__spec__.name} as found; print(*found.stocked(pathlib.Path({str(database)!r})))"
    line = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(line, env=environment, cwd=tree, check=True, capture_output=True, text=True).stdout.split()


def stocked(database: Path) -> list[str]:
    """Makes a database with jobs of four runs; returns the ids of the jobs."""
    url = f"sqlite:///{database}"
    upgrade_to_head(url)
    opened = Database(url)
    teacher = ApiQueries(opened).add_teacher(teacher_row(), lambda: None)[0]
    ids = fill(opened, teacher, make_plan(methods=list(METHODS)), [State.SUCCEEDED] * JOBS)
    opened.close()
    return ids


def _shared(ids: Sequence[str]) -> list[list[str]]:
    return [["/v1/jobs", *(f"/v1/jobs/{ids[0]}{part}" for part in DOCUMENTS)]]


def _own(ids: Sequence[str]) -> list[list[str]]:
    return [[f"/v1/jobs/{id}{part}" for part in DOCUMENTS] for id in ids]


# What it is called, what is committed every 20 ms, what each client asks for.
CASES = (
    ("nothing is written", "", _shared),
    ("pages of 100 jobs", "", lambda _: [["/v1/jobs?limit=100"]]),
    ("a commit every 20 ms", COMMIT, _shared),
    ("the same, to each client its job", COMMIT, _own),
    ("the same, and each commit changes all jobs", COMMIT_TO_ALL_JOBS, _own),
)


def main() -> int:
    """Prints a row for each tree and case, in every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, nargs="*", default=[], metavar="TREE", help="checkouts beside this one")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--clients", type=int, default=200, help="(default %(default)s)")
    given = parser.parse_args()
    rows = []
    with TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        trees = [tree.resolve() for tree in given.against] + [TREE]
        apis = list[tuple[Path, Path, list[str], int, int]]()
        for number, tree in enumerate(trees):
            database = folder / f"{number}.sqlite3"
            ids = stocked_by(tree, database)
            apis.append((tree, database, ids, *running.enter_context(api_of(tree, folder, database))))
        for label, statement, paths_of in CASES:
            for _ in range(given.rounds):
                for tree, database, ids, port, pid in apis:
                    with writing(database, statement) if statement else nullcontext():
                        asyncio.run(poll(port, given.clients, WARM_S, paths_of(ids)))
                        before_s, began_s = cpu_s(pid), time.monotonic()
                        polls = asyncio.run(poll(port, given.clients, given.seconds, paths_of(ids)))
                    count, took_s = len(polls.seconds), time.monotonic() - began_s
                    rows.append(
                        [
                            label,
                            "this tree" if tree == TREE else str(tree),
                            f"{count / took_s:,.0f}",
                            f"{1e3 * (cpu_s(pid) - before_s) / count:.2f}",
                            *(f"{percentile_ms(polls.seconds, percent):,.0f}" for percent in (50, 99)),
                            str(polls.errors),
                        ]
                    )
    heads = ["case", "API", "requests/s>", "CPU ms a request>", "p50 ms>", "p99 ms>", "errors>"]
    console().print(table(heads, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
