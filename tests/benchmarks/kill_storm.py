"""A job of six runs while its processes are killed, in random order, again and again; then the same job in peace.

A job that has ended before so many kills have fallen is followed by another one of the same plan, and each of them is
judged. What has to hold is asserted: every run succeeds, once; its weights are those of the quiet run, bit for bit; no
event is lost or doubled, as read by a client that followed the stream throughout; when the service has ended, no
process of it is there 90 s later, and no temporary file. What is shown is what it took.

A kill is got over when every run that was in training has told of a new epoch: one that its process had not finished
when the kill fell, by its own log, so that nothing that was under way by then counts. Other kills fall sooner, to meet
the service while it is not over the last one; those are counted and not timed.

``python -m tests.benchmarks.kill_storm --kills 50``; ``--seed`` draws another order.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from service.cli.processes.background_service import BackgroundService
from service.cli.processes.supervisor import free_port
from service.client.client import Client
from service.client.transport import Document
from tests.benchmarks.bench import show
from tests.support.digits import Digits, make_digits
from tests.support.process_table import processes_with
from workers.cluster.head_folder import machine_folder

ENGINE_AND_KEEPER = "engine and keeper at once"
TERMINATION = "SIGTERM to all"  # no kill, and not counted as one
# What is killed, how often in a hundred, and how it is found: by what stands in its command line.
VICTIMS = {
    "API": (20, r"service\.cli api"),
    "engine": (20, r"service\.cli engine"),
    "Ray's keeper": (4, r"workers\.cluster\.ray_keeper"),
    "Ray's head (gcs_server)": (4, r"/gcs_server "),
    "Ray's head (raylet)": (4, r"/raylet/raylet "),
    "Ray's head (ray start)": (4, r"ray\.scripts"),
    ENGINE_AND_KEEPER: (4, r"service\.cli engine|workers\.cluster\.ray_keeper"),
    "trainer": (30, r"^ray::TrainingActor"),
    "actor of the caches": (2, r"^ray::(Caches|Inference)Actor"),
    "supervisor": (4, r"service\.cli serve"),
    TERMINATION: (4, r"service\.cli serve"),
}
ORPHANS_S = 90.0
GRACE_S = 60.0
ANSWER_S = 120.0
# Of the stream, which counts events: none is told while API and engine are killed in turns, and each rests up to 15 s.
EVENT_S = 600.0
METHODS = ("kd", "dtkd", "rld")
SEEDS = (0, 1)
# How long to wait until a kill is got over; the longest one is timed, the others are followed by the next kill anyway.
WAITS_S = (1.0, 5.0, 60.0)


def processes_of(data_dir: Path) -> Mapping[int, str]:
    """Every process that works for this data directory, or for its Ray: id and command line."""
    return processes_with(str(data_dir), f"RETORT_RAY_FOLDER={machine_folder(data_dir)}")


def finished_epochs(folder: Path) -> int:
    """The last epoch that any attempt of a run has finished, by the log that its process writes at once."""
    last = 0
    for path in folder.glob("a*/log.jsonl"):
        for line in path.read_text().splitlines():
            # The last line of a process that was killed may be torn.
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                last = max(last, said["epoch"] if said.get("event") == "epoch" else 0)
    return last


class Progress:
    """States and epochs of a job's runs, as its stream tells them."""

    def __init__(self) -> None:
        self._reported = threading.Condition()
        self._states: dict[str, str] = {}
        self._epochs: Counter[str] = Counter()

    def hear(self, event: Document) -> None:
        """One event of the stream."""
        with self._reported:
            if event.get("run_id") and event["type"] == "state":
                self._states[event["run_id"]] = event["data"]["state"]
            elif event["type"] == "epoch":
                self._epochs[event["run_id"]] = event["data"]["epoch"]
            self._reported.notify_all()

    def in_training(self) -> list[str]:
        """Ids of the runs that are being trained."""
        with self._reported:
            return [run_id for run_id, state in self._states.items() if state == "running"]

    def wait_beyond(self, epochs: Mapping[str, int], timeout_s: float) -> bool:
        """Wait until every run has told of a later epoch than this one, or has ended; False if that takes too long."""

        def is_beyond(run_id: str, epoch: int) -> bool:
            return self._epochs[run_id] > epoch or self._states[run_id] in {"succeeded", "failed", "cancelled"}

        with self._reported:
            return self._reported.wait_for(lambda: all(is_beyond(*each) for each in epochs.items()), timeout_s)


