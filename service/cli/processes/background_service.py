"""Background service: ``retort serve`` as a child of a program that needs one for a while.

It restarts nothing: a process that ended by itself had a reason, and its job resumes at the next start. Times are
seconds.
"""

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from service.cli.processes.supervisor import GRACE_S, UNTIL_STDIN_CLOSES, command, free_port
from service.client.client import Client
from service.client.errors import ClientError
from service.errors import ServiceError

READY_S = 120.0
_POLL_S = 0.5
_TAIL_BYTES = 32_000
_PREFIX = "retort: "


class ServiceEnded(ServiceError, RuntimeError):
    """The service that was started here has ended, or did not get ready in time."""


class BackgroundService:
    """Service (``retort serve``) beside this program, its output in a file.

    Args:
        data_dir: of the service; its log goes there, too.
        data_root: below which it looks for datasets.
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
        """Number of the supervisor's process; a SIGTERM to it ends the service."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until API and engine answer.

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
        """Check that it has not ended. Raises ServiceEnded, with the last lines of its log."""
        if self._process.poll() is not None:
            raise ServiceEnded(f"the service ended: {self._log_tail()}")

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it has ended; returns its exit status."""
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """End it as a Ctrl-C does, and wait for that."""
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
        # Lines for people, the first of which is the cause; the rest is the log.
        said = [line.removeprefix(_PREFIX) for line in text.splitlines() if line.startswith(_PREFIX)]
        return f"{'; '.join(said[-3:]) or 'no word from it'} (see {self.log_path})"


def answers_ready(client: Client) -> bool:
    """Whether a service answers and is ready to take jobs and to work on them."""
    try:
        return bool(client.ready()["ready"])
    except (ClientError, ValueError):
        return False
