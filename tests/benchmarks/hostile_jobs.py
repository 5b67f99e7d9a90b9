"""Jobs whose teacher behaves until a batch is large: ``python -m tests.benchmarks.hostile_jobs [--parts loops ...]``.

Each part starts a real service (API, engine, two cores) on digits, uploads a teacher that a small batch finds nothing
wrong with (``tests.support.hostile_teachers``), and prints what became of its jobs:

- loops: eight jobs, as many as are worked on at once, whose teacher never ends; then a good job of the same client.
- memory: a teacher that would take 16 GiB; how much the largest process of the service had at most.
- crash: the process that runs a teacher ends with SIGSEGV in the middle of a batch, as a fault of native code would end
  it; how soon the job has failed, and whether its error names the teacher.

Exit status 1 if the good job was not done, more than its share of the memory was taken, or an error names no teacher.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx

from service.client.transport import Document
from tests.benchmarks.bench import show
from tests.benchmarks.memory import own_bytes
from tests.benchmarks.polling import cpu_s
from tests.support import hostile_teachers, onnx_models
from tests.support.digits import Digits, make_digits
from tests.support.process_table import processes_with
from tests.support.processes import Processes, job_of, running_service, uploaded
from workers.cluster.head_folder import machine_folder
from workers.onnx.sessions.session_memory import share_bytes

PARTS = ("loops", "memory", "crash")
JOBS = 8
# To 16 GiB.
DOUBLINGS = 22
CHILD = "workers.onnx.sessions.session_child"
LOOK_S = 0.05
# Of processor time in its loop, before the process is ended.
AT_WORK_S = 3.0


def descendants(roots: set[int]) -> dict[int, str]:
    """Processes below these: id and command line."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    lines = {}
    for pid in found:
        with contextlib.suppress(OSError):
            lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return lines


def processes_of(service: Processes) -> dict[int, str]:
    """Every process of a service and of its Ray."""
    of_ray = processes_with(f"RETORT_RAY_FOLDER={machine_folder(service.data_dir)}")
    return descendants({*of_ray, service.pid("engine")})


@contextlib.contextmanager
def watched(service: Processes, peaks: dict[str, int]) -> Iterator[None]:
    """Notes the most bytes that a process of each kind has had in memory."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_S):
            for pid, line in processes_of(service).items():
                with contextlib.suppress(OSError, AssertionError):
                    kind = "the teacher's process" if CHILD in line else "another"
                    peaks[kind] = max(peaks.get(kind, 0), own_bytes("VmRSS", "status", pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def upload(service: Processes, digits: Digits, built: onnx.ModelProto, name: str) -> str:
    """The id of a teacher that takes what the digits' does."""
    path = onnx_models.save(built, service.data_dir.parent / f"{name}.onnx")
    given = digits.preprocessing.model_dump(mode="json")
    return str(service.client.upload_teacher(path, name=name, preprocessing=given)["id"])


def said(job: Document) -> str:
    """How a job has ended, and why."""
    return f"{job['state']}: {job['error']['message'][:170]}" if job["error"] else str(job["state"])


def loops(service: Processes, digits: Digits) -> tuple[list[list[str]], bool]:
    """Rows of the table, and whether all is as it should be."""
    client = service.client
    good = uploaded(service, digits)
    endless = upload(service, digits, hostile_teachers.endless(onnx.load(digits.teacher_spec.path)), "loop")
    bad = [client.submit(job_of(endless, "kd", epochs=1 + number))["id"] for number in range(JOBS)]
    began_s = time.monotonic()
    done = client.wait(client.submit(job_of(good, "kd"))["id"])
    took_s = time.monotonic() - began_s
    states = [client.job(job_id)["state"] for job_id in bad]
    first = client.wait(bad[0])
    rows = [
        ["a good job behind eight endless ones", f"{took_s:.0f}", said(done)],
        ["the eight, when it was done", "", f"{states.count('failed')} failed, {states.count('running')} running"],
        ["the first of them", f"{time.monotonic() - began_s:.0f}", said(first)],
    ]
    for job_id in bad:
        with contextlib.suppress(ValueError):
            client.cancel(job_id)
    return rows, done["state"] == "succeeded" and endless in said(first)


def memory(service: Processes, digits: Digits) -> tuple[list[list[str]], bool]:
    """As ``loops``."""
    bomb = hostile_teachers.memory_bomb(onnx.load(digits.teacher_spec.path), doublings=DOUBLINGS)
    teacher = upload(service, digits, bomb, "bomb")
    peaks: dict[str, int] = {}
    began_s = time.monotonic()
    with watched(service, peaks):
        job = service.client.wait(service.client.submit(job_of(teacher, "kd"))["id"])
    warnings = [
        event["data"]["message"]
        for event in service.client.events(job["id"])
        if event["type"] == "log" and "at once" in event["data"]["message"]
    ]
    largest = max(peaks.values())
    shown = ", ".join(f"{kind} {peak / 2**30:.2f} GiB" for kind, peak in sorted(peaks.items(), reverse=True))
    rows = [
        ["a job whose teacher would take 16 GiB", f"{time.monotonic() - began_s:.0f}", said(job)],
        ["what it says meanwhile", "", f"{len(warnings)} warnings, the last: {warnings[-1][:150] if warnings else ''}"],
        ["resident at most", "", shown],
    ]
    return rows, largest < share_bytes()


def crash(service: Processes, digits: Digits) -> tuple[list[list[str]], bool]:
    """As ``loops``."""
    endless = upload(service, digits, hostile_teachers.endless(onnx.load(digits.teacher_spec.path)), "crash")
    began_s = time.monotonic()
    job_id = service.client.submit(job_of(endless, "kd"))["id"]
    while True:
        at_work = [pid for pid, line in processes_of(service).items() if CHILD in line]
        with contextlib.suppress(OSError):
            if at_work and cpu_s(at_work[0]) > AT_WORK_S:
                break
        time.sleep(LOOK_S)
    os.kill(at_work[0], signal.SIGSEGV)
    killed_s = time.monotonic()
    job = service.client.wait(job_id)
    rows = [
        ["SIGSEGV in the teacher's process, after", f"{killed_s - began_s:.0f}", ""],
        ["its job, since then", f"{time.monotonic() - killed_s:.1f}", said(job)],
    ]
    return rows, job["state"] == "failed" and endless in said(job) and "SIGSEGV" in said(job)


def main() -> int:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    all_good = True
    for part in given.parts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            digits = make_digits(folder / "digits")
            with running_service(folder / "data") as service:
                rows, good = {"loops": loops, "memory": memory, "crash": crash}[part](service, digits)
        show([part, "seconds>", "what became of it"], rows)
        all_good &= good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
