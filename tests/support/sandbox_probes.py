"""What the tests of the sandbox have done inside it. Each function answers with what fits into JSON."""

import ctypes
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

FIOSETOWN = 0x8901


def _outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as error:
        return type(error).__name__
    return "done"


def escapes(given: str, other: str, folder: str) -> dict[str, str]:
    """Tries to get out; ``given`` may be read, ``other`` and ``folder`` exist."""
    parent = os.getppid()
    is_arm = platform.machine() == "aarch64"
    libc = ctypes.CDLL(None, use_errno=True)

    def pipe() -> int:
        """Another one for each attempt: two that succeed would have the kernel signal whoever runs these tests."""
        return os.pipe()[0]

    def call(number: int, *arguments: int) -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    actions: dict[str, Callable[[], object]] = {
        "read the given file": lambda: Path(given).read_bytes(),
        "start a thread": lambda: threading.Thread(target=int).start(),
        "import a module": lambda: __import__("wave"),
        "signal itself": lambda: os.kill(os.getpid(), 0),
        "open a socket": lambda: socket.socket(),
        "open a local socket": lambda: socket.socket(socket.AF_UNIX),
        "make a pair of sockets": lambda: socket.socketpair(),
        "fork": os.fork,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "signal its parent": lambda: os.kill(parent, 0),
        "have the kernel signal its parent": lambda: fcntl.fcntl(pipe(), fcntl.F_SETOWN, parent),
        "choose the signal of a descriptor": lambda: fcntl.fcntl(pipe(), fcntl.F_SETSIG, signal.SIGTERM),
        "be signalled for a descriptor": lambda: fcntl.fcntl(pipe(), fcntl.F_SETFL, os.O_ASYNC),
        "be signalled for a descriptor by ioctl": lambda: fcntl.ioctl(pipe(), termios.FIOASYNC, struct.pack("=i", 1)),
        "have the kernel signal its parent by ioctl": lambda: fcntl.ioctl(pipe(), FIOSETOWN, struct.pack("=i", parent)),
        "lock a file": lambda: fcntl.flock(os.open(given, os.O_RDONLY), fcntl.LOCK_EX),
        "attach shared memory": lambda: call(196 if is_arm else 30, 0, 0, 0),
        "change its parent's limits": lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0)),
        # Of itself: a parent with capabilities is safe from it even where the filter would let it pass.
        "set a priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 19),
        "choose cores": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "choose a scheduler": lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
        "trace its parent": lambda: call(117 if is_arm else 101, 16, parent, 0, 0),
        "leave for other namespaces": lambda: call(97 if is_arm else 272, 0x20000),
        "set up io_uring": lambda: call(425, 1, 0),
        "read another file": lambda: Path(other).read_bytes(),
        "read its parent's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "list a folder": lambda: os.listdir(folder),
        "write the given file": lambda: os.open(given, os.O_RDWR),
        "make a file": lambda: Path(folder, "new").write_bytes(b""),
        "make a folder": lambda: Path(folder, "new").mkdir(),
        "remove the given file": lambda: Path(given).unlink(),
        "rename the given file": lambda: Path(given).rename(other),
        "link to the given file": lambda: os.link(given, Path(folder, "new")),
        "change the given file's mode": lambda: Path(given).chmod(0o777),
        "truncate the given file": lambda: os.truncate(given, 0),
    }
    return {name: _outcome(action) for name, action in actions.items()}


def fill_a_file(descriptor: int, size: int) -> dict[str, str]:
    """Fills the pages of an inherited file, and tries to do more with it."""
    with mmap.mmap(descriptor, size) as memory:
        memory[:] = bytes([7]) * size
    actions: dict[str, Callable[[], object]] = {
        "write": lambda: os.pwrite(descriptor, b"x", 0),
        "append": lambda: os.pwrite(descriptor, b"x", size),
        "cut": lambda: os.ftruncate(descriptor, 1),
        "enlarge": lambda: os.posix_fallocate(descriptor, 0, 2 * size),
        "let others read it": lambda: os.fchmod(descriptor, 0o777),
        "lock it": lambda: fcntl.flock(descriptor, fcntl.LOCK_EX),
        "open it again": lambda: os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR),
    }
    return {name: _outcome(action) for name, action in actions.items()}


def surroundings() -> dict[str, object]:
    """What it finds about itself."""
    limits = ("AS", "CPU", "FSIZE", "NOFILE", "CORE")
    held = ctypes.create_string_buffer(24)
    ctypes.CDLL(None).capget(struct.pack("=Ii", 0x20080522, 0), held)
    return {
        "environment": sorted(os.environ),
        "limits": {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in limits},
        "capabilities": list(struct.unpack("=6I", held.raw)),
        "leads its session": os.getsid(0) == os.getpid(),
    }


def sleep() -> None:
    """Longer than any test."""
    time.sleep(600)


def compute() -> None:
    """For ever."""
    while True:
        pass


def take(size_bytes: int) -> int:
    """So much memory at once."""
    return len(bytearray(size_bytes))


def end_by_kill() -> None:
    """As the kernel ends it for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """As a library with a fault would."""
    os.kill(os.getpid(), signal.SIGSEGV)


def complain_and_abort() -> None:
    """As a library that ends the process by an assertion."""
    os.write(2, b"not shown\n" * 9 + b"terminate called\n\n  what():\x1b]0;owned\x07 bad\xff\n")
    os.abort()


def complain_and_answer(size_bytes: int) -> int:
    """More on the standard error than a pipe holds."""
    for _ in range(size_bytes >> 10):
        os.write(2, bytes(1 << 10))
    return 7


def chatter(size_bytes: int) -> str:
    """A long answer."""
    return "x" * size_bytes


def print_and_answer() -> int:
    """Prints where a careless library would."""
    print("noise")  # noqa: T201  # is what is tried
    os.write(1, b"noise")
    return 7


def fail() -> None:
    """By mistake."""
    raise ValueError("a mistake of ours")
