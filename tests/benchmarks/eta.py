"""How well are times predicted? ``python -m tests.benchmarks.eta [--epochs N]``.

A service of its own does jobs on the digits, each of more than a minute with the default epochs. Before each one a dry
run says what it will take; while it is done, its document is read every second. Shown are, for each job, the seconds of
the dry run over those that it took, and at 10, 25, 50 and 75 % of its time the seconds left by its document over those
that were left. The first job is done where nothing was ever measured: its dry run has no number, as it has to be.

Other work on the machine makes times that nobody can foresee: the table says the load.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.cli.processes.background_service import BackgroundService
from service.client.client import Client
from service.client.transport import Document
from service.db.states import TERMINAL
from tests.benchmarks.bench import show
from tests.support.digits import Digits, make_digits

FRACTIONS = (0.1, 0.25, 0.5, 0.75)
_EVERY_S = 1.0
_VIEWS = {"augmentation": {"recipe": "crop_flip", "pad": 1, "flip": False}, "count": 40}


@dataclass
class Observed:
    """A job, what its dry run has said, and the expected ends that its document has had, each with when it was read."""

    name: str
    predicted_s: float | None
    id: str
    ends: list[tuple[datetime, datetime | None]] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    job: Document = field(default_factory=dict)

    @property
    def began_at(self) -> datetime:
        """When the engine took it up."""
        return datetime.fromisoformat(self.job["started_at"])

    @property
    def seconds(self) -> float:
        """From then to its end."""
        return (datetime.fromisoformat(self.job["finished_at"]) - self.began_at).total_seconds()

    def left_ratio(self, fraction: float) -> float | None:
        """Seconds left by its document over those that were left, at a fraction of its time."""
        begin, end = self.began_at, datetime.fromisoformat(self.job["finished_at"])
        moment = begin + fraction * (end - begin)
        before = [expected for read_at, expected in self.ends if read_at <= moment]
        if not before or before[-1] is None:
            return None
        return (before[-1] - moment) / (end - moment)


def jobs(teacher: str, epochs: int) -> dict[str, Document]:
    """Jobs by what is in question."""
    training = {"epochs": epochs, "batch_size": 64, "optimizer": {"kind": "adamw", "lr": 0.003}}
    common: dict[str, Any] = {"teacher": teacher, "dataset": {"kind": "digits"}, "training": training}
    small = {**common, "students": ["cnn_s"], "methods": ["ce", "kd"]}
    longer = {**training, "epochs": epochs * 3 // 2}
    return {
        "nothing was measured": small,
        "the same, other seeds": {**small, "seeds": [1]},
        "half as many epochs again": {**small, "seeds": [2], "training": longer},
        "six runs: groups, a queue": {**small, "seeds": [3, 4, 5], "training": {**training, "epochs": epochs // 2}},
        "fresh caches of 40 views": {**small, "seeds": [6], "views": _VIEWS},
        "the same views, cached": {**small, "seeds": [7], "views": _VIEWS},
    }


def observe(client: Client, found: Sequence[Observed]) -> None:
    """Read the documents of jobs until all have ended."""
    while not all(each.job.get("state") in TERMINAL for each in found):
        for each in found:
            each.job = client.job(each.id)
            eta = each.job["eta"]
            each.ends.append((datetime.now(UTC), None if eta is None else datetime.fromisoformat(eta["expected_at"])))
            each.load.append(os.getloadavg()[0])
        time.sleep(_EVERY_S)
    for each in found:
        assert each.job["state"] == "succeeded", each.job["error"]


def begin(client: Client, name: str, body: Mapping[str, Any]) -> Observed:
    """Ask for the cost of a job, and post it."""
    cost = client.submit(dict(body), dry_run=True)["cost"]
    return Observed(name, cost["seconds"]["total"], client.submit(dict(body))["id"])


def measure(client: Client, teacher: str, epochs: int) -> list[Observed]:
    """Do each job alone, then two at once, the second of which waits for slots of the first."""
    observed = []
    for name, body in jobs(teacher, epochs).items():
        each = begin(client, name, body)
        observe(client, [each])
        sys.stderr.write("  ".join(_row(each)) + "\n")
        observed.append(each)
    body = jobs(teacher, epochs)["the same, other seeds"]
    names = {"first of two at once": 8, "second of two at once": 9}
    both = [begin(client, name, {**body, "seeds": [seed]}) for name, seed in names.items()]
    for each in both:
        # What else is there is no part of what a job takes.
        each.predicted_s = None
    observe(client, both)
    return observed + both


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(found: Observed) -> list[str]:
    dry_run = found.predicted_s
    return [
        found.name,
        "-" if dry_run is None else f"{dry_run:.0f}",
        f"{found.seconds:.0f}",
        _ratio(None if dry_run is None else dry_run / found.seconds),
        *(_ratio(found.left_ratio(fraction)) for fraction in FRACTIONS),
        f"{min(found.load):.0f} to {max(found.load):.0f}",
    ]


def main() -> int:
    """Print a row for each job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=120, help="of most runs (default %(default)s)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="eta-")).resolve()
    digits: Digits = make_digits(folder / "digits")
    with (
        contextlib.ExitStack() as stack,
        BackgroundService(folder / "data", folder) as service,
        Client(service.url) as client,
    ):
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        service.wait_ready()
        teacher = client.upload_teacher(
            digits.teacher_spec.path, preprocessing=digits.preprocessing.model_dump(mode="json")
        )
        observed = measure(client, teacher["id"], given.epochs)
    heads = ["job", "dry run, s>", "taken, s>", "ratio>", *(f"left at {100 * f:.0f} %>" for f in FRACTIONS), "load>"]
    show(heads, map(_row, observed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
