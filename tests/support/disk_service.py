"""A whole service on a disk that fills up or is read-only; run in a mount namespace, where FOLDER is a small disk.

``python -m tests.support.disk_service FOLDER TEACHER KIND`` prints what clients were told meanwhile, as JSON. TEACHER
is a folder with ``teacher.onnx`` and ``preprocessing.json``; KIND is ``full``, ``read-only`` or ``database``.
"""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.client.errors import ApiProblem
from tests.support.processes import Processes, job_of, running_service

TRIES = 600


def until(holds: Callable[[], bool], service: Processes, what: str) -> None:
    """Wait for something that has no event."""
    for _ in range(TRIES):
        if holds():
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"never: {what}\n{service.logs()}")


def fill(folder: Path) -> Path:
    """Leave no page free, whatever others write meanwhile."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return ballast


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def disk_part(service: Processes) -> dict[str, Any]:
    part: dict[str, Any] = service.client.ready()["parts"]["disk"]
    return part


def states(service: Processes, jobs: list[str]) -> dict[str, Any]:
    """What is told of each job and its runs."""
    told = {}
    for job in jobs:
        told[job] = [
            {name: document[name] for name in ("state", "set_aside", "error")}
            for document in (service.client.job(job), *service.client.runs(job))
        ]
    return told


def on_a_full_disk(service: Processes, folder: Path, teacher: str) -> dict[str, Any]:
    """Two jobs train, one waits for its caches, when there is no page left."""
    client = service.client
    long = client.submit(job_of(teacher, "ce", "kd", epochs=40))["id"]
    for event in client.events(long):
        if event["type"] == "epoch":
            break
    ballast = fill(folder)
    until(lambda: client.job(long)["state"] == "paused", service, "a job is set aside")
    # Of other views, so that its caches are to be built.
    other = job_of(teacher, "kd")
    other["views"]["count"] = 3
    during = {"jobs": states(service, [long]), "ready": client.ready()}
    ballast.unlink()
    jobs = [long, client.submit(other)["id"]]
    for job in jobs:
        client.wait(job)
    attempts = {run["id"]: run["attempt"] for run in client.runs(long)}
    return {**during, "after": states(service, jobs), "attempts": attempts, "ready after": client.ready()}


def on_a_read_only_disk(service: Processes, folder: Path, teacher: str) -> dict[str, Any]:
    """Jobs that are posted then are not claimed."""
    client = service.client
    client.wait(client.submit(job_of(teacher, "ce"))["id"])
    # Its run's process has closed its log by then, and nothing else is open to be written.
    for _ in range(50):
        try:
            remount(folder, "ro")
            break
        except subprocess.CalledProcessError:
            signal.sigtimedwait([], 0.1)
    until(lambda: disk_part(service)["ok"] is False, service, "the disk is told to be bad")
    jobs = [client.submit(job_of(teacher, method))["id"] for method in ("kd", "dkd", "rld")]
    ticks = client.ready()
    signal.sigtimedwait([], 2.0)
    during = {"jobs": states(service, jobs), "ready": ticks}
    remount(folder, "rw")
    for job in jobs:
        client.wait(job)
    return {**during, "after": states(service, jobs), "ready after": client.ready()}


def with_a_full_database(service: Processes, folder: Path, teacher: str) -> dict[str, Any]:
    """The database is on the disk, too."""
    client = service.client
    job = client.submit(job_of(teacher, "ce", epochs=60))["id"]
    for event in client.events(job):
        if event["type"] == "epoch":
            break
    ballast = fill(folder)
    until(lambda: "the database cannot be used" in service.logs(), service, "the engine notices")
    try:
        client.submit(job_of(teacher, "kd"))
        problem: dict[str, Any] = {}
    except ApiProblem as error:
        problem = {"status": error.status, "detail": str(error)}
    during = {"problem": problem, "ready": client.ready(), "engine": service.is_running("engine")}
    ballast.unlink()
    client.wait(job)
    return {**during, "after": states(service, [job]), "engine after": service.is_running("engine")}


KINDS = {"full": on_a_full_disk, "read-only": on_a_read_only_disk, "database": with_a_full_database}


def main() -> None:
    folder, given, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    settings = {"DISK_FLOOR_BYTES": "0"}
    if kind != "database":
        settings["DATABASE_URL"] = f"sqlite:///{given / f'{kind}.sqlite3'}"
    # What they say is kept elsewhere: an open file keeps a disk from becoming read-only.
    with running_service(folder / "data", log_dir=given, **settings) as service:
        preprocessing = json.loads((given / "preprocessing.json").read_text())
        teacher = service.client.upload_teacher(given / "teacher.onnx", preprocessing=preprocessing)
        report = KINDS[kind](service, folder, str(teacher["id"]))
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
