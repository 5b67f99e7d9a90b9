"""Calls of the C library that Python lacks; a failure raises OSError."""

import ctypes
import os


def load() -> ctypes.CDLL:
    """Load the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """Check a call: its result, unless it is negative.

    Raises:
        OSError: the call has failed, with its errno.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(libc: ctypes.CDLL, option: int, value: int, pointer: int = 0) -> None:
    """Call prctl(2) with a value and, for some options, an address.

    Raises:
        OSError: the kernel refuses.
    """
    arguments = (ctypes.c_ulong(argument) for argument in (value, pointer, 0, 0))
    checked(libc.prctl(option, *arguments))
