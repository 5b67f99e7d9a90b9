"""Cause of death of a worker process: signal or exit code, an OOM kill or not, and whose memory it was. Without Ray.

Of every process that is gone Ray says that "it died unexpectedly". The other evidence:

- its exit status, from Linux 6.15 on, by a pidfd that was opened while it lived (it is a child of Ray's, not ours);
- the report that Ray's and Python's handlers of fatal signals leave at the end of its standard error;
- Ray's memory monitor, which says itself what it has killed and how much each process used;
- the kernel's counter of processes of this cgroup that were killed for want of memory, before and after;
- how much memory is in use afterwards. What the dead process had is free by then, so this is what *others* use.

A kernel that is out of memory ends Ray's workers first, even if others have taken it (Ray raises their
``oom_score_adj``), so a kill does not show who is to blame. Others are if they use at least half of the memory when the
process is gone.
"""

import contextlib
import fcntl
import os
import re
import signal
import struct
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workers.cluster.memory import Memory, memory, oom_kills
from workers.errors import first_line

# ioctl(pidfd, PIDFD_GET_INFO, struct pidfd_info of 64 bytes), linux/pidfd.h.
_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3
_EXIT_CODE_AT = 60
# The status is there once Ray has collected the process, a moment after its sockets are closed.
_COLLECTED_TRIES = 5
_COLLECTED_S = 0.01
_REPORT_BYTES = 65536
# Where nothing counts kills (systemd-oomd and earlyoom kill as anybody does), a machine as full as this is evidence.
_FULL = 0.9
# Others are to blame from this share of the memory on.
_MOST = 0.5


@dataclass(frozen=True)
class Death:
    """Death of a process.

    Attributes:
        text: for a person.
        is_node_fault: whether it is no fault of its work: others have used up the memory, or Ray itself has ended.
    """

    text: str
    is_node_fault: bool = False


class ProcessId(NamedTuple):
    """Identity of a process for a watch: its number, and the file of its standard error."""

    pid: int
    stderr: str


def own_id() -> ProcessId:
    """Identity of this process."""
    try:
        stderr = os.readlink("/proc/self/fd/2")
    except OSError:
        stderr = ""
    return ProcessId(os.getpid(), stderr)


class Watch:
    """Watch on a worker process of this machine, kept while it lives to find out how it died.

    Args:
        process: as it has answered; None while it has not.
        kills: ``oom_kills()`` from before it answered.
    """

    def __init__(self, process: ProcessId | None = None, kills: int | None = None) -> None:
        self._process = process
        self._pidfd: int | None = None
        if process is not None:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(process.pid)
                weakref.finalize(self, os.close, self._pidfd)
        self._kills = oom_kills() if kills is None else kills

    def is_of(self, process: ProcessId) -> bool:
        """Whether this very process is watched."""
        return self._process == process

    def alive(self, kills: int) -> None:
        """Note that it has answered: a process killed for want of memory before that was another one.

        Args:
            kills: ``oom_kills()`` from when it was asked; by the time its answer is read it may be dead.
        """
        self._kills = max(self._kills, kills)

    def death(self, error: BaseException) -> Death:
        """Death of the process, for which Ray has raised ``error``."""
        message = str(error)
        if (by_monitor := _by_memory_monitor(message)) is not None:
            return by_monitor
        if _RAY_ENDED.search(message):
            return Death(f"Ray itself ended, and the process with it ({_ray_reason(error)})", is_node_fault=True)
        if "ray.kill" in message:
            # By an engine: this one has not asked for it, or would not ask.
            return Death(_ray_reason(error))
        number, text = self._how(message)
        if text is None:
            return Death(_ray_reason(error))
        kills = oom_kills() - self._kills
        return _judge(text, number, kills, memory())

    def _how(self, message: str) -> tuple[int | None, str | None]:
        """Cause as signal and sentence.

        The signal is None if it was none, or is not known; so is the sentence if Ray knows.
        """
        status = self._status()
        if status is not None:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            if number is not None:
                return number, _by_signal(number)
            return None, f"the process ended by itself with exit code {os.waitstatus_to_exitcode(status)}"
        if (crash := self._crash()) is not None:
            return crash, _by_signal(crash)
        if "receives a SIGTERM" in message:
            return signal.SIGTERM, _by_signal(signal.SIGTERM)
        if (code := _EXIT_CODE.search(message)) is not None:
            return None, f"the process ended by itself with exit code {code[1]}"
        if _UNEXPECTED in message:
            # A crash would have left its report, and Python would have reported an exit to Ray.
            return signal.SIGKILL, "the process ended without a word, most likely by signal 9 (SIGKILL)"
        return None, None

    def _status(self) -> int | None:
        """Wait status, where the kernel gives it."""
        if self._pidfd is None:
            return None
        for _ in range(_COLLECTED_TRIES):
            info = bytearray(struct.pack("QQ", _INFO_EXIT, 0) + bytes(48))
            try:
                fcntl.ioctl(self._pidfd, _GET_INFO, info)
            except OSError:
                return None
            [mask] = struct.unpack_from("Q", info)
            if mask & _INFO_EXIT:
                [status] = struct.unpack_from("i", info, _EXIT_CODE_AT)
                return int(status)
            time.sleep(_COLLECTED_S)
        return None

    def _crash(self) -> int | None:
        """Signal in the report that a crash has left."""
        if self._process is None or not self._process.stderr:
            return None
        try:
            with Path(self._process.stderr).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _REPORT_BYTES))
                found = _CRASH.findall(file.read())
        except OSError:
            return None
        name = found[-1].decode() if found else ""
        return signal.Signals[name] if name in signal.Signals.__members__ else None


