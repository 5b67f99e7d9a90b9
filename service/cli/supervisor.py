"""Starting and ending the processes of a service: the API and the engine, together.

``supervise`` is ``retort serve``: two children, and none that outlives it. One that is killed, or ends
by itself once all were ready, is started again, and the other goes on. Each child is the
leader of its own session, so a Ctrl-C reaches only the supervisor, which passes it on once, as
SIGTERM. Each reads its standard input until it ends and then ends itself: the pipe's other end is
the supervisor's, so even a supervisor that was killed takes its children along. What a child has
left in its process group after the grace period is killed.

``BackgroundService`` is the same thing as a child of a program that wants a service for a while.
It restarts nothing: a process that ended by itself had a reason, and its job resumes at the next
start. Times are seconds.
"""

import os
import queue
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
from types import FrameType, TracebackType
from typing import Self

from service.client.client import Client
from service.client.transport import ClientError
from service.errors import ServiceError
from workers import signals

GRACE_S = 60.0
READY_S = 120.0
_POLL_S = 0.5
_REPEAT_S = 5.0
# A child that ends so often in so long will not stay up; whoever started this process has to know.
RESTARTS_MAX = 8
RESTARTS_WINDOW_S = 120.0
# The exit status of a child that has tried everything itself: EX_UNAVAILABLE of sysexits.h.
GAVE_UP = os.EX_UNAVAILABLE
# The longest time before a child is started again.
_REST_S = 15.0
_OPTIONAL_REST_S = 60.0
_TAIL_BYTES = 32_000
_VOICE = "retort: "
UNTIL_STDIN_CLOSES = "--until-stdin-closes"


class ServiceEnded(ServiceError, RuntimeError):
    """The service that was started here has ended, or did not get ready in time."""


def command(*arguments: str) -> list[str]:
    """The command line of a Retort process in this very Python."""
    return [sys.executable, "-m", "service.cli", *arguments]


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port on which nothing listens at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def end_with_stdin() -> None:
    """Sends this process a SIGTERM when its standard input closes, that is, when its parent ends."""

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
    """Starts the children and keeps them up until a signal asks for the end; then ends all.

    Args:
        children: name -> command line; each has to understand ``--until-stdin-closes``.
        environment: theirs.
        is_ready: asked now and then until it says yes; then ``ready_text`` is said.
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
        _tell_end(name, running[name], news)

    gone: str | None = None
    try:
        for name in children:
            start(name)
        gone = _keep_up(running, news, start, is_ready, has_begun, lambda: say(ready_text), say, optional)
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


def _tell_end(name: str, process: subprocess.Popen[bytes], news: queue.SimpleQueue[str | None]) -> None:
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
    """Until a signal comes, and then None; or until this child has to be given up."""
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
    """End what a child has left behind in its group, and close the pipe to it."""
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
            # Again and again: one that comes while a library puts its own handlers in place is lost.
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


class BackgroundService:
    """``retort serve`` beside this program, its output in a file.

    Args:
        data_dir: of the service; its log goes there, too.
        data_root: below which it looks for data sets.
        port: where its API listens on the loopback address; a free one by default.
        outlive: leave it running when this program ends, however it ends.
    """

    def __init__(self, data_dir: Path, data_root: Path, *, port: int | None = None, outlive: bool = False) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = data_dir / "service.log"
        self.outlive = outlive
        options = ("--port", str(self.port), "--data-dir", str(data_dir))
        line = command("serve", *options, "--data-root", str(data_root))
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log_path.touch(mode=0o600)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                line if outlive else [*line, UNTIL_STDIN_CLOSES],
                stdin=subprocess.DEVNULL if outlive else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None or not self.outlive:
            self.stop()

    @property
    def pid(self) -> int:
        """Of the supervisor; a SIGTERM to it ends the service."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Blocks until API and engine answer.

        Raises:
            ServiceEnded: they ended or did not answer in time; the message has the log's end.
        """
        deadline = time.monotonic() + timeout_s
        with Client(self.url) as client:
            while not answers_ready(client):
                self.check()
                if time.monotonic() > deadline:
                    raise ServiceEnded(f"the service was not ready after {timeout_s:.0f} s, see {self.log_path}")
                time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises ServiceEnded, with the last line of its log, if it has ended."""
        if self._process.poll() is not None:
            raise ServiceEnded(f"the service ended: {self._log_tail()}")

    def wait(self, timeout_s: float | None = None) -> int:
        """Blocks until it has ended, and returns its exit status."""
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """Ends it as a Ctrl-C would, and waits for that."""
        self._process.terminate()
        try:
            self.wait(GRACE_S + 5.0)
        except subprocess.TimeoutExpired:
            # Its children read the pipe that closes with it.
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _log_tail(self) -> str:
        text = self.log_path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        # What the processes say to people, the first of it being the cause; the rest is their log.
        said = [line.removeprefix(_VOICE) for line in text.splitlines() if line.startswith(_VOICE)]
        return f"{'; '.join(said[-3:]) or 'no word from it'} (see {self.log_path})"


def answers_ready(client: Client) -> bool:
    """Whether a service answers and is ready to take jobs and to work on them."""
    try:
        return bool(client.ready()["ready"])
    except (ClientError, ValueError):
        return False
