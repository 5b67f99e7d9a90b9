"""Supervisor of the processes of a service: the API and the engine, started and ended together.

``supervise`` is ``retort serve``: two children, and none that outlives it. One that is killed, or ends
by itself once all were ready, is started again, and the other goes on. Each child is the
leader of its own session, so a Ctrl-C reaches only the supervisor, which passes it on once, as
SIGTERM. Each reads its standard input until it ends and then ends itself: the pipe's other end is
the supervisor's, so even a supervisor that was killed takes its children along. Processes that a child has
left in its group after the grace period are killed. Times are seconds.
"""

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from workers import signals

GRACE_S = 60.0
_POLL_S = 0.5
_REPEAT_S = 5.0
# A child that ends so often in so long will not stay up, and the supervisor ends with an error.
RESTARTS_MAX = 8
RESTARTS_WINDOW_S = 120.0
# The exit status of a child that has tried everything itself: EX_UNAVAILABLE of sysexits.h.
GAVE_UP = os.EX_UNAVAILABLE
# The longest time before a child is started again.
_REST_S = 15.0
_OPTIONAL_REST_S = 60.0
UNTIL_STDIN_CLOSES = "--until-stdin-closes"
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Ray's processes have those below.
_PORT_MIN = 20_000
_PORT_TRIES = 64


def command(*arguments: str) -> list[str]:
    """Command line of a Retort process in this very Python."""
    return [sys.executable, "-m", "service.cli", *arguments]


def free_port(host: str = "127.0.0.1") -> int:
    """Find a TCP port on which nothing listens at this moment.

    It is none that the kernel gives to outgoing connections, if that can be had: one of those would keep a server
    from starting again on its port.
    """
    with suppress(OSError, ValueError):
        first, _last = map(int, _EPHEMERAL_PORTS.read_text().split())
        for port in random.SystemRandom().sample(range(_PORT_MIN, first), _PORT_TRIES):
            with suppress(OSError):
                return _bound(host, port)
    return _bound(host, 0)


def _bound(host: str, port: int) -> int:
    """Number of a port that can be bound; 0 lets the kernel choose one. Raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, port))
        bound: int = probe.getsockname()[1]
        return bound


def end_with_stdin() -> None:
    """Send this process a SIGTERM when its standard input closes, that is, when its parent ends."""

    def watch() -> None:
        signals.leave_to_main_thread()
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def supervise(
    children: Mapping[str, Sequence[str]],
    *,
    environment: Mapping[str, str],
    is_ready: Callable[[], bool],
    has_begun: Callable[[], bool],
    say: Callable[[str], None],
    ready_text: str,
    optional: Collection[str] = (),
    grace_s: float = GRACE_S,
) -> int:
    """Start the children and keep them up until a signal requests the end; then end all.

    Args:
        children: name -> command line; each has to understand ``--until-stdin-closes``.
        environment: theirs.
        is_ready: asked now and then until it says yes; then ``ready_text`` is printed.
        has_begun: whether all children have come up, ready or not (a GPU may not work). One that gives up before that
            ends all.
        optional: children that the others do without: one is started again however often it ends, and has no grace.
        grace_s: from the SIGTERM to the SIGKILL. A second signal ends the grace.

    Returns:
        The exit status: 0 after SIGTERM, SIGINT or SIGHUP, 1 when a child did not come up, does not stay up or has
        given up (its status is ``GAVE_UP``). A signal that this process was started to ignore (``nohup``) ends nothing.
    """
    # The name of a child that ended, or None for a signal. SimpleQueue may be fed by a handler.
    news: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        news.put(None)

    signals.handle((*signals.ENDING, signal.SIGHUP), on_signal)
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        running[name] = _start(children[name], environment)
        _report_end(name, running[name], news)

    gone: str | None = None
    try:
        for name in children:
            start(name)
        gone = _keep_up(
            running,
            news,
            start=start,
            is_ready=is_ready,
            has_begun=has_begun,
            on_ready=lambda: say(ready_text),
            say=say,
            optional=optional,
        )
        if gone is None:
            say("stopping")
    finally:
        for name in optional:
            if name in running:
                _clear(running[name])
        statuses = _end_all(running, news, grace_s)
    if gone is None:
        return 0
    others = " and ".join(name for name in children if name != gone)
    say(f"{gone} ended by itself ({_describe(statuses[gone])}), so {others} was ended, too")
    return 1


def _start(line: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*line, UNTIL_STDIN_CLOSES],
        stdin=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    )


def _report_end(name: str, process: subprocess.Popen[bytes], news: queue.SimpleQueue[str | None]) -> None:
    def wait() -> None:
        process.wait()
        news.put(name)

    threading.Thread(target=wait, name=f"{name}-end", daemon=True).start()


def _keep_up(
    running: Mapping[str, subprocess.Popen[bytes]],
    news: queue.SimpleQueue[str | None],
    start: Callable[[str], None],
    is_ready: Callable[[], bool],
    has_begun: Callable[[], bool],
    on_ready: Callable[[], None],
    say: Callable[[str], None],
    optional: Collection[str],
) -> str | None:
    """Restart children that end, until a signal comes; returns None, or the name of a child that is given up."""
    was_ready = False
    ends: dict[str, deque[float]] = {name: deque(maxlen=RESTARTS_MAX) for name in running}
    due: dict[str, float] = {}
    while True:
        try:
            # Never without a time limit: a signal that comes just before the wait is seen only after it.
            ended = news.get(timeout=_POLL_S)
        except queue.Empty:
            if not was_ready and is_ready():
                was_ready = True
                on_ready()
        else:
            if ended is None:
                return None
            now, recent = time.monotonic(), ends[ended]
            # A status of its own before all had come up is a reason that will not go away; a signal is none.
            status = running[ended].wait()
            is_optional = ended in optional
            is_hopeless = status == GAVE_UP or (not (was_ready or has_begun()) and status > 0)
            is_restless = len(recent) == RESTARTS_MAX and now - recent[0] < RESTARTS_WINDOW_S
            if (is_hopeless or is_restless) and not is_optional:
                return ended
            recent.append(now)
            lately = sum(now - end < RESTARTS_WINDOW_S for end in recent)
            due[ended] = now + min(2.0 ** (lately - 1) - 1.0, _OPTIONAL_REST_S if is_optional else _REST_S)
            say(f"{ended} ended by itself ({_describe(status)}), starting it again")
            _clear(running[ended])
        for name in [name for name, when in due.items() if time.monotonic() >= when]:
            del due[name]
            start(name)


def _clear(process: subprocess.Popen[bytes]) -> None:
    """End the processes that a child has left in its group, and close the pipe to it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()


def _end_all(
    running: Mapping[str, subprocess.Popen[bytes]],
    news: queue.SimpleQueue[str | None],
    grace_s: float,
) -> dict[str, int]:
    deadline = time.monotonic() + grace_s
    while alive := [process for process in running.values() if process.poll() is None]:
        for process in alive:
            # Repeated: a signal that comes while a library puts its own handlers in place is lost.
            process.terminate()
        try:
            if news.get(timeout=max(0.0, min(_REPEAT_S, deadline - time.monotonic()))) is None:
                break
        except queue.Empty:
            if time.monotonic() >= deadline:
                break
    for process in running.values():
        _clear(process)
    return {name: process.wait() for name, process in running.items()}


def _describe(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
