"""Folder of a Ray head on this machine: its locks, its owner, the address and token that are written down.

Whether a keeper lives, and whether an engine does, is known by locks, which the kernel releases with their process; so
no number of a process that is gone is ever believed. The folder lies in the machine's temporary directory, readable by
its user alone, because paths of sockets are short, and a data directory's need not be. Such directories are cleaned of
what is old: the keeper makes its folder look new, and holds a lock that systemd-tmpfiles heeds.
"""

import contextlib
import fcntl
import hashlib
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.errors import WorkerError

POLL_S = 0.1
STOP_S = 15.0
TOKEN = "RAY_AUTH_TOKEN"
MARK = "RETORT_RAY_FOLDER"


class HeadFailed(WorkerError):
    """Ray did not start, or not in time."""


class Head(BaseModel):
    """Address, token and resources of a head, as its keeper writes them down.

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
    """The folder of the head for this data directory on this machine."""
    name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]
    # Short, because a socket's path may have 107 characters, and Ray adds 70.
    return Path(tempfile.gettempdir()) / f"retort-{os.getuid()}-{name}"


def folder_fault(folder: Path) -> str | None:
    """Fault of a folder for Ray, in which a writer can run code; None if it has none, or is not there yet."""
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


def make_private(folder: Path) -> None:
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
    """Set the times of last use and change of a folder, and of all that lies in it, to now."""
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


def open_lock(path: Path) -> IO[bytes]:
    """Open a lock file, made here if need be; it is not locked yet."""
    return path.open("ab")


def keeper_lives(folder: Path) -> bool:
    """Whether a keeper holds its lock."""
    return _is_held(folder / "keeper.lock", fcntl.LOCK_SH)


def engine_lives(folder: Path) -> bool:
    """Whether an engine holds its lock."""
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


def read_head(folder: Path) -> Head | None:
    """The head that a keeper has written down; None if there is none, or it is of another shape."""
    try:
        return Head.model_validate_json((folder / "head.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def hold_engine_lock(folder: Path) -> IO[bytes]:
    """Lock the folder that is there now for an engine: a keeper that ends takes its own along."""
    while True:
        make_private(folder)
        with contextlib.suppress(FileNotFoundError):
            lock = open_lock(folder / "engine.lock")
            fcntl.flock(lock, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), (folder / "engine.lock").stat()):
                    return lock
            lock.close()


def reap(folder: Path) -> None:
    """Kill what the head of this folder has started and what has outlived it; its environment names the folder."""
    mark = f"{MARK}={folder}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)
