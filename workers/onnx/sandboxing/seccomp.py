"""Seccomp filter: a program for the kernel that allows or refuses each system call of a process.

A refused call answers EPERM, so that a library which only tries goes on. Calls with numbers from ``FIRST_NEW_CALL`` on,
which came after Linux 5.0, answer ENOSYS as on an older kernel: some have their arguments in memory, where a filter
cannot look. Which calls are refused, and why, is in ``system_calls`` and ``confinement``.

Sources: the man pages seccomp(2) and prctl(2); <linux/bpf_common.h>.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct

from workers.onnx.sandboxing.libc import prctl
from workers.onnx.sandboxing.system_calls import (
    ALLOWED,
    CLONE_THREAD,
    FIRST_NEW_CALL,
    MACHINES,
    OPENED_TO_CHANGE,
    SIGNALLING,
    Machine,
)

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
# Classic BPF: load a word of seccomp_data, jump if equal / greater or equal / any bit set, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in seccomp_data; arguments are 8 bytes, low word first
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def filter_calls(libc: ctypes.CDLL, gpu: bool = False) -> None:
    """Filter the system calls of this process for good.

    Args:
        gpu: whether it may make those that a GPU's driver and CUDA need.

    Raises:
        OSError: the machine's calls are not known, or the kernel refuses.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"its system calls are not known on {platform.machine()}")
    program = b"".join(_program(machine, os.getpid(), gpu))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    holder = ctypes.create_string_buffer(header, len(header))
    prctl(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def _program(machine: Machine, process: int, gpu: bool = False) -> list[bytes]:
    """The filter, an instruction of 8 bytes each."""
    spared = machine.gpu_calls if gpu else ()
    refuse, unknown = (_step(_RETURN, _REFUSE | number) for number in (errno.EPERM, errno.ENOSYS))
    allow = _step(_RETURN, _ALLOW)
    # A call by the rules of another machine (32 bits) has other numbers.
    program = [_step(_LOAD, _MACHINE), _step(_IF_EQUAL, machine.audit, 1, 0), _step(_RETURN, _KILL)]
    program += [_step(_LOAD, _NUMBER), _step(_IF_AT_LEAST, FIRST_NEW_CALL, 0, 1), unknown]
    for number in machine.refused:
        if number not in spared:
            program += [_step(_IF_EQUAL, number, 0, 1), refuse]
    # (call, which argument decides, jump, operand, is the call allowed where the jump's condition holds?)
    rules = [
        (machine.clone, 0, _IF_ANY, CLONE_THREAD, True),
        (machine.kill, 0, _IF_EQUAL, process, True),
        (machine.tgkill, 0, _IF_EQUAL, process, True),
        (machine.prlimit64, 0, _IF_EQUAL, 0, True),  # 0 is the caller
    ]
    if not gpu:
        rules.append((machine.openat, 2, _IF_ANY, OPENED_TO_CHANGE, False))
        if machine.open_ is not None:
            rules.append((machine.open_, 1, _IF_ANY, OPENED_TO_CHANGE, False))
    for number, argument, jump, operand, allowed in rules:
        yes, no = (allow, refuse) if allowed else (refuse, allow)
        load = _step(_LOAD, _ARGUMENTS + 8 * argument)
        program += [_step(_IF_EQUAL, number, 0, 4), load, _step(jump, operand, 0, 1), yes, no]
    # fcntl(descriptor, command, argument) and ioctl(descriptor, request, ...).
    second, third = (_step(_LOAD, _ARGUMENTS + 8 * argument) for argument in (1, 2))
    set_flags = [_step(_IF_EQUAL, fcntl.F_SETFL, 0, 4), third, _step(_IF_ANY, os.O_ASYNC, 0, 1), refuse, allow]
    listed, of_listed, of_others = (SIGNALLING, refuse, allow) if gpu else (ALLOWED, allow, refuse)
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
