"""What the API bears: ``python -m tests.benchmarks.load [--json FILE] [--quick] [--parts clients lists memory]``.

- clients: a real service (API, engine, one core for training) works on a job on digits, while 200 clients poll it and
  50 follow its events, for ten minutes. Time of every request, errors, how soon an event arrives, whether every stream
  has seen every event once, and the memory and open files of the API's process.
- lists: 10,000 jobs of four runs, with their events, in SQLite and (where it is installed) in PostgreSQL; pages of the
  list over HTTP, one after the other, and the metrics that count all of them.
- memory: an API alone, asked as fast as it answers while events are told, round after round; what it takes after each.

Client and service share the machine: 200 requests a second are the clients' whole offer, not the API's limit.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from service.cli.processes.background_service import BackgroundService
from service.cli.processes.supervisor import command, free_port
from service.client.client import Client
from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.models import RunRecord
from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from tests.benchmarks.bench import options, show, write
from tests.benchmarks.memory import own_bytes
from tests.support.filled import METRICS, fill
from tests.support.process_table import api_process
from tests.support.service_helpers import (
    add_job,
    make_plan,
    postgres_binaries,
    running_postgres,
    start_run,
    teacher_row,
)
from workers.config.schedules import CosineSchedule
from workers.config.training import AdamW, Training
from workers.data.kinds.digits import DigitsDataset
from workers.pipeline import train_supervised

PARTS = ("clients", "lists", "memory")
POLLERS, STREAMS, SECONDS = 200, 50, 600.0
INTERVAL_S = 1.0
QUICK_POLLERS, QUICK_STREAMS, QUICK_SECONDS = 20, 5, 5.0
JOBS, REQUESTS = 10_000, 200
QUICK_JOBS, QUICK_REQUESTS = 200, 20
PAGE = 20
ROUNDS, ROUND_S = 8, 20.0
QUICK_ROUNDS, QUICK_ROUND_S = 2, 2.0
ROUND_STREAMS = 10
EVENTS_AT_ONCE, EVENTS_EVERY_S = 10, 0.25
# Memory rises while a service meets its first clients: every thread, connection and cache of it is there after that.
SETTLED_MIN = 1.0
METHODS = ("kd", "dkd", "normkd", "dtkd")


def percentile_ms(seconds: Sequence[float], percent: int) -> float:
    """By linear interpolation; of a single value that value."""
    found = quantiles(seconds, n=100, method="inclusive")[percent - 1] if len(seconds) > 1 else seconds[0]
    return 1e3 * found


# ------------------------------------------------------------------------------------------------------------- clients


@contextmanager
def served(folder: Path) -> Iterator[BackgroundService]:
    """A service that trains on one core and counts nobody's requests."""
    os.environ |= {"RETORT_CPUS": "1", "RETORT_REQUESTS_PER_S": "0", "RETORT_DISK_FLOOR_BYTES": "0"}
    with BackgroundService(folder / "data", folder) as service:
        service.wait_ready()
        yield service


def submit(client: Client, folder: Path) -> str:
    """A job that goes on until it is cancelled; returns its id."""
    training = Training(epochs=4, optimizer=AdamW(lr=3e-3), schedule=CosineSchedule())
    places = {"data_root": folder, "work_dir": folder / "work", "out_dir": folder / "teacher"}
    model = train_supervised(DigitsDataset(), "cnn_m", training, **places)
    teacher = client.upload_teacher(model.onnx_path, preprocessing=model.preprocessing.model_dump(mode="json"))
    body = {
        "teacher": teacher["id"],
        "dataset": {"kind": "digits"},
        "students": ["cnn_s"],
        "methods": list(METHODS),
        "training": {"epochs": 10_000, "batch_size": 64},
    }
    return str(client.submit(body)["id"])


@dataclass(frozen=True)
class Look:
    """At a process: minutes since the first, resident bytes, open files, seconds of CPU time so far."""

    minute: float
    resident_bytes: int
    files: int
    cpu_s: float


def watch(pid: int, done: threading.Event, seen: list[Look]) -> None:
    """A look every second."""
    began = time.monotonic()
    while not done.is_set():
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        files = len(os.listdir(f"/proc/{pid}/fd"))
        seen.append(Look((time.monotonic() - began) / 60, own_bytes("VmRSS", "status", pid), files, cpu_s))
        done.wait(1.0)


