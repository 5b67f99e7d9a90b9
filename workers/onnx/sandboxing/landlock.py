"""Landlock rules: files below the named paths may be read, devices used, and nothing else opened, made or removed.

Source: the man page landlock(7).
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from workers.onnx.sandboxing.libc import checked

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # the same on every machine
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEVICE = 1 << 1, 1 << 2, 1 << 3, 1 << 15
# Rights on files, on TCP ports and on processes outside, by the version of Landlock that brought them.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS = {4: 0b11}
_SCOPES = {6: 0b11}


def gpu_devices() -> list[Path]:
    """The devices of NVIDIA's driver."""
    return [*Path("/dev").glob("nvidia*"), *Path("/dev/nvidia-caps").glob("*")]


def restrict_files(libc: ctypes.CDLL, readable: Iterable[Path], devices: Iterable[Path] = ()) -> None:
    """Restrict this process for good.

    Args:
        readable: files, or folders with all that is below them; those that do not exist are left out.
        devices: that may be written and controlled, too.

    Raises:
        OSError: the kernel has no Landlock, or refuses.
    """
    version = checked(libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION))
    rights = [_rights(table, version) for table in (_FILE_RIGHTS, _NET_RIGHTS, _SCOPES)]
    attributes = struct.pack("=QQQ", *rights)
    # A kernel accepts a longer struct if what it does not know of is zero.
    rules = checked(libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for path in readable:
            _allow(libc, rules, path, _READ_FILE)
        for path in devices:
            _allow(libc, rules, path, (_READ_FILE | _WRITE_FILE | _IOCTL_DEVICE) & rights[0])
        checked(libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0))
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
        checked(libc.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, rule, 0))
    finally:
        os.close(beneath)
