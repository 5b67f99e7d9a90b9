"""Confined session: ONNX Runtime in a confined child process, with limits of memory and time, for a job's teacher.

A file that passed every check is a stranger's program still, and may misbehave on the five-hundredth picture only. So
the process that holds the service's keys and files never runs it. The child is confined as one that
reads an upload (``workers.onnx.sandboxing.sandbox``); inputs lie in memory that both map
(``workers.onnx.sessions.shared_arrays``), outputs come through a pipe.

Time: the first picture of each shape is run alone (on a GPU, and of a graph with a fixed batch, the first call is), and
measures the time of one. A call may then take ``PATIENCE`` times as much as its pictures would, and ``CALL_S`` at
least. That is processor time of the child, which another load on the machine makes no longer; by the clock it may take
``CLOCK_FACTOR`` times that, in which it may wait. Calls of more pictures than ``CALL_MAX_S`` allows for are cut.

Memory: its address space is limited, or, on a GPU, its part of the machine's memory is looked at a few times a
second. At the limit ``OutOfMemory`` is raised, as for a GPU, and the caller tries fewer pictures.

Ends of the child: a crash is the file's fault (``InvalidTeacher``); a child that was ended from outside is started
again, a few times (``SessionLost``). Where CUDA does not work within the confinement, ``workers.teacher.teacher`` opens
the session without, and says so.

Legend: B pictures of a batch, N classes.
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import JsonValue

from workers.errors import InvalidTeacher, SessionLost
from workers.onnx.checks.teacher_graph import FixedInput
from workers.onnx.sessions.session import CPU, OnnxSession
from workers.onnx.sessions.session_child import InputRequest, Opened
from workers.onnx.sessions.session_memory import needed_bytes, share_bytes
from workers.onnx.sessions.session_process import Overdue, SessionProcess
from workers.onnx.sessions.shared_arrays import SharedArrays

OPEN_S = 600.0  # to begin, and to load and optimise the file
FIRST_S = 120.0  # for the call that measures the time of a picture
FIRST_BATCH = 5  # times that, where it is a batch
CALL_S = 60.0
PATIENCE = 30
CALL_MAX_S = 3600.0
LOST_ATTEMPTS_MAX = 3  # of the child in one call, each followed by another try
# Address space of a thread of ONNX Runtime: its stack, and what malloc sets aside for it.
THREAD_BYTES = 160 << 20


class SessionLimits(NamedTuple):
    """Limits of a session; see ``limits_of``.

    Attributes:
        memory_bytes: of address space; of the machine's memory, on a GPU.
    """

    memory_bytes: int
    open_s: float = OPEN_S
    first_s: float = FIRST_S
    call_s: float = CALL_S


def limits_of(path: Path, threads: int, sessions: int) -> SessionLimits:
    """Limits with memory for any file of that size, or this session's part of the machine's, if that is more.

    Args:
        threads: of the session.
        sessions: at work beside each other.
    """
    return SessionLimits(max(needed_bytes(path) + threads * THREAD_BYTES, share_bytes() // sessions))


class ConfinedSession:
    """Session of one file in a confined process; arguments and errors are as of ``session.OnnxSession``.

    Args:
        path, input_name, output_name, fixed, threads, providers: as of ``session.OnnxSession``.
        limits: of memory and time.
        is_confined: False leaves the child its system calls and files, for a GPU that does not work within.

    Attributes:
        provider, cpu_operators: as of ``session.OnnxSession``.
        missing: parts of the confinement that failed, see ``confinement.confine``.

    Raises:
        InvalidTeacher, DeviceUnavailable, OutOfMemory: as of ``session.OnnxSession``.
        SessionLost: the child could not start, or was ended from outside.
    """

    def __init__(
        self,
        path: Path,
        input_name: str,
        output_name: str,
        *,
        fixed: Sequence[FixedInput] = (),
        threads: int | None,
        providers: Sequence[Any] = CPU,
        limits: SessionLimits,
        is_confined: bool = True,
    ) -> None:
        self.is_confined = is_confined
        self.inputs = SharedArrays()
        self._limits = limits
        self._path = path.resolve()
        self._on_gpu = providers is not CPU
        self._arguments: dict[str, JsonValue] = {
            "path": str(self._path),
            "input_name": input_name,
            "output_name": output_name,
            "fixed": [each.model_dump(mode="json") for each in fixed],
            "threads": threads,
            "providers": list(providers) if self._on_gpu else None,
            "memory": self.inputs.descriptor,
        }
        # Seconds for one picture, by its shape.
        self._picture_s: dict[tuple[int, ...], float] = {}
        self._has_opened = False
        opened = self._start()
        self.provider = opened.provider
        self.cpu_operators = Counter(opened.cpu_operators)
        self.missing = tuple(opened.missing)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.number]:
        """Make an uninitialised array for an input, which ``run`` need not copy."""
        return self.inputs.empty(shape, dtype)

    def rows_in_time(self, input_: NDArray[np.number]) -> int:
        """Number of pictures of such an input, at least one, that a call can take within ``CALL_MAX_S``."""
        if input_.shape[1:] not in self._picture_s and not self._on_gpu and len(input_):
            self.run(input_[:1])
        picture_s = self._picture_s.get(input_.shape[1:], 0.0)
        return max(1, int(CALL_MAX_S / PATIENCE / picture_s)) if picture_s else max(1, len(input_))

    def run(self, input_: NDArray[np.number], timeout_s: float | None = None) -> NDArray[np.float32]:
        """Run: the output [B, N] for a batch as large as the graph takes.

        Args:
            timeout_s: of the first call with pictures of this shape, in place of its limit.

        Raises:
            InvalidTeacher: it cannot be computed, not within its time, or crashes; or it has another shape.
            OutOfMemory, DeviceUnavailable: as of ``session.OnnxSession``.
            SessionLost: the child was ended from outside, again and again.
        """
        offset = self.inputs.offset_of(input_)
        if offset is None:
            copy = self.inputs.empty(input_.shape, input_.dtype)
            np.copyto(copy, input_)
            offset, input_ = self.inputs.offset_of(copy), copy  # it stays where it is for as long as it has a name
            assert offset is not None
        request = InputRequest(offset=offset, shape=input_.shape, dtype=input_.dtype.name)
        for _ in range(LOST_ATTEMPTS_MAX):
            with contextlib.suppress(SessionLost):
                return self._run(request, timeout_s)
        return self._run(request, timeout_s)

    def _run(self, request: InputRequest, timeout_s: float | None) -> NDArray[np.float32]:
        if not self._child.is_alive:
            self._start()
        rows, picture = request.shape[0], request.shape[1:]
        picture_s = self._picture_s.get(picture)
        first_s = self._limits.first_s if timeout_s is None else timeout_s
        if rows > 1 and timeout_s is None:
            # Of a graph with a fixed batch the first call is a whole one.
            first_s *= FIRST_BATCH
        limit_s = first_s if picture_s is None else max(self._limits.call_s, PATIENCE * rows * picture_s)
        try:
            output_BN = self._child.output(request, limit_s, f"{rows} pictures")
        except Overdue:
            raise self._overdue(limit_s, f"{rows} pictures") from None
        each_s = self._child.spent_s / max(1, rows)
        # Libraries load in the first call: a later one may take less for a picture.
        self._picture_s[picture] = each_s if picture_s is None else min(picture_s, each_s)
        return output_BN

    def close(self) -> None:
        """End the child."""
        self._child.end()
        self.inputs.close()

    def _start(self) -> Opened:
        self._child = SessionProcess(
            self._path,
            self._arguments,
            descriptor=self.inputs.descriptor,
            memory_bytes=self._limits.memory_bytes,
            on_gpu=self._on_gpu,
            is_confined=self.is_confined,
            has_opened=self._has_opened,
        )
        try:
            opened = self._child.opened(self._limits.open_s)
        except Overdue:
            raise self._overdue(self._limits.open_s, "the file") from None
        self._has_opened = True
        return opened

    def _overdue(self, limit_s: float, what: str) -> InvalidTeacher:
        """Error of a child that has used its time."""
        known = ", ".join(f"{seconds:.3g} s" for seconds in self._picture_s.values())
        before = f"; a picture alone took {known}" if known else ""
        return InvalidTeacher(
            f"the teacher did not finish {what} within {limit_s:.0f} s of processor time{before}. Its process was "
            "ended: a graph that loops on some inputs, or at some batch size, cannot be used. Export the network "
            "itself, without loops"
        )


AnySession = OnnxSession | ConfinedSession