@contextmanager
def open_pages(url: str, job: str, pages: int) -> Iterator[None]:
    """Pages of a job that stay open, in a process of their own."""
    if not pages:
        yield
        return
    line = [sys.executable, "-m", "tests.benchmarks.open_pages", url, f"/jobs/{job}", str(pages)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
        messages, _ = process.communicate("")
    print(f"{pages} open pages have had {int(messages):,} updates")


def measure_clients(folder: Path, pollers: int, streams: int, seconds: float, pages: int = 0) -> dict[str, object]:
    """All figures of the part, as JSON; ``pages`` of the job are open meanwhile."""
    with served(folder) as service, Client(service.url) as client:
        job = submit(client, folder)
        while client.job(job)["state"] != "running" or not any(run["epoch"] for run in client.runs(job)):
            time.sleep(0.2)
        done, seen = threading.Event(), list[Look]()
        watcher = threading.Thread(target=watch, args=(api_process(service.pid), done, seen))
        watcher.start()
        with open_pages(service.url, job, pages):
            told = ask(service.url, job, pollers, streams, seconds, INTERVAL_S)
        done.set()
        watcher.join()
        events = [event["seq"] for event in all_events(service.url, job)]
        client.cancel(job)
    return {
        "pollers": pollers,
        "streams": streams,
        "seconds": seconds,
        "routes": {route: of_route(asked) for route, asked in told["requests"].items()},
        "events": of_streams(told, events),
        "process": of_process(seen),
    }


def ask(url: str, job: str, pollers: int, streams: int, seconds: float, interval_s: float) -> dict[str, Any]:
    """What the clients of a job tell, which run in a process of their own."""
    arguments = map(str, (url, job, pollers, streams, seconds, interval_s))
    line = [sys.executable, "-m", "tests.benchmarks.load_clients", *arguments]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def all_events(url: str, job: str) -> Iterator[dict[str, int]]:
    """Of a job, from its pages."""
    after, more = "0", True
    while more:
        page = httpx2.get(f"{url}/v1/jobs/{job}/events", params={"limit": 1000, "after": after}, timeout=30).json()
        yield from page["data"]
        after, more = page["last_id"], page["has_more"]


def of_route(asked: Sequence[tuple[str, float]]) -> dict[str, object]:
    """Requests of a route: how many, by status, and their times."""
    seconds = [each for _, each in asked]
    statuses = Counter(status for status, _ in asked)
    return {
        "requests": len(asked),
        "unchanged": statuses["304"],
        "errors": len(asked) - statuses["200"] - statuses["304"],
        "statuses": dict(statuses),
        "p50_ms": percentile_ms(seconds, 50),
        "p99_ms": percentile_ms(seconds, 99),
        "max_ms": 1e3 * max(seconds),
    }


def of_streams(told: Mapping[str, list], events: Sequence[int]) -> dict[str, object]:
    """What the streams have seen of the events that there are."""
    streams: list[list[int]] = told["streams"]
    return {
        "received": sum(map(len, streams)),
        "broken": told["broken"],
        "lost": sum(len(set(events[: events.index(seen[-1]) + 1]) - set(seen)) for seen in streams if seen),
        "doubled": sum(len(seen) - len(set(seen)) for seen in streams),
        "silent": sum(not seen for seen in streams),
        "p50_ms": percentile_ms(told["delays_s"], 50),
        "p99_ms": percentile_ms(told["delays_s"], 99),
    }


def of_process(seen: Sequence[Look]) -> dict[str, object]:
    """Of the API's process: minute by minute, how fast it grows once it has settled, and its share of a core."""
    settled = [look for look in seen if look.minute >= SETTLED_MIN] or seen
    slope, _ = linear_regression([look.minute for look in settled], [look.resident_bytes / 1024 for look in settled])
    first, last = seen[0], seen[-1]
    return {
        "minutes": [asdict(look) for look in [first, *(look for look in seen if look.minute >= 1)][::60]],
        "kb_per_min": slope,
        "cores": (last.cpu_s - first.cpu_s) / (60 * (last.minute - first.minute)),
    }


# --------------------------------------------------------------------------------------------------------------- lists


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """URLs of empty databases by name."""
    urls = {"SQLite": f"sqlite:///{folder / 'lists.sqlite3'}"}
    if postgres_binaries() is None:
        yield urls
        return
    with running_postgres() as server:
        yield {**urls, "PostgreSQL": server.create("lists")}


@contextmanager
def api_alone(folder: Path, url: str) -> Iterator[tuple[httpx2.Client, int]]:
    """A client of an API process on this database, and its pid."""
    port = free_port()
    line = [*command("api", "--port", str(port), "--data-dir", str(folder / "data"), "--data-root", str(folder))]
    environment = {**os.environ, "RETORT_DATABASE_URL": url, "RETORT_REQUESTS_PER_S": "0"}
    log = (folder / "api.log").open("ab")
    with log, subprocess.Popen(line, env=environment, stdout=log, stderr=log) as process:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                while process.poll() is None:
                    try:
                        client.get("/healthz")
                        break
                    except httpx2.TransportError:
                        time.sleep(0.1)
                yield client, process.pid
        finally:
            process.terminate()


def fill_list(url: str, jobs: int) -> list[str]:
    """Fill an empty database with jobs of four runs; returns their ids, oldest first."""
    upgrade_to_head(url)
    database = Database(url)
    teacher = ApiQueries(database).add_teacher(teacher_row(), lambda: None)[0]
    plan = make_plan(methods=list(METHODS))
    states = [State.FAILED if number % 100 == 0 else State.SUCCEEDED for number in range(jobs - 20)]
    states += [State.RUNNING] * 2 + [State.QUEUED] * 18
    ids = [id for first in range(0, jobs, 500) for id in fill(database, teacher, plan, states[first : first + 500])]
    database.close()
    return ids


def measure_lists(folder: Path, url: str, jobs: int, requests: int) -> dict[str, dict[str, float]]:
    """Times of a page of each kind, by its name."""
    ids = fill_list(url, jobs)
    pages: dict[str, tuple[str, dict[str, str | int]]] = {
        f"first of {PAGE}": ("/v1/jobs", {"limit": PAGE}),
        f"{jobs // PAGE:,}th of {PAGE}": ("/v1/jobs", {"limit": PAGE, "after": ids[PAGE]}),
        "first of 100": ("/v1/jobs", {"limit": 100}),
        f"failed, first of {PAGE}": ("/v1/jobs", {"limit": PAGE, "status": "failed"}),
        "/metrics": ("/metrics", {}),
    }
    found: dict[str, dict[str, float]] = {}
    with api_alone(folder, url) as (client, _):
        for name, (path, params) in pages.items():
            found[name] = of_page(client, path, params, requests)
    return found


def of_page(client: httpx2.Client, path: str, params: Mapping[str, str | int], requests: int) -> dict[str, float]:
    """Times of one page, asked for again and again, and how many jobs it lists or counts."""
    seconds = []
    for _ in range(requests):
        started = time.perf_counter()
        response = client.get(path, params=params)
        seconds.append(time.perf_counter() - started)
        response.raise_for_status()
    counted = re.findall(r"^retort_jobs{.*} (.+)$", response.text, re.MULTILINE)
    return {
        "items": sum(map(float, counted)) if path == "/metrics" else len(response.json()["data"]),
        "bytes": len(response.content),
        "p50_ms": percentile_ms(seconds, 50),
        "p99_ms": percentile_ms(seconds, 99),
    }


# -------------------------------------------------------------------------------------------------------------- memory


def measure_memory(folder: Path, pollers: int, rounds: int, seconds: float) -> list[dict[str, int]]:
    """After each round: requests and events in it, and resident bytes of the API."""
    url = f"sqlite:///{folder / 'memory.sqlite3'}"
    upgrade_to_head(url)
    database = Database(url)
    records = EngineQueries(database)
    job = add_job(ApiQueries(database), methods=list(METHODS)).id
    records.claim_job()
    run = records.runs(job)[0]
    start_run(records, run.id)
    done = threading.Event()
    teller = threading.Thread(target=tell_events, args=(records, run, done))
    found = []
    with api_alone(folder, url) as (client, pid):
        teller.start()
        for _ in range(rounds):
            told = ask(str(client.base_url), job, pollers, ROUND_STREAMS, seconds, 0.0)
            requests = sum(map(len, told["requests"].values()))
            resident = own_bytes("VmRSS", "status", pid)
            found.append({"requests": requests, "events": sum(map(len, told["streams"])), "resident_bytes": resident})
        done.set()
        teller.join()
    database.close()
    return found


def tell_events(records: EngineQueries, run: RunRecord, done: threading.Event) -> None:
    """Of a run, at a steady rate."""
    epoch = 0
    while not done.wait(EVENTS_EVERY_S):
        epochs = range(epoch, epoch := epoch + EVENTS_AT_ONCE)
        told = [(n, {"type": "epoch", "epoch": n, "epochs": run.epochs, "metrics": METRICS}) for n in epochs]
        records.record_events(run.job_id, run.id, 1, told, progress={"epoch": epoch, "metrics": METRICS})


# ---------------------------------------------------------------------------------------------------------------- told


def tell_clients(figures: Mapping[str, object]) -> None:
    print(f"{figures['pollers']} clients that poll, {figures['streams']} streams, {figures['seconds']:.0f} s")
    rows = [
        (
            route,
            *(f"{of[name]:,}" for name in ("requests", "unchanged", "errors")),
            *(f"{of[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")),
        )
        for route, of in figures["routes"].items()
    ]
    show(("route", "requests>", "304>", "errors>", "p50 ms>", "p99 ms>", "most ms>"), rows)
    of = figures["events"]
    counts = (f"{of[name]:,}" for name in ("received", "lost", "doubled", "broken"))
    show(
        ("events received>", "lost>", "doubled>", "broken streams>", "p50 ms>", "p99 ms>"),
        [(*counts, f"{of['p50_ms']:.0f}", f"{of['p99_ms']:.0f}")],
    )
    of = figures["process"]
    show(
        ("minute>", "resident MiB>", "open files>"),
        [(f"{at['minute']:.1f}", f"{at['resident_bytes'] / (1 << 20):.1f}", f"{at['files']}") for at in of["minutes"]],
    )
    print(f"The API takes {of['cores']:.2f} of a core; once settled it grows by {of['kb_per_min']:+.0f} kB/min")