_UNEXPECTED = "unexpectedly exits with a connection error"
_EXIT_CODE = re.compile(r"exits with an exit code (\d+)")
_CRASH = re.compile(rb"\*\*\* (SIG[A-Z]+) received at ")
_RAY_ENDED = re.compile(r"node has died|node died|raylet.*(died|dead)|NODE_DIED", re.IGNORECASE)
_MONITOR = re.compile(r"was ([\d.]+)GB used / ([\d.]+)GB limit")
_MONITOR_OWN = re.compile(r"actual memory used=([\d.]+)GB")
_REASON = re.compile(r"The actor is dead because (.*)")


def _by_signal(number: int) -> str:
    try:
        name = f" ({signal.Signals(number).name})"
    except ValueError:
        name = ""
    return f"the process was ended by signal {number}{name}"


def _by_memory_monitor(message: str) -> Death | None:
    """Death of a process that Ray has killed because the memory was nearly full; it may have killed several."""
    used, own = _MONITOR.search(message), _MONITOR_OWN.findall(message)
    if used is None or "low on memory" not in message:
        return None
    theirs = float(used[1]) - max(map(float, own), default=0.0)
    by_others = theirs >= _MOST * float(used[1])
    whose = (
        "others used most of it" if by_others else "most of it was its own: use a smaller batch_size, or more memory"
    )
    return Death(
        f"Ray's memory monitor ended the process: {used[1]} of {used[2]} GB were in use, {theirs:.2f} GB by others; "
        f"{whose}",
        by_others,
    )


def _judge(text: str, number: int | None, kills: int, after: Memory | None) -> Death:
    """Judge the part of memory in a death.

    Args:
        number: of the signal that ended it, None if it was none.
        kills: of this cgroup's processes by the kernel for want of memory, while it died.
        after: memory in use once it is gone.
    """
    was_oom = kills > 0 and number == signal.SIGKILL
    if was_oom:
        text += f"; the kernel's OOM killer ended {kills} process{'es' * (kills > 1)} of this cgroup in that time"
    if after is None:
        return Death(text, is_node_fault=False)
    share = after.used / after.total
    is_full = number in {signal.SIGKILL, signal.SIGTERM} and share >= _FULL
    if was_oom and share < _MOST:
        return Death(
            f"{text}, and {after} of memory are in use without it, so it had most of it itself: use a smaller "
            "batch_size, or more memory"
        )
    if was_oom or is_full:
        return Death(f"{text}; others use {after} of memory", is_node_fault=True)
    return Death(text)


def _ray_reason(error: BaseException) -> str:
    """Reason that Ray gives for an actor's death; the first line of the error where it gives none."""
    found = _REASON.search(str(error))
    return found[1].strip() if found else first_line(error)
