"""What a process may no longer do once it has confined itself: system calls, files, network, memory and time.

For a process that is about to read a hostile file, with one thread, before it opens that file. Nothing here can be
undone, and no part needs a library beyond the kernel's own interface:

1. resource limits: address space, processor time, size of files, open files, no core dumps. Not the number of
   processes: the kernel counts all of a user's threads, the service's among them;
2. a network namespace of its own with nothing in it, where that is allowed;
3. no capability of root but that of reading every file, which 4 narrows: else it could lift its own limits;
4. Landlock: files below the named paths may be read, and nothing may be written, made or removed;
5. a seccomp filter: no network, no new process or program, no look into, signal to or say in the priority of another
   process, no memory, queue or lock that others use, no change to any file, no mount, no kernel interface that could
   get around the filter (io_uring). Of fcntl and ioctl what is listed is allowed, for the kernel also sends signals on
   behalf of descriptors (F_SETOWN, FIOASYNC). Threads are allowed. A refused call answers EPERM, so that a library
   which only tries goes on. Calls with numbers from 424 on, which came after Linux 5.0, answer ENOSYS as on an older
   kernel: some have their arguments in memory, where a filter cannot look.

A process that is to use a GPU talks to its driver by ioctl on devices that it opens to write, and CUDA maps address
space by the terabyte: for it there is no limit of address space, what files may be opened to write is left to Landlock,
which names the devices, and memory that has a descriptor, the choice of a core, and of fcntl and ioctl whatever sends
no signals are allowed.

Where the kernel lacks one of the last three, or they are not known for the machine, the rest stands and ``confine``
says what is missing.

Sources: the man pages prctl(2), seccomp(2), landlock(7), unshare(2), clone(2) and capset(2); <linux/audit.h>,
<linux/bpf_common.h>, <linux/capability.h> and <asm/unistd.h> for the numbers.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
import termios
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

OPEN_FILES = 64
GPU_OPEN_FILES = 1024  # a descriptor for each device, and for much of what CUDA allocates


class Bounds(NamedTuple):
    """What a confined process may use.

    Attributes:
        memory_bytes: of address space; None is no limit.
        cpu_s: seconds of processor time, all threads together; None is no limit.
        gpu: whether it may use the GPUs of this machine.
    """

    memory_bytes: int | None
    cpu_s: int | None
    gpu: bool = False


def confine(bounds: Bounds, readable: Iterable[Path]) -> list[str]:
    """Confine this process for good.

    Args:
        bounds: what it may use.
        readable: files, or folders with all that is below them; those that do not exist are left out.

    Returns:
        What could not be done here and why, a sentence's part each.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _limit(bounds)
    _leave_network(libc)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    attempts: Mapping[str, Callable[[], None]] = {
        "giving up root's capabilities": lambda: _drop_capabilities(libc),
        "file-system rules": lambda: _restrict_files(libc, readable, _gpu_devices() if bounds.gpu else ()),
        "a filter of system calls": lambda: _filter_calls(libc, bounds.gpu),
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
    _prctl(ctypes.CDLL(None, use_errno=True), _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------------ limits


def _limit(bounds: Bounds) -> None:
    files = GPU_OPEN_FILES if bounds.gpu else OPEN_FILES
    wanted = {resource.RLIMIT_NOFILE: (files, files), resource.RLIMIT_CORE: (0, 0)}
    if not bounds.gpu:  # else it would hold for memory that has a descriptor
        wanted[resource.RLIMIT_FSIZE] = (0, 0)
    if bounds.memory_bytes is not None:
        wanted[resource.RLIMIT_AS] = (bounds.memory_bytes, bounds.memory_bytes)
    if bounds.cpu_s is not None:
        # SIGXCPU at the first, which can be told from a crash; SIGKILL at the second.
        wanted[resource.RLIMIT_CPU] = (bounds.cpu_s, bounds.cpu_s + 1)
    for kind, limits in wanted.items():
        # A system that knows no such limit, or has a lower one already, leaves the parent's clock.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, limits)


# ------------------------------------------------------------------------------------------- network, new privileges

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES_VERSION, _READ_EVERY_FILE = 0x20080522, 1 << 2


def _leave_network(libc: ctypes.CDLL) -> None:
    # Root may; others as the root of a user namespace of their own, where the system lets them have one.
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted and inheritable ones, the low words first
    _checked(libc.capget(header, held))
    kept = struct.unpack_from("=6I", held)[1] & _READ_EVERY_FILE
    _checked(libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def _prctl(libc: ctypes.CDLL, option: int, value: int, pointer: int = 0) -> None:
    arguments = (ctypes.c_ulong(argument) for argument in (value, pointer, 0, 0))
    _checked(libc.prctl(option, *arguments))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---------------------------------------------------------------------------------------------------------- Landlock

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # the same on every machine
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEVICE = 1 << 1, 1 << 2, 1 << 3, 1 << 15
# Rights on files, on TCP ports and on processes outside, by the version of Landlock that brought them.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS = {4: 0b11}
_SCOPES = {6: 0b11}


def _gpu_devices() -> list[Path]:
    """The devices of NVIDIA's driver."""
    return [*Path("/dev").glob("nvidia*"), *Path("/dev/nvidia-caps").glob("*")]


def _restrict_files(libc: ctypes.CDLL, readable: Iterable[Path], devices: Iterable[Path] = ()) -> None:
    version = _checked(libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION))
    rights = [_rights(table, version) for table in (_FILE_RIGHTS, _NET_RIGHTS, _SCOPES)]
    attributes = struct.pack("=QQQ", *rights)
    # A kernel accepts a longer struct if what it does not know of is zero.
    rules = _checked(libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for path in readable:
            _allow(libc, rules, path, _READ_FILE)
        for path in devices:
            _allow(libc, rules, path, (_READ_FILE | _WRITE_FILE | _IOCTL_DEVICE) & rights[0])
        _checked(libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _rights(table: Mapping[int, int], version: int) -> int:
    rights = 0
    for since, bits in table.items():
        rights |= bits if version >= since else 0
    return rights


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = struct.pack("=Qi", rights | (_READ_DIR if path.is_dir() else 0), beneath)
        _checked(libc.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, rule, 0))
    finally:
        os.close(beneath)


# ----------------------------------------------------------------------------------------------------------- seccomp

# Numbers on (x86_64, aarch64); None where the machine has no such call.
_REFUSED: Mapping[str, tuple[int | None, int]] = {
    # network
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "bind": (49, 200),
    "listen": (50, 201),
    "socketpair": (53, 199),
    "accept4": (288, 242),
    "sendmmsg": (307, 269),
    # other processes and programs
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "rt_sigqueueinfo": (129, 138),
    "tkill": (200, 130),
    "rt_tgsigqueueinfo": (297, 240),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "get_robust_list": (274, 100),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
    # with the ids of those that others have made, which can be guessed
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "mq_open": (240, 180),
    # changes to files, and locks that those who may change them would wait for
    "flock": (73, 32),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fchmod": (91, 52),
    "fchown": (93, 55),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "mkdirat": (258, 34),
    "mknodat": (259, 33),
    "fchownat": (260, 54),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "fchmodat": (268, 53),
    "utimensat": (280, 88),
    "fallocate": (285, 47),
    "renameat2": (316, 276),
    "memfd_create": (319, 279),
    "open_by_handle_at": (304, 265),
    # the system
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "mount": (165, 40),
    "umount2": (166, 39),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "io_setup": (206, 0),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "setns": (308, 268),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
}
# Calls of x86_64 that newer machines do without; the open with flags as its second argument is below.
_REFUSED_X86 = {
    "fork": 57,
    "vfork": 58,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "chown": 92,
    "lchown": 94,
    "utime": 132,
    "mknod": 133,
    "utimes": 235,
    "futimesat": 261,
}
# Refused calls that CUDA makes: it allocates memory by descriptor, and binds its threads to cores.
_GPU_CALLS = ("ftruncate", "memfd_create", "sched_setaffinity")
_FIRST_NEW_CALL = 424
_CLONE_THREAD = 0x10000
_OPENED_TO_CHANGE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# With F_SETOWN (or FIOSETOWN) and O_ASYNC (or FIOASYNC) the kernel sends whom a process names a signal of its choice
# (F_SETSIG). Leases and F_NOTIFY send signals, too; locks keep others waiting.
_ALLOWED = {
    "fcntl": (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL),
    # TCGETS, by which a library asks whether it writes to a terminal; close on exec or not; how much waits; not to
    # wait.
    "ioctl": (termios.TCGETS, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD, termios.FIONBIO),
}
# A GPU's driver has commands of its own: of a process that uses one, those are refused that have the kernel signal.
_F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 15, 0x8901, 0x8902
_SIGNALLING = {
    "fcntl": (fcntl.F_SETOWN, fcntl.F_SETSIG, _F_SETOWN_EX, fcntl.F_SETLEASE, fcntl.F_NOTIFY),
    "ioctl": (termios.FIOASYNC, _FIOSETOWN, _SIOCSPGRP),
}


class _Machine(NamedTuple):
    """Numbers of one kind of machine; ``open_`` and the others are calls that depend on an argument."""

    audit: int
    refused: tuple[int, ...]
    clone: int
    openat: int
    open_: int | None
    kill: int
    tgkill: int
    prlimit64: int
    fcntl: int
    ioctl: int
    gpu_calls: tuple[int | None, ...]


_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        refused=(*(x86 for x86, _ in _REFUSED.values() if x86 is not None), *_REFUSED_X86.values()),
        clone=56,
        openat=257,
        open_=2,
        kill=62,
        tgkill=234,
        prlimit64=302,
        fcntl=72,
        ioctl=16,
        gpu_calls=tuple(_REFUSED[name][0] for name in _GPU_CALLS),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        refused=tuple(arm for _, arm in _REFUSED.values()),
        clone=220,
        openat=56,
        open_=None,
        kill=129,
        tgkill=131,
        prlimit64=261,
        fcntl=25,
        ioctl=29,
        gpu_calls=tuple(_REFUSED[name][1] for name in _GPU_CALLS),
    ),
}

# Classic BPF: load a word of seccomp_data, jump if equal / greater or equal / any bit set, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in seccomp_data; arguments are 8 bytes, low word first
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def _filter_calls(libc: ctypes.CDLL, gpu: bool = False) -> None:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"its system calls are not known on {platform.machine()}")
    program = b"".join(_program(machine, os.getpid(), gpu))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    holder = ctypes.create_string_buffer(header, len(header))
    _prctl(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def _program(machine: _Machine, process: int, gpu: bool = False) -> list[bytes]:
    """The filter, an instruction of 8 bytes each."""
    spared = machine.gpu_calls if gpu else ()
    refuse, unknown = (_step(_RETURN, _REFUSE | number) for number in (errno.EPERM, errno.ENOSYS))
    allow = _step(_RETURN, _ALLOW)
    # A call by the rules of another machine (32 bits) has other numbers.
    program = [_step(_LOAD, _MACHINE), _step(_IF_EQUAL, machine.audit, 1, 0), _step(_RETURN, _KILL)]
    program += [_step(_LOAD, _NUMBER), _step(_IF_AT_LEAST, _FIRST_NEW_CALL, 0, 1), unknown]
    for number in machine.refused:
        if number not in spared:
            program += [_step(_IF_EQUAL, number, 0, 1), refuse]
    # (call, which argument decides, jump, operand, is the call allowed where the jump's condition holds?)
    rules = [
        (machine.clone, 0, _IF_ANY, _CLONE_THREAD, True),
        (machine.kill, 0, _IF_EQUAL, process, True),
        (machine.tgkill, 0, _IF_EQUAL, process, True),
        (machine.prlimit64, 0, _IF_EQUAL, 0, True),  # 0 is the caller
    ]
    if not gpu:
        rules.append((machine.openat, 2, _IF_ANY, _OPENED_TO_CHANGE, False))
        if machine.open_ is not None:
            rules.append((machine.open_, 1, _IF_ANY, _OPENED_TO_CHANGE, False))
    for number, argument, jump, operand, allowed in rules:
        yes, no = (allow, refuse) if allowed else (refuse, allow)
        load = _step(_LOAD, _ARGUMENTS + 8 * argument)
        program += [_step(_IF_EQUAL, number, 0, 4), load, _step(jump, operand, 0, 1), yes, no]
    # fcntl(descriptor, command, argument) and ioctl(descriptor, request, ...).
    second, third = (_step(_LOAD, _ARGUMENTS + 8 * argument) for argument in (1, 2))
    set_flags = [_step(_IF_EQUAL, fcntl.F_SETFL, 0, 4), third, _step(_IF_ANY, os.O_ASYNC, 0, 1), refuse, allow]
    listed, of_listed, of_others = (_SIGNALLING, refuse, allow) if gpu else (_ALLOWED, allow, refuse)
    for number, values, before in (
        (machine.fcntl, listed["fcntl"], set_flags),
        (machine.ioctl, listed["ioctl"], []),
    ):
        decide = [second, *before]
        for value in values:
            decide += [_step(_IF_EQUAL, value, 0, 1), of_listed]
        program += [_step(_IF_EQUAL, number, 0, len(decide) + 1), *decide, of_others]
    return [*program, allow]


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, operand)
