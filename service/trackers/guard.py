"""Guard of a sink: a call that does not return ends this process; prints of trackers stay out of standard output."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import structlog

from service.trackers.patience import Patience
from service.trackers.sinks.base import Sink

log = structlog.get_logger("retort.trackers")

# EX_TEMPFAIL of sysexits.h: whoever has started this process is to do so again.
STALLED = os.EX_TEMPFAIL
_LOOK_S = 1.0


def quiet(sink: Sink) -> Sink:
    """A sink whose package prints to standard error: standard output is for results and log lines."""
    return cast(Sink, _Wrapped(sink, lambda _: contextlib.redirect_stdout(sys.stderr)))


class Watchdog:
    """Ends this process, whatever hangs in it, once a call takes too long.

    No other way ends a thread that waits within a library. What the tracker has not kept is told again by the next
    process, see ``service.trackers.cursor``.

    Args:
        patience: how long a call may take; its stalls are noted there.
        end: what ends the process, with an exit status.
    """

    def __init__(self, patience: Patience, end: Callable[[int], object] = os._exit) -> None:
        self._patience, self._end = patience, end
        self._call: tuple[str, float] | None = None

    def start(self) -> None:
        """Watch from now on, in a thread."""
        threading.Thread(target=self._watch, name="tracker-watchdog", daemon=True).start()

    def guarded(self, open_sink: Callable[[], Sink]) -> Sink:
        """Make a sink, which imports its package; that, and each of its calls, is watched."""
        with self._timed("open"):
            sink = open_sink()
        return cast(Sink, _Wrapped(sink, self._timed))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._call = name, time.monotonic()
        try:
            yield
        finally:
            self._call = None

    def _watch(self) -> None:
        while True:
            allowed_s = self._patience.allowed_s
            time.sleep(min(_LOOK_S, allowed_s / 4))
            call = self._call
            if call is not None and time.monotonic() - call[1] > self._patience.allowed_s:
                self._patience.note_stall()
                log.error(
                    "the tracker hangs or is slow: this process ends, and its successor tells it again what it has not "
                    "kept, with twice the time for each call about this job",
                    call=call[0],
                    waited_s=round(time.monotonic() - call[1], 1),
                    remedy="if it is only slow, raise RETORT_TRACKERS_STALL_S (--stall-s of `retort track`)",
                )
                self._end(STALLED)
                return


class _Wrapped:
    """Every method of a sink within a context, which is made with the method's name."""

    def __init__(self, sink: Sink, context: Callable[[str], contextlib.AbstractContextManager[object]]) -> None:
        self._sink, self._context = sink, context

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a sink has
        method = getattr(self._sink, name)

        @functools.wraps(method)
        def call(*arguments: Any) -> Any:  # noqa: ANN401  # as the method has them
            with self._context(name):
                return method(*arguments)

        return call
