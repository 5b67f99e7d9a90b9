"""Where the seconds go after a kill: ``python -m tests.benchmarks.run_loss [--kills N] [--json FILE]``.

A ``retort serve`` trains one run on digits, and its process is killed (SIGKILL) again and again, each time after two
epochs more, so that each loss is the first one in a row. Times are since the kill: the engine has stored the loss, has
begun the next attempt, its process has started (or was there, idle), has imported what it needs and opened its log, and
has told the first epoch that is new. On a machine with other work all but the first two take longer, so what the new
process has taken of a core until its log and its epoch is beside them.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import median

from service.cli.processes.background_service import BackgroundService
from service.client.client import Client
from service.client.transport import Document
from tests.benchmarks.bench import show
from tests.benchmarks.polling import cpu_s
from tests.support.digits import make_digits
from tests.support.processes import job_of

STAGES = ("loss stored", "next attempt", "process", "log", "next epoch", "CPU time to the log", "to the epoch")
LOOK_S = 0.02


def begun_s(pid: int) -> float:
    """When a process was started, in seconds since 1970."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")


def seconds_of(event: Document) -> float:
    """When an event was stored, in seconds since 1970."""
    return datetime.fromisoformat(event["at"]).timestamp()


class CpuTime(threading.Thread):
    """Watch on the next attempt of a run: what its process has taken of a core when its log begins."""

    def __init__(self, attempt: Path) -> None:
        super().__init__(daemon=True)
        self._attempt = attempt
        self.to_log_s = 0.0
        self.start()

    def run(self) -> None:
        """Wait for the first line."""
        while not (log := self._attempt / "log.jsonl").exists() or not log.stat().st_size:
            time.sleep(LOOK_S)
        self.to_log_s = cpu_s(first_line(self._attempt)["pid"])


def first_line(folder: Path) -> Document:
    """What an attempt has written down first."""
    line: Document = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    return line


def epochs_after(events: Iterator[Document], epoch: int, seen: dict[str, float]) -> Document:
    """Follow a stream to the first epoch later than ``epoch``; notes when each state of the run was stored."""
    for event in events:
        if event["type"] == "state" and event["run_id"]:
            seen[event["data"]["state"]] = seconds_of(event)
        elif event["type"] == "epoch" and event["data"]["epoch"] > epoch:
            return event
    raise RuntimeError("the stream of the job has ended: its run should go on for ever")


def losses(service: BackgroundService, folder: Path, kills: int) -> Iterator[list[float]]:
    """Seconds from each kill to each of ``STAGES``, and CPU time."""
    digits = make_digits(folder / "digits")
    with Client(service.url) as client:
        preprocessing = digits.preprocessing.model_dump(mode="json")
        teacher = client.upload_teacher(digits.teacher_spec.path, preprocessing=preprocessing)["id"]
        job_id = client.submit(job_of(teacher, "kd", epochs=10_000))["id"]
        [run] = client.runs(job_id)
        attempts = folder / "data" / "jobs" / job_id / run["id"]
        events = iter(client.events(job_id))
        seen = dict[str, float]()
        epoch = epochs_after(events, 1, seen)["data"]["epoch"]
        for attempt in range(1, kills + 1):
            pid = first_line(attempts / f"a{attempt}")["pid"]
            seen.clear()
            watch = CpuTime(attempts / f"a{attempt + 1}")
            killed_s = time.time()
            os.kill(pid, signal.SIGKILL)
            # What it has told meanwhile is not new.
            told = epochs_after(events, epoch, seen)
            while "running" not in seen:
                told = epochs_after(events, told["data"]["epoch"], seen)
            line = first_line(attempts / f"a{attempt + 1}")
            took_s = cpu_s(line["pid"])
            watch.join()
            stages = [seen["lost"], seen["running"], begun_s(line["pid"])]
            stages += [datetime.fromisoformat(line["at"]).timestamp(), seconds_of(told)]
            yield [*(stage_s - killed_s for stage_s in stages), watch.to_log_s, took_s]
            epoch = epochs_after(events, told["data"]["epoch"] + 1, seen)["data"]["epoch"]
        client.cancel(job_id)


def main() -> int:
    """Prints a row for each kill, and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        with BackgroundService(folder / "data", folder) as service:
            service.wait_ready()
            found = list(losses(service, folder, given.kills))
    middle = [median(column) for column in zip(*found, strict=True)]
    rows = [[str(number), *(f"{value:.2f}" for value in row)] for number, row in enumerate(found, 1)]
    show(["kill", *(f"{stage}, s>" for stage in STAGES)], [*rows, ["median", *(f"{value:.2f}" for value in middle)]])
    if given.json is not None:
        given.json.write_text(json.dumps({"stages": STAGES, "kills": found, "median": middle}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
