"""Schemathesis at length: ``python -m tests.benchmarks.conformance [--minutes N] [--seed N] [--report FILE]``.

An API of its own, with something of everything in its database, all phases and all checks, and none of the shortcuts
that the bounded run of the test suite takes. Prints what the tool says, then how often each operation gave each status;
the exit status is the tool's.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.bench import show
from tests.support.conformance import Outcome, run, settings_of, stock
from tests.support.service_helpers import running_api

_ID = re.compile(r"/(?:[a-z]{2,4}_[0-9a-z]{26}|[0-9a-f]{64})(?=/|$)")
_NAME = re.compile(r"artifacts/[^/]+$")


def statuses(
    logs: Iterable[Mapping[str, object]], paths: Mapping[str, Mapping[str, object]]
) -> dict[str, Counter[str]]:
    """How often each operation gave each status; what is no operation of the document is "other"."""
    known = {
        f"{method.upper()} {re.sub(r'{[^}]+}', '*', path)}": f"{method.upper()} {path}"
        for path, item in paths.items()
        for method in item
    }
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in logs:
        if entry["event"] == "request":
            path = _NAME.sub("artifacts/*", _ID.sub("/*", str(entry["path"])))
            found[known.get(f"{entry['method']} {path}", "other")][str(entry["status"])] += 1
    return dict(sorted(found.items()))


def measure(minutes: float, seed: int) -> tuple[Outcome, dict[str, Counter[str]]]:
    """One run, and what was answered."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with running_api(settings_of(folder)) as api:
            limit = ("--max-time", str(int(60 * minutes)), "--max-examples", "1000")
            outcome = run(api.url, stock(api), folder, "--seed", str(seed), *limit)
            paths = api.client.get("/openapi.json").json()["paths"]
            return outcome, statuses(api.logs, paths)


def main() -> None:
    parser = argparse.ArgumentParser(description="Schemathesis at length.")
    parser.add_argument("--minutes", type=float, default=5.0, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what the tool says there, too")
    given = parser.parse_args()
    outcome, answered = measure(given.minutes, given.seed)
    print(outcome.text)
    columns = sorted({status for counts in answered.values() for status in counts})
    rows = [(name, *(str(counts[status] or "") for status in columns)) for name, counts in answered.items()]
    show(("operation", *(f"{status}>" for status in columns)), rows)
    if given.report is not None:
        given.report.write_text(outcome.text)
    sys.exit(outcome.status)


if __name__ == "__main__":
    main()
