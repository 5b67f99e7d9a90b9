"""How soon /healthz answers while clients post the worst bodies: python -m tests.benchmarks.bodies [--seconds N]

An API process alone, on SQLite. For each body the clients, threads of another process, post it again and again; this
process asks /healthz every 50 ms. Bar: the 99th percentile is below 100 ms, with the cores to themselves.
"""

import argparse
import json
import multiprocessing
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from service.cli.render import console, table
from service.db.database import upgrade_to_head
from tests.benchmarks.load import api_alone
from tests.benchmarks.memory import own_bytes

BAR_S = 0.1
EVERY_S = 0.05


def worst_bodies() -> dict[str, dict[str, Any]]:
    """Bodies of up to 1 MiB by what takes long about them."""
    chain, flat = "+".join(["max*0"] * 60), f"max({', '.join(['min'] * 80)})"
    return {
        "480 methods, expressions nested too deeply": _job(
            [_custom(f"m{i}", *[f"{chain}+{i}"] * 4) for i in range(480)]
        ),
        "as many expressions as are allowed": _job([_custom(f"m{i}", f"{flat}+{i}") for i in range(155)]),
        "480 methods, as many characters as fit": _job([_custom(f"m{i}", *[f"{flat}+{i}"] * 4) for i in range(480)]),
        "1000 methods, 32 terms each": _job([_custom(f"m{i}", *[None] * 32) for i in range(1000)]),
        "400 methods, 32 policies each": _job([_custom(f"m{i}", *["max"] * 32) for i in range(400)]),
        "1000 methods, all different": _job([{"preset": "kd", "temperature": 1 + i} for i in range(1000)]),
        "80,000 unknown fields": {f"a{i}": 1 for i in range(80_000)},
    }


def _custom(name: str, *expressions: str | None) -> dict[str, Any]:
    policies = [{"policy": {"kind": "expression", "temperature": text}} if text else {} for text in expressions]
    return {"preset": "custom", "name": name, "terms": [{**term, "name": f"t{i}"} for i, term in enumerate(policies)]}


def _job(methods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"teacher": "tch_x", "dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": methods}


def post(
    url: str, content: bytes, clients: int, seconds: float, answers: "multiprocessing.Queue[Counter[int]]"
) -> None:
    """Posts the body from so many clients for so long, and tells how often each status came."""
    statuses: Counter[int] = Counter()
    end_s = time.monotonic() + seconds
    headers = {"Content-Type": "application/json"}

    def work() -> None:
        with httpx2.Client(base_url=url, timeout=120, trust_env=False) as client:
            while time.monotonic() < end_s:
                statuses[client.post("/v1/jobs?dry_run=true", content=content, headers=headers).status_code] += 1

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put(statuses)


def main() -> int:
    """Prints the table; 1 if a body breaks the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each body (default %(default)s)")
    parser.add_argument("--clients", type=int, default=20, help="(default %(default)s)")
    given = parser.parse_args()
    rows, broken = [], 0
    spawn = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        url = f"sqlite:///{folder / 'data' / 'retort.sqlite3'}"
        upgrade_to_head(url)
        with api_alone(folder, url) as (client, pid):
            for label, body in worst_bodies().items():
                content = json.dumps(body).encode()
                answers = spawn.Queue()
                posting = spawn.Process(
                    target=post, args=(str(client.base_url), content, given.clients, given.seconds, answers)
                )
                posting.start()
                times_s = []
                while posting.is_alive():
                    started_s = time.monotonic()
                    client.get("/healthz")
                    times_s.append(time.monotonic() - started_s)
                    time.sleep(EVERY_S)
                posting.join()
                percent_s = quantiles(times_s, n=100)
                broken += percent_s[98] > BAR_S
                told = ", ".join(f"{count} x {status}" for status, count in answers.get().items())
                figures = [f"{1000 * value:.0f} ms" for value in (percent_s[49], percent_s[98], max(times_s))]
                memory = f"{own_bytes('VmRSS', 'status', pid) >> 20} MiB"
                row = [label, f"{len(content) >> 10} KiB", told, *figures, memory]
                console().print(" | ".join(row), markup=False)
                rows.append(row)
    console().print(table(["body", "size", "answers", "p50", "p99", "longest", "API's memory"], rows))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
