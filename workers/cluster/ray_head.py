"""Ray's head as processes of their own, which live on while no engine does: runs go on when an engine is killed.

A *keeper* (``python -m workers.cluster.ray_head``) starts ``ray start --head``, writes down where it listens, and takes
it
away again: when it is told to, when one of Ray's processes dies, or when no engine has been there for ``ORPHANED_S``.
It dies with nobody's terminal, and Ray dies with it. Whether a keeper lives, and whether an engine does, is told by
locks, which the kernel releases with their process; so no number of a process that is gone is ever believed.

Everything lies in one folder of this machine's temporary directory, readable by its user alone, and goes with the head.
It lies there because paths of sockets are short, and a data directory's need not be. Such directories are cleaned of
what is old: the keeper has its folder look new, and holds a lock that systemd-tmpfiles heeds.
Ray listens on every address unless it takes its own for loopback, and whoever can talk to it can run code: it is held
to 127.0.0.1, and asks for a token besides. This file does not import ray; ``cluster`` connects to what it starts.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from workers import signals
from workers.errors import WorkerError
from workers.onnx.confinement import die_with_parent

ORPHANED_S = 45.0
START_S = 90.0
STOP_S = 15.0
_POLL_S = 0.1
# Cleaners of temporary directories count in days.
_TOUCH_S = 3600.0
_MARK = "RETORT_RAY_FOLDER"
_TOKEN = "RAY_AUTH_TOKEN"
_STARTED = b"Ray runtime started"
# Only tasks, events and outcomes pass through Ray; logits and pictures are mapped files.
_OBJECT_STORE_BYTES = 100 << 20

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Ray's own name for "this machine's address is 127.0.0.1": the only way to keep its ports off the network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # An actor without a share of a GPU sees none, and one with a share no other than its own.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "0",
    # The engine has put the runs down before it ends Ray; what is left need not be waited for.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
}


class HeadFailed(WorkerError):
    """Ray did not start, or not in time."""


class Head(BaseModel):
    """What a keeper writes down of the head that it has started.

    Attributes:
        address: of Ray, on the loopback.
        token: that Ray asks for.
        cpus, gpus: that it was started with; None is all that it finds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    token: str
    cpus: int | None
    gpus: int | None


def machine_folder(data_dir: Path) -> Path:
    """Where the head for this data directory keeps its things on this machine."""
    name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]
    # Short, because a socket's path may have 107 characters, and Ray adds 70.
    return Path(tempfile.gettempdir()) / f"retort-{os.getuid()}-{name}"


def describe(data_dir: Path) -> str | None:
    """The address of the living head for this data directory; None if there is none."""
    folder = machine_folder(data_dir)
    head = _read(folder)
    return head.address if head is not None and _keeper_lives(folder) else None


def folder_fault(folder: Path) -> str | None:
    """Why this is no folder for Ray: whoever can write there can run code. None if it is one, or is not there yet."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder"
    if found.st_uid != os.getuid():
        return f"{folder} belongs to the user {found.st_uid}, and this one is {os.getuid()}"
    if mode & 0o077:
        return f"{folder} is open to others (mode {mode:04o}, it has to be 0700)"
    return None


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, as it names them; None if it leaves all.

    CUDA goes on to the first name that is none, such as ``-1``.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))


class RayHead:
    """The head for one data directory, found alive or started, for the engine that leads.

    Args:
        data_dir: whose jobs are worked on.
        cpus, gpus: that Ray hands out; a living head with other numbers is ended first.
        token: that this process has to use, because ray keeps the first one it was told; None takes the living head's,
            or a new one.

    Raises:
        HeadFailed: it does not start; the message holds what it has said.
    """

    def __init__(self, data_dir: Path, cpus: int | None, gpus: int | None, token: str | None = None) -> None:
        self._folder = machine_folder(data_dir)
        self._keeper: subprocess.Popen[bytes] | None = None
        # Held until this engine ends, however it ends.
        self._engine_lock = _hold_engine_lock(self._folder)
        self.head = self._find(cpus, gpus, token) or self._start(cpus, gpus, token or secrets.token_hex(32))

    @property
    def is_alive(self) -> bool:
        """Whether Ray is there; asked often, it costs a system call."""
        return _keeper_lives(self._folder)

    def close(self) -> None:
        """End Ray with every process that it has started, and remove what it has left on this machine."""
        self._end_keeper()
        # Also those of a head whose keeper was killed.
        _reap(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Let go of it without ending it; nobody's taking it over ends it later."""
        self._engine_lock.close()

    def _find(self, cpus: int | None, gpus: int | None, token: str | None) -> Head | None:
        deadline = time.monotonic() + START_S
        # One that is just starting will say so.
        while _keeper_lives(self._folder) and time.monotonic() < deadline:
            head = _read(self._folder)
            if head is not None:
                fits = (head.cpus, head.gpus) == (cpus, gpus) and token in (None, head.token)
                if fits and _answers(head):
                    return head
                break
            time.sleep(_POLL_S)
        self._end_keeper()
        return None

    def _start(self, cpus: int | None, gpus: int | None, token: str) -> Head:
        options = [f"--{name}={value}" for name, value in (("cpus", cpus), ("gpus", gpus)) if value is not None]
        log_path = self._folder / "keeper.log"
        # Of a keeper that was killed, with the address of a Ray that is gone.
        for name in ("head.json", "keeper.lock"):
            (self._folder / name).unlink(missing_ok=True)
        with log_path.open("wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "workers.cluster.ray_head", str(self._folder), *options],
                # Not on the command line, which everybody may read.
                env={**os.environ, **ENVIRONMENT, _TOKEN: token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=_await_end, args=(self._keeper,), name="keeper-end", daemon=True).start()
        deadline = time.monotonic() + START_S
        while self._keeper.poll() is None and time.monotonic() < deadline:
            if (head := _read(self._folder)) is not None:
                return head
            time.sleep(_POLL_S)
        self._end_keeper()
        tail = log_path.read_bytes()[-1000:].decode(errors="replace").strip()
        raise HeadFailed(f"Ray did not start within {START_S:.0f} s; it said: {tail or 'nothing'}")

    def _end_keeper(self) -> None:
        lock = self._folder / "keeper.lock"
        deadline = time.monotonic() + STOP_S
        while _keeper_lives(self._folder):
            # Its number stands in the file that it holds; without the lock it is not believed.
            pid = int(lock.read_text() or 0)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(_POLL_S)
        if self._keeper is not None:
            # Without the lock it has not begun, or it is another one's turn.
            self._keeper.kill()
            self._keeper.wait()
            self._keeper = None


def _await_end(keeper: subprocess.Popen[bytes]) -> None:
    """Whenever that is: without a parent that waits it would stay in the table of processes."""
    signals.leave_to_main_thread()
    keeper.wait()


# ------------------------------------------------------------------------------------------ what both sides know


def _make_private(folder: Path) -> None:
    """Create the folder for this user alone.

    Raises:
        HeadFailed: somebody else has made one of that name.
    """
    # A file of that name is found out next.
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, exist_ok=True)
    if (reason := folder_fault(folder)) is not None:
        raise HeadFailed(f"{reason}: remove it and start again")


