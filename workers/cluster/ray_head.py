"""Ray's head as processes of their own, which live on while no engine does: runs go on when an engine is killed.

An engine finds the head for its data directory, or starts one by a keeper (``ray_keeper``). Their locks and the address
lie in one folder of this machine (``head_folder``). This file does not import ray; ``ray_cluster`` connects to
what it starts.
"""

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from workers import signals
from workers.cluster.head_folder import (
    POLL_S,
    STOP_S,
    TOKEN,
    Head,
    HeadFailed,
    hold_engine_lock,
    keeper_lives,
    machine_folder,
    read_head,
    reap,
)

START_S = 90.0

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Ray's own name for "this machine's address is 127.0.0.1": the only way to keep its ports off the network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # An actor without a share of a GPU sees none, and one with a share no other than its own.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "0",
    # The engine has put the runs down before it ends Ray; what is left need not be waited for.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
}


def describe(data_dir: Path) -> str | None:
    """Address of the living head for this data directory; None if there is none."""
    folder = machine_folder(data_dir)
    head = read_head(folder)
    return head.address if head is not None and keeper_lives(folder) else None


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, as it names them; None if it leaves all.

    CUDA goes on to the first name that is none, such as ``-1``.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))


class RayHead:
    """The head for one data directory, found alive or started, for the engine that leads.

    Args:
        data_dir: whose jobs are worked on.
        cpus, gpus: that Ray hands out; a living head with other numbers is ended first.
        token: that this process has to use, because ray keeps the first one it was told; None takes the living head's,
            or a new one.

    Raises:
        HeadFailed: it does not start; the message holds what it has said.
    """

    def __init__(self, data_dir: Path, cpus: int | None, gpus: int | None, token: str | None = None) -> None:
        self._folder = machine_folder(data_dir)
        self._keeper: subprocess.Popen[bytes] | None = None
        # Held until this engine ends, however it ends.
        self._engine_lock = hold_engine_lock(self._folder)
        self.head = self._find(cpus, gpus, token) or self._start(cpus, gpus, token or secrets.token_hex(32))

    @property
    def is_alive(self) -> bool:
        """Whether Ray is there; asked often, it costs a system call."""
        return keeper_lives(self._folder)

    def close(self) -> None:
        """End Ray with every process that it has started, and remove what it has left on this machine."""
        self._end_keeper()
        # Also those of a head whose keeper was killed.
        reap(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Release it without ending it; it ends later if no engine takes it over."""
        self._engine_lock.close()

    def _find(self, cpus: int | None, gpus: int | None, token: str | None) -> Head | None:
        deadline = time.monotonic() + START_S
        # One that is just starting will write its address.
        while keeper_lives(self._folder) and time.monotonic() < deadline:
            head = read_head(self._folder)
            if head is not None:
                fits = (head.cpus, head.gpus) == (cpus, gpus) and token in (None, head.token)
                if fits and _answers(head):
                    return head
                break
            time.sleep(POLL_S)
        self._end_keeper()
        return None

    def _start(self, cpus: int | None, gpus: int | None, token: str) -> Head:
        options = [f"--{name}={value}" for name, value in (("cpus", cpus), ("gpus", gpus)) if value is not None]
        log_path = self._folder / "keeper.log"
        # Of a keeper that was killed, with the address of a Ray that is gone.
        for name in ("head.json", "keeper.lock"):
            (self._folder / name).unlink(missing_ok=True)
        with log_path.open("wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "workers.cluster.ray_keeper", str(self._folder), *options],
                # Not on the command line, which everybody may read.
                env={**os.environ, **ENVIRONMENT, TOKEN: token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=_await_end, args=(self._keeper,), name="keeper-end", daemon=True).start()
        deadline = time.monotonic() + START_S
        while self._keeper.poll() is None and time.monotonic() < deadline:
            if (head := read_head(self._folder)) is not None:
                return head
            time.sleep(POLL_S)
        self._end_keeper()
        tail = log_path.read_bytes()[-1000:].decode(errors="replace").strip()
        raise HeadFailed(f"Ray did not start within {START_S:.0f} s; it said: {tail or 'nothing'}")

    def _end_keeper(self) -> None:
        lock = self._folder / "keeper.lock"
        deadline = time.monotonic() + STOP_S
        while keeper_lives(self._folder):
            # Its number stands in the file that it holds; without the lock it is not believed.
            pid = int(lock.read_text() or 0)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(POLL_S)
        if self._keeper is not None:
            # Without the lock it has not begun, or another keeper has it.
            self._keeper.kill()
            self._keeper.wait()
            self._keeper = None


def _await_end(keeper: subprocess.Popen[bytes]) -> None:
    """Wait for the keeper's end: without a parent that waits it would stay in the table of processes."""
    signals.leave_to_main_thread()
    keeper.wait()


def _answers(head: Head) -> bool:
    host, _, port = head.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
