"""Keeper of a Ray head: the process that starts ``ray start --head``, writes down where it listens, and ends it.

``python -m workers.cluster.ray_keeper FOLDER``. It ends Ray when it is asked to, when one of Ray's processes dies, or
when no engine has been there for ``ORPHANED_S``. It belongs to no terminal, and Ray dies with it.

Ray listens on every address unless it takes its own for loopback, and a client of it can run code: it is held
to 127.0.0.1, and asks for a token besides. This file does not import ray.
"""

import argparse
import contextlib
import fcntl
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from workers import signals
from workers.cluster.head_folder import (
    MARK,
    POLL_S,
    STOP_S,
    TOKEN,
    Head,
    engine_lives,
    keep_from_cleaners,
    open_lock,
    reap,
    touch_all,
)
from workers.onnx.sandboxing.confinement import die_with_parent

ORPHANED_S = 45.0
# Cleaners of temporary directories count in days.
_TOUCH_S = 3600.0
_STARTED = b"Ray runtime started"
# Only tasks, events and outcomes pass through Ray; logits and pictures are mapped files.
_OBJECT_STORE_BYTES = 100 << 20


def main() -> int:
    """``python -m workers.cluster.ray_keeper FOLDER``: start Ray, keep it for an engine, end it; 1 if it ended by
    itself."""
    parser = argparse.ArgumentParser(prog="python -m workers.cluster.ray_keeper", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--gpus", type=int)
    given = parser.parse_args()
    folder: Path = given.folder
    ending = threading.Event()
    signals.handle(signals.ENDING, lambda *_: ending.set())
    with open_lock(folder / "keeper.lock") as lock:
        if not _take(lock):
            return 1
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        reap(folder)
        (folder / "head.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        with keep_from_cleaners(folder), _running_ray(folder, given.cpus, given.gpus) as ray:
            status = _keep(folder, ray, ending)
        # An engine that is there wants to know what has happened, and removes it itself.
        if not engine_lives(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return status


def _take(lock: IO[bytes]) -> bool:
    """Whether this keeper is the only one; a probe of the lock holds it for a moment."""
    deadline = time.monotonic() + 2.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


@contextlib.contextmanager
def _running_ray(folder: Path, cpus: int | None, gpus: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``ray start``; on exit end it with all that it has started."""
    with socket.socket() as probe:
        # Above the ports that Ray gives to its workers.
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = Head(address=f"127.0.0.1:{port}", token=os.environ[TOKEN], cpus=cpus, gpus=gpus)
    resources = [f"--num-{name}={value}" for name, value in (("cpus", cpus), ("gpus", gpus)) if value is not None]
    start = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    ray = subprocess.Popen(
        [
            *(sys.executable, "-c", start, "start", "--head", "--block", f"--port={port}", *resources),
            *("--node-ip-address=127.0.0.1", f"--temp-dir={folder / 'ray'}", "--include-dashboard=false"),
            *("--no-monitor", "--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
        ],
        env={**os.environ, MARK: str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A keeper that is killed takes Ray along, and Ray its processes.
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    threading.Thread(target=_listen, args=(ray, folder, head), name="ray-output", daemon=True).start()
    try:
        yield ray
    finally:
        (folder / "head.json").unlink(missing_ok=True)
        ray.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            ray.wait(STOP_S / 2)
        reap(folder)
        ray.wait()
        shutil.rmtree(folder / "ray", ignore_errors=True)


def _listen(ray: subprocess.Popen[bytes], folder: Path, head: Head) -> None:
    """Pass on what ``ray start`` says; once it says that it has started, write down where."""
    assert ray.stdout is not None
    for line in ray.stdout:
        # Ray goes on where its disk is full; nobody reading any more would hold it up.
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        if _STARTED in line:
            partial = folder / "head.json.partial"
            partial.write_text(head.model_dump_json())
            partial.rename(folder / "head.json")


def _keep(folder: Path, ray: subprocess.Popen[bytes], ending: threading.Event) -> int:
    seen = time.monotonic()
    # The clock that cleaners go by, which may be set, and goes on while the machine is asleep.
    touched = time.time()
    while not ending.wait(POLL_S):
        if ray.poll() is not None:
            return 1
        if abs(time.time() - touched) > _TOUCH_S:
            touch_all(folder)
            touched = time.time()
        now = time.monotonic()
        if engine_lives(folder):
            seen = now
        elif now - seen > ORPHANED_S:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
