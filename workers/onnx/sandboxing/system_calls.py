"""System calls that a confined process may not make, by their numbers on each kind of machine.

Source: <asm/unistd.h> and <linux/audit.h>.
"""

import fcntl
import os
import termios
from collections.abc import Mapping
from typing import NamedTuple

# Numbers on (x86_64, aarch64); None where the machine has no such call.
REFUSED: Mapping[str, tuple[int | None, int]] = {
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
REFUSED_X86 = {
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
FIRST_NEW_CALL = 424
CLONE_THREAD = 0x10000
OPENED_TO_CHANGE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# With F_SETOWN (or FIOSETOWN) and O_ASYNC (or FIOASYNC) the kernel sends whom a process names a signal of its choice
# (F_SETSIG). Leases and F_NOTIFY send signals, too; locks keep others waiting.
ALLOWED = {
    "fcntl": (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL),
    # TCGETS, by which a library asks whether it writes to a terminal; close on exec or not; how much waits; not to
    # wait.
    "ioctl": (termios.TCGETS, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD, termios.FIONBIO),
}
# A GPU's driver has commands of its own: of a process that uses one, those are refused that have the kernel signal.
_F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 15, 0x8901, 0x8902
SIGNALLING = {
    "fcntl": (fcntl.F_SETOWN, fcntl.F_SETSIG, _F_SETOWN_EX, fcntl.F_SETLEASE, fcntl.F_NOTIFY),
    "ioctl": (termios.FIOASYNC, _FIOSETOWN, _SIOCSPGRP),
}


class Machine(NamedTuple):
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


MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        refused=(*(x86 for x86, _ in REFUSED.values() if x86 is not None), *REFUSED_X86.values()),
        clone=56,
        openat=257,
        open_=2,
        kill=62,
        tgkill=234,
        prlimit64=302,
        fcntl=72,
        ioctl=16,
        gpu_calls=tuple(REFUSED[name][0] for name in _GPU_CALLS),
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        refused=tuple(arm for _, arm in REFUSED.values()),
        clone=220,
        openat=56,
        open_=None,
        kill=129,
        tgkill=131,
        prlimit64=261,
        fcntl=25,
        ioctl=29,
        gpu_calls=tuple(REFUSED[name][1] for name in _GPU_CALLS),
    ),
}
