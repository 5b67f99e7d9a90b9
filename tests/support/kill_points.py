"""Killing a piece of work at each of its changes to the file system in turn, in forked processes."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path

_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chown", "sqlite3.connect"}


def killed_at_every_change(work: Callable[[], object], below: Path, look: Callable[[int], None]) -> int:
    """Runs ``work`` again and again, killed (SIGKILL) just before its first, second ... change below a folder.

    Args:
        work: what is killed; it must begin anew each time, as ``look`` has left things.
        below: changes elsewhere do not count.
        look: called after each kill with the number of the change that was not made.

    Returns:
        How many kills there were; the run after them went through.
    """
    for number in count(1):
        status = _in_child(work, below, number)
        if status == 0:
            return number - 1
        assert status == -signal.SIGKILL, f"change {number}: status {status}"
        look(number)
    raise AssertionError


def _in_child(work: Callable[[], object], below: Path, number: int) -> int:
    with warnings.catch_warnings():
        # The child does not need the locks of pytest's other threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.addaudithook(_killer(below, number))
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killer(below: Path, number: int) -> Callable[[str, tuple[object, ...]], None]:
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event == "open":
            flags = arguments[2]
            is_change = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            is_change = event in _CHANGES
        # What is removed below an open folder is named relative to it.
        if is_change and (event == "os.remove" or event == "os.rmdir" or str(below) in str(arguments[0])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
