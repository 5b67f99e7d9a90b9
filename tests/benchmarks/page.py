"""The page's cost: ``python -m tests.benchmarks.page [--json FILE] [--quick] [--parts start list load]``.

- start: an API alone with and without the page, in turns: seconds and processor seconds until ``/healthz`` answers,
  resident memory at rest.
- list: the list of 10,000 jobs in Chromium: first contentful paint, and until its rows are there.
- load: 200 polling clients and 50 streams, with and without 20 open pages of the job.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx2
from playwright.sync_api import sync_playwright

from service.cli.processes.supervisor import command, free_port
from tests.benchmarks.bench import options, show, write
from tests.benchmarks.load import api_alone, fill_list, measure_clients
from tests.benchmarks.memory import own_bytes
from tests.service.page.visitor import ARGUMENTS, CHROMIUM

PARTS = ("start", "list", "load")
QUICK_PARTS = ("start", "list")
TURNS, QUICK_TURNS = 5, 1
JOBS, QUICK_JOBS = 10_000, 100
PAINTS, QUICK_PAINTS = 10, 2
REST_S = 2.0
CLIENTS, STREAMS, SECONDS, PAGES = 200, 50, 90.0, 20
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
ROWS = "document.querySelectorAll('.page-table tbody tr').length > 20 && performance.now()"


def started(folder: Path, has_page: bool) -> dict[str, float]:
    """Start of an API on an empty database of its own, and what it takes at rest."""
    port = free_port()
    line = [*command("api", "--port", str(port), "--data-dir", str(folder / "data"), "--data-root", str(folder))]
    environment = {**os.environ, "RETORT_PAGE": str(has_page).lower()}
    began = time.monotonic()
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            except httpx2.TransportError:
                time.sleep(0.01)
        wall_s = time.monotonic() - began
        times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        time.sleep(REST_S)
        resident = own_bytes("VmRSS", "status", process.pid)
        process.terminate()
    cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return {"wall_s": wall_s, "cpu_s": cpu_s, "resident_bytes": resident}


def measure_start(turns: int) -> dict[str, dict[str, float]]:
    """Medians with and without the page."""
    found: dict[str, list[dict[str, float]]] = {"without the page": [], "with the page": []}
    for _ in range(turns):
        for name, starts in found.items():
            with TemporaryDirectory() as folder:
                starts.append(started(Path(folder), name == "with the page"))
    return {
        name: {figure: median(start[figure] for start in starts) for figure in starts[0]}
        for name, starts in found.items()
    }


@contextmanager
def filled(folder: Path, jobs: int) -> Iterator[str]:
    """Address of an API alone over so many jobs."""
    url = f"sqlite:///{folder / 'list.sqlite3'}"
    fill_list(url, jobs)
    with api_alone(folder, url) as (client, _):
        yield str(client.base_url)


def measure_list(folder: Path, jobs: int, paints: int) -> dict[str, float]:
    """Medians in milliseconds since the navigation; the first one, which fetches the scripts, is left out."""
    painted, there = list[float](), list[float]()
    with filled(folder, jobs) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page()
        for _ in range(paints + 1):
            page.goto(f"{url}/jobs", wait_until="commit")
            there.append(page.wait_for_function(ROWS).json_value())
            painted.append(page.wait_for_function(PAINTED).json_value())
        browser.close()
    return {
        "jobs": jobs,
        "first_ms": there[0],
        "painted_ms": median(painted[1:]),
        "rows_ms": median(there[1:]),
    }


def tell_load(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Mapping[str, float]]]]]) -> None:
    """Both loads side by side."""
    table = []
    for route in rows[0][1]["routes"]:
        cells = [f"{of['routes'][route][name]:.1f}" for name in ("p50_ms", "p99_ms") for _, of in rows]
        errors = [f"{of['routes'][route]['errors']}" for _, of in rows]
        table.append((route, *cells, *errors))
    events = [of["events"] for _, of in rows]
    cells = [f"{of[name]:.0f}" for name in ("p50_ms", "p99_ms") for of in events]
    table.append(("events", *cells, *(f"{of['lost'] + of['broken']}" for of in events)))
    names = [f"{figure}, {name}>" for figure in ("p50 ms", "p99 ms", "errors") for name, _ in rows]
    show(("route", *names), table)
    for name, of in rows:
        print(f"{name}: the API takes {of['process']['cores']:.2f} of a core")


def main() -> None:
    given = options("The page's cost.", PARTS, QUICK_PARTS)
    figures: dict[str, object] = {"benchmark": "page", "load": os.getloadavg()[0]}
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    if "start" in given.parts:
        figures["start"] = starts = measure_start(QUICK_TURNS if given.quick else TURNS)
        rows = [
            (name, f"{of['wall_s']:.2f}", f"{of['cpu_s']:.2f}", f"{of['resident_bytes'] / 1e6:.1f}")
            for name, of in starts.items()
        ]
        show(("API", "wall s>", "processor s>", "MB at rest>"), rows)
    if "list" in given.parts:
        jobs, paints = (QUICK_JOBS, QUICK_PAINTS) if given.quick else (JOBS, PAINTS)
        with TemporaryDirectory() as folder:
            figures["list"] = of = measure_list(Path(folder), jobs, paints)
        row = (f"{of['jobs']:,.0f}", *(f"{of[name]:.0f}" for name in ("painted_ms", "rows_ms", "first_ms")))
        show(("jobs>", "first paint, ms>", "rows, ms>", "rows at the first visit, ms>"), [row])
    if "load" in given.parts:
        loads = []
        for name, pages in (("alone", 0), (f"{PAGES} pages", PAGES)):
            with TemporaryDirectory() as folder:
                loads.append((name, measure_clients(Path(folder), CLIENTS, STREAMS, SECONDS, pages)))
        figures["loads"] = dict(loads)
        tell_load(loads)  # type: ignore[arg-type]
    write(given, figures)


if __name__ == "__main__":
    main()