class Storm:
    """A service under fire, and a client that follows what happens.

    Args:
        folder: for everything.
        epochs: of each run.
    """

    def __init__(self, folder: Path, digits: Digits, epochs: int) -> None:
        self.data_dir = folder / "data"
        self._root = folder
        self._port = free_port()
        self._epochs = epochs
        self._service = self._start()
        self.client = Client(self._service.url, timeout_s=60)
        self._service.wait_ready()
        teacher = self._patiently(
            lambda: self.client.upload_teacher(
                digits.teacher_spec.path, preprocessing=digits.preprocessing.model_dump(mode="json")
            )
        )
        self._plan = {
            "teacher": teacher["id"],
            "dataset": {"kind": "digits"},
            "views": {"augmentation": {"recipe": "crop_flip", "pad": 1, "flip": False}, "count": 4},
            "students": ["cnn_s"],
            "methods": list(METHODS),
            "seeds": list(SEEDS),
            "training": {"epochs": epochs, "optimizer": {"kind": "adamw", "lr": 0.003}},
        }
        self.blows: Counter[str] = Counter()
        self.recovery_s: dict[str, list[float]] = defaultdict(list)
        self.not_recovered: Counter[str] = Counter()
        self.ending_s: list[float] = []
        self._progress = Progress()

    def _start(self) -> BackgroundService:
        return BackgroundService(self.data_dir, self._root, port=self._port)

    def _patiently(self, ask: Callable[[], Document]) -> Document:
        """Ask until somebody answers."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                return ask()
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def submit(self) -> str:
        return str(
            self._patiently(lambda: self.client.submit(self._plan, idempotency_key=f"storm-{os.urandom(8).hex()}"))[
                "id"
            ]
        )

    def follow(self, job_id: str, told: list[Document]) -> threading.Thread:
        """Follow the stream of the job to its end, through whatever happens to the API."""

        progress = self._progress = Progress()

        def listen() -> None:
            with Client(self._service.url, timeout_s=60) as client:
                for event in client.events(job_id, patience_s=EVENT_S):
                    told.append(event)
                    progress.hear(event)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        return thread

    @property
    def kills(self) -> int:
        """How many blows were SIGKILLs."""
        return self.blows.total() - self.blows[TERMINATION]

    def rage(self, job_id: str, kills: int, dice: random.Random) -> None:
        """Strike until so many SIGKILLs have fallen, or the job has ended; after each wait until it is got over."""
        while self.kills < kills and not self._is_over(job_id):
            names = [*VICTIMS]
            name = dice.choices(names, [VICTIMS[each][0] for each in names])[0]
            pids = sorted(p for p, line in processes_of(self.data_dir).items() if re.search(VICTIMS[name][1], line))
            if not pids:
                time.sleep(0.05)
                continue
            in_training = self._progress.in_training()
            before = {run_id: finished_epochs(self.data_dir / "jobs" / job_id / run_id) for run_id in in_training}
            killed = time.monotonic()
            if name == TERMINATION:
                self._service.stop()
                self.ending_s.append(time.monotonic() - killed)
                self._service = self._start()
            else:
                for pid in pids if name == ENGINE_AND_KEEPER else [dice.choice(pids)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if name == "supervisor":
                self._service.wait(10)
                self._restart_when_free()
            self.blows[name] += 1
            # Sometimes the next blow falls before the last one is got over.
            wait_s = dice.choice(WAITS_S)
            recovered = self._progress.wait_beyond(before, wait_s)
            if before and wait_s == max(WAITS_S):
                if recovered:
                    self.recovery_s[name].append(time.monotonic() - killed)
                else:
                    self.not_recovered[name] += 1
            time.sleep(dice.uniform(0.0, 1.0))

    def _restart_when_free(self) -> None:
        """The children of a killed supervisor end by themselves; until then they have the port."""
        self._service.stop()
        while any("service.cli api" in line for line in processes_of(self.data_dir).values()):
            time.sleep(0.1)
        self._service = self._start()

    def _is_over(self, job_id: str) -> bool:
        return bool(self._patiently(lambda: self.client.job(job_id))["state"] in {"succeeded", "failed", "cancelled"})

    def check(self, job_id: str, told: list[Document], quiet_id: str) -> int:
        """All that has to hold of the job and of what its stream told; returns how many attempts its runs took."""
        job = self.client.job(job_id)
        assert job["state"] == "succeeded", job["error"]
        runs = list(self.client.runs(job_id))
        assert len(runs) == len(METHODS) * len(SEEDS)
        stored = list(self.client.events(job_id))
        told = [event for event in told if event["type"] != "done"]
        stored = [event for event in stored if event["type"] != "done"]
        assert [event["seq"] for event in told] == [event["seq"] for event in stored]
        assert told == stored
        for run in runs:
            own = [event for event in stored if event["run_id"] == run["id"]]
            epochs = [event["data"]["epoch"] for event in own if event["type"] == "epoch"]
            assert epochs == [*range(1, self._epochs + 1)], (run["name"], epochs)
            states = [event["data"]["state"] for event in own if event["type"] == "state"]
            assert states.count("succeeded") == 1
            assert states[-1] == "succeeded"
            assert run["state"] == "succeeded"
        quiet = {run["name"]: self._weights(run["id"]) for run in self.client.runs(quiet_id)}
        assert {run["name"]: self._weights(run["id"]) for run in runs} == quiet
        return sum(run["attempt"] for run in runs)

    def _weights(self, run_id: str) -> str:
        [digest] = [a["sha256"] for a in self.client.artifacts(run_id) if a["name"] == "student.safetensors"]
        return str(digest)

    def end(self) -> float:
        """End the service and look for what it has left; returns how long its last process took to go."""
        started = time.monotonic()
        self._service.stop()
        assert self._service.wait() == 0
        self.ending_s.append(time.monotonic() - started)
        assert self.ending_s[-1] < GRACE_S
        while left := processes_of(self.data_dir):
            assert time.monotonic() - started < ORPHANS_S, left
            time.sleep(0.1)
        gone_s = time.monotonic() - started
        names = [path.relative_to(self.data_dir).as_posix() for path in self.data_dir.rglob("*")]
        temporary = [name for name in names if re.search(r"partial|incoming|\.tmp|__|(-wal|-shm|-journal)$", name)]
        assert not temporary, temporary
        assert not machine_folder(self.data_dir).exists()
        self.client.close()
        return gone_s


def main() -> int:
    """The program; 0 if all of it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=0, help="of each run; by default so many that it lasts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    given = parser.parse_args()
    # A run goes on for about an epoch and a half in the time that a kill takes.
    epochs = given.epochs or 10 + 6 * given.kills
    # After a failure it stays, with the service's log.
    folder = Path(tempfile.mkdtemp(prefix="storm-")).resolve()
    sys.stdout.write(f"in {folder}\n")
    storm = Storm(folder, make_digits(folder / "digits"), epochs)
    dice = random.Random(given.seed)
    stormy: dict[str, list[Document]] = {}
    started = time.monotonic()
    while storm.kills < given.kills:
        job_id, told = storm.submit(), []
        stormy[job_id] = told
        listener = storm.follow(job_id, told)
        storm.rage(job_id, given.kills, dice)
        storm.client.wait(job_id)
        listener.join(ANSWER_S)
        assert not listener.is_alive(), "the job's stream does not end"
    stormy_s = time.monotonic() - started
    started = time.monotonic()
    quiet_id = storm.submit()
    storm.client.wait(quiet_id)
    quiet_s = time.monotonic() - started
    attempts = sum(storm.check(job_id, told, quiet_id) for job_id, told in stormy.items())
    gone_s = storm.end()
    figures = {
        "kills": storm.kills,
        "terminations": storm.blows[TERMINATION],
        "runs": len(stormy) * len(METHODS) * len(SEEDS),
        "attempts": attempts,
        "events": sum(map(len, stormy.values())),
        "stormy_s": stormy_s,
        "quiet_s": quiet_s,
        "ending_s": max(storm.ending_s),
        "gone_s": gone_s,
    }
    _show(storm, figures)
    shutil.rmtree(folder)
    if given.json is not None:
        given.json.write_text(json.dumps(figures | {"blows": dict(storm.blows)}, indent=2) + "\n")
    return 0