def tell_lists(jobs: int, lists: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    print(f"Pages of a list of {jobs:,} jobs")
    rows = [
        (
            database,
            page,
            f"{of['items']:.0f}",
            f"{of['bytes'] / 1024:.0f}",
            f"{of['p50_ms']:.1f}",
            f"{of['p99_ms']:.1f}",
        )
        for database, pages in lists.items()
        for page, of in pages.items()
    ]
    show(("database", "page", "jobs>", "kB>", "p50 ms>", "p99 ms>"), rows)


def tell_memory(pollers: int, rounds: Sequence[Mapping[str, int]]) -> None:
    print(f"An API that {pollers} clients ask as fast as it answers, beside {ROUND_STREAMS} streams")
    rows = [
        (f"{n}", f"{of['requests']:,}", f"{of['events']:,}", f"{of['resident_bytes'] / (1 << 20):.1f}")
        for n, of in enumerate(rounds, start=1)
    ]
    show(("round>", "requests>", "events>", "resident MiB>"), rows)


def main() -> None:
    given = options("What the API bears.", PARTS, PARTS)
    figures: dict[str, object] = {"benchmark": "load"}
    with TemporaryDirectory() as name:
        folder = Path(name)
        if "clients" in given.parts:
            size = (QUICK_POLLERS, QUICK_STREAMS, QUICK_SECONDS) if given.quick else (POLLERS, STREAMS, SECONDS)
            figures["clients"] = measure_clients(folder, *size)
            tell_clients(figures["clients"])
        if "lists" in given.parts:
            jobs, requests = (QUICK_JOBS, QUICK_REQUESTS) if given.quick else (JOBS, REQUESTS)
            with databases(folder) as urls:
                lists = {name: measure_lists(folder, url, jobs, requests) for name, url in urls.items()}
            figures["lists"] = {"jobs": jobs, "databases": lists}
            tell_lists(jobs, lists)
        if "memory" in given.parts:
            size = (QUICK_POLLERS, QUICK_ROUNDS, QUICK_ROUND_S) if given.quick else (POLLERS, ROUNDS, ROUND_S)
            figures["memory"] = measure_memory(folder, *size)
            tell_memory(size[0], figures["memory"])
    write(given, figures)


if __name__ == "__main__":
    main()
