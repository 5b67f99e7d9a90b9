"""Confinement of this process for good: resource limits, network, capabilities, files and system calls.

For a process that is about to read a hostile file, with one thread, before it opens that file. Nothing here can be
undone, and no part needs a library beyond the kernel's own interface:

1. resource limits: address space, memory written to, processor time, size of files, open files, no core dumps. Not the
   number of processes: the kernel counts all of a user's threads, the service's among them;
2. a network namespace of its own with nothing in it, where that is allowed;
3. no capability of root but that of reading every file, which 4 narrows: else it could lift its own limits;
4. Landlock (``landlock``): files below the named paths may be read, and nothing may be written, made or removed;
5. a seccomp filter (``seccomp``): no network, no new process or program, no look into, signal to or say in the
   priority of another process, no memory, queue or lock that others use, no change to any file, no mount, no kernel
   interface that could get around the filter (io_uring). Of fcntl and ioctl what is listed is allowed, for the kernel
   also sends signals on behalf of descriptors (F_SETOWN, FIOASYNC). Threads are allowed.

A process that is to use a GPU talks to its driver by ioctl on devices that it opens to write, and CUDA maps address
space by the terabyte: for it there is no limit of address space, what files may be opened to write is left to Landlock,
which names the devices, and memory that has a descriptor, the choice of a core, and of fcntl and ioctl whatever sends
no signals are allowed.

Where the kernel lacks one of the last three, or they are not known for the machine, the rest stands and ``confine``
says what is missing.

Sources: the man pages prctl(2), unshare(2), clone(2) and capset(2); <linux/capability.h> for the numbers.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from workers.onnx.sandboxing.landlock import gpu_devices, restrict_files
from workers.onnx.sandboxing.libc import checked, load, prctl
from workers.onnx.sandboxing.seccomp import filter_calls

OPEN_FILES = 64
GPU_OPEN_FILES = 1024  # a descriptor for each device, and for much of what CUDA allocates


class Bounds(NamedTuple):
    """Resources that a confined process may use.

    Attributes:
        memory_bytes: of address space; None is no limit.
        cpu_s: seconds of processor time, all threads together; None is no limit.
        gpu: whether it may use the GPUs of this machine.
        data_bytes: of memory that it alone writes to, which is less than address space where libraries are mapped;
            None is no limit.
    """

    memory_bytes: int | None
    cpu_s: int | None
    gpu: bool = False
    data_bytes: int | None = None


def confine(bounds: Bounds, readable: Iterable[Path]) -> list[str]:
    """Confine this process for good.

    Args:
        bounds: what it may use.
        readable: files, or folders with all that is below them; those that do not exist are left out.

    Returns:
        What could not be done here and why, a sentence's part each.
    """
    libc = load()
    _limit(bounds)
    _leave_network(libc)
    prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    attempts: Mapping[str, Callable[[], None]] = {
        "giving up root's capabilities": lambda: _drop_capabilities(libc),
        "file-system rules": lambda: restrict_files(libc, readable, gpu_devices() if bounds.gpu else ()),
        "a filter of system calls": lambda: filter_calls(libc, bounds.gpu),
    }
    missing = []
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            missing.append(f"{what} ({error.strerror})")
    return missing


def die_with_parent(parent: int) -> None:
    """End this process when the thread that started it ends, or at once if process ``parent`` is gone already."""
    prctl(load(), _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _limit(bounds: Bounds) -> None:
    files = GPU_OPEN_FILES if bounds.gpu else OPEN_FILES
    wanted = {resource.RLIMIT_NOFILE: (files, files), resource.RLIMIT_CORE: (0, 0)}
    if not bounds.gpu:  # else it would hold for memory that has a descriptor
        wanted[resource.RLIMIT_FSIZE] = (0, 0)
    if bounds.memory_bytes is not None:
        wanted[resource.RLIMIT_AS] = (bounds.memory_bytes, bounds.memory_bytes)
    if bounds.data_bytes is not None:
        wanted[resource.RLIMIT_DATA] = (bounds.data_bytes, bounds.data_bytes)
    if bounds.cpu_s is not None:
        # SIGXCPU at the first, which can be told from a crash; SIGKILL at the second.
        wanted[resource.RLIMIT_CPU] = (bounds.cpu_s, bounds.cpu_s + 1)
    for kind, limits in wanted.items():
        # A system that knows no such limit, or has a lower one already, leaves the parent's clock.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, limits)


_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPABILITIES_VERSION, _READ_EVERY_FILE = 0x20080522, 1 << 2


def _leave_network(libc: ctypes.CDLL) -> None:
    # Root may; others as the root of a user namespace of their own, where the system lets them have one.
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted and inheritable ones, the low words first
    checked(libc.capget(header, held))
    kept = struct.unpack_from("=6I", held)[1] & _READ_EVERY_FILE
    checked(libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))