def _show(storm: Storm, figures: Mapping[str, float]) -> None:
    rows = []
    for name, count in sorted(storm.blows.items(), key=lambda item: -item[1]):
        seconds, missing = storm.recovery_s.get(name, []), storm.not_recovered[name]
        shown = [f"{median(seconds):.1f}", f"{max(seconds):.1f}"] if seconds else ["-", "-"]
        rows.append([name, str(count), str(len(seconds)), *shown, str(missing)])
    show(
        [
            "killed",
            "times>",
            "timed>",
            "to the first new epoch of every run in training, median s>",
            "longest s>",
            f"not in {max(WAITS_S):.0f} s>",
        ],
        rows,
    )
    sys.stdout.write(
        f"{figures['kills']} SIGKILLs, {figures['terminations']} SIGTERMs to all; {figures['runs']} runs succeeded "
        f"once each, in {figures['attempts']} attempts; weights equal to the quiet job's; "
        f"{figures['events']} events, none lost, none doubled\n"
        f"{figures['stormy_s']:.0f} s, the quiet job {figures['quiet_s']:.0f} s; SIGTERM to the end at most "
        f"{figures['ending_s']:.1f} s; the last process was gone after {figures['gone_s']:.1f} s; no temporary file\n"
    )


if __name__ == "__main__":
    sys.exit(main())