def touch_all(folder: Path) -> None:
    """Make now the time at which all that lies in the folder, and it itself, was last used and changed."""
    # Ray makes and removes files and folders meanwhile, which pathlib's own walk does not survive.
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            with contextlib.suppress(OSError):
                os.utime(Path(parent, name), follow_symlinks=False)


@contextlib.contextmanager
def keep_from_cleaners(folder: Path) -> Iterator[None]:
    """Keep systemd-tmpfiles from the folder: it leaves a directory alone that somebody has locked."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_SH)
        yield
    finally:
        os.close(number)


def _open_lock(path: Path) -> IO[bytes]:
    return path.open("ab")


def _hold_engine_lock(folder: Path) -> IO[bytes]:
    """Say that an engine is here, in the folder that is there now: a keeper that ends takes its own along."""
    while True:
        _make_private(folder)
        with contextlib.suppress(FileNotFoundError):
            lock = _open_lock(folder / "engine.lock")
            fcntl.flock(lock, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), (folder / "engine.lock").stat()):
                    return lock
            lock.close()


def _keeper_lives(folder: Path) -> bool:
    return _is_held(folder / "keeper.lock", fcntl.LOCK_SH)


def _engine_lives(folder: Path) -> bool:
    return _is_held(folder / "engine.lock", fcntl.LOCK_EX)


def _is_held(path: Path, probe: int) -> bool:
    """Whether a living process holds this lock in a way that excludes the probe's."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, probe | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read(folder: Path) -> Head | None:
    try:
        return Head.model_validate_json((folder / "head.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _answers(head: Head) -> bool:
    host, _, port = head.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _reap(folder: Path) -> None:
    """Kill what the head of this folder has started and what has outlived it; its environment names the folder."""
    mark = f"{_MARK}={folder}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------- the keeper


def main() -> int:
    """``python -m workers.cluster.ray_head FOLDER``: start Ray, keep it for an engine, end it; 1 if it ended by
    itself."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m workers.cluster.ray_head", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--gpus", type=int)
    given = parser.parse_args()
    folder: Path = given.folder
    ending = threading.Event()
    signals.handle(signals.ENDING, lambda *_: ending.set())
    with _open_lock(folder / "keeper.lock") as lock:
        if not _take(lock):
            return 1
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        _reap(folder)
        (folder / "head.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        with keep_from_cleaners(folder), _running_ray(folder, given.cpus, given.gpus) as ray:
            status = _keep(folder, ray, ending)
        # An engine that is there wants to know what has happened, and removes it itself.
        if not _engine_lives(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return status


def _take(lock: IO[bytes]) -> bool:
    """Whether this keeper is the only one; who looks whether it is held, holds it for a moment."""
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
    """``ray start``, and its end with all it has started."""
    with socket.socket() as probe:
        # Above the ports that Ray gives to its workers.
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = Head(address=f"127.0.0.1:{port}", token=os.environ[_TOKEN], cpus=cpus, gpus=gpus)
    resources = [f"--num-{name}={value}" for name, value in (("cpus", cpus), ("gpus", gpus)) if value is not None]
    start = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    ray = subprocess.Popen(
        [
            *(sys.executable, "-c", start, "start", "--head", "--block", f"--port={port}", *resources),
            *("--node-ip-address=127.0.0.1", f"--temp-dir={folder / 'ray'}", "--include-dashboard=false"),
            *("--no-monitor", "--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
        ],
        env={**os.environ, _MARK: str(folder)},
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
        _reap(folder)
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
    while not ending.wait(_POLL_S):
        if ray.poll() is not None:
            return 1
        if abs(time.time() - touched) > _TOUCH_S:
            touch_all(folder)
            touched = time.time()
        now = time.monotonic()
        if _engine_lives(folder):
            seen = now
        elif now - seen > ORPHANED_S:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
