"""Standard streams: a service goes on when nobody reads them, a command reports it at its end.

A stream fails when its reader leaves (``| head``, a log collector that is started again) or its disk is full. Daemons
start programs without any: then the next file that is opened, a database say, would be taken for one.
"""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _DroppingFile(io.FileIO):
    """File that drops what cannot be written."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write; returns the number of bytes written or dropped."""
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        # None is also a pipe that is full and does not wait.
        return memoryview(data).nbytes if written is None else written


def fill_closed() -> None:
    """Open /dev/null in place of each standard stream that this process was started without."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one. Programs that this process starts need it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has nothing in place of a stream that was closed when it started.
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # likewise


def drop_unwritable() -> None:
    """Drop what cannot be written to standard output and error, without an error."""
    if sys.stdout is sys.__stdout__ or sys.__stdout__ is None:
        sys.stdout = _dropping(sys.stdout)
    if sys.stderr is sys.__stderr__ or sys.__stderr__ is None:
        sys.stderr = _dropping(sys.stderr)


def _dropping(stream: TextIO) -> io.TextIOWrapper:
    file = _DroppingFile(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file), encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )


def give_up_unwritable() -> None:
    """Flush both streams; one that fails leads to /dev/null from now on, or Python complains when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
