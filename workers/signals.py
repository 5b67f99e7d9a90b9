"""The signals that end a process are its main thread's to take, and wait while a library swaps handlers. Light."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)


def handle(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> None:
    """Put a handler in place for each of these signals, but for those that this process inherited as ignored.

    ``nohup`` has SIGHUP ignored, and a shell script's ``&`` SIGINT: whoever did that wants the process to go on. A
    SIGTERM is always handled, for a process that cannot be ended in order would have to be killed.
    """
    for number in numbers:
        if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def leave_to_main_thread() -> None:
    """Keep them from the thread that calls this: one that the main thread makes wait would be delivered here."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Make them wait until the end of the block, and then be handled as before it, whatever was put in place inside.

    Outside of the main thread nothing happens: no handler can be put in place there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = [(number, signal.getsignal(number)) for number in ENDING]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
