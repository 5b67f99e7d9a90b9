"""An ONNX Runtime session in a confined child process, with limits of memory and time: what a job runs a teacher in.

A file that passed every check is a stranger's program still, and may do on the five-hundredth picture what it did on
none before. So the process that holds the service's keys and files never runs it. The child is confined as one that
reads an upload (``workers.onnx.sandbox``); inputs lie in memory that both map (``workers.onnx.shared_arrays``), outputs
come through a pipe.

Time: the first picture of each shape is run alone (on a GPU, and of a graph with a fixed batch, the first call is), and
tells what one takes. A call may then take ``PATIENCE`` times as much as its pictures would, and ``CALL_S`` at least.
That is processor time of the child, which another load on the machine makes no longer; by the clock it may take
``CLOCK_FACTOR`` times that, whatever it waits for. Calls of more pictures than ``CALL_MAX_S`` allows for are cut.

Memory: its address space is limited, or, on a GPU, what it holds of the machine's memory is looked at a few times a
second. At the limit the caller hears ``OutOfMemory``, as of a GPU, and tries fewer pictures.

Ends of the child: a crash is the file's fault (``InvalidTeacher``); what somebody else ended is started again, a few
times (``SessionLost``). Where CUDA does not work within the confinement, ``workers.teacher.teacher`` opens the session
without, and says so.

Legend: B pictures of a batch, N classes.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ValidationError

from store.memory_limit import memory_bytes
from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, SessionLost
from workers.onnx import sandbox
from workers.onnx.check import size_of
from workers.onnx.confinement import Bounds
from workers.onnx.session import CPU, OnnxSession
from workers.onnx.session_child import Opened, Output, Refused, Request
from workers.onnx.shared_arrays import SharedArrays
from workers.onnx.smoke_test import FILE_COPIES
from workers.onnx.versions import RUNTIME_BYTES
from workers.texts import printable

OPEN_S = 600.0  # to begin, and to load and optimise the file
FIRST_S = 120.0  # for what tells how long a picture takes
FIRST_BATCH = 5  # times that, where it is a batch
CALL_S = 60.0
PATIENCE = 30
CALL_MAX_S = 3600.0
CLOCK_FACTOR = 10
LOST_ATTEMPTS_MAX = 3  # of the child in one call, each followed by another try
LOOK_S = 0.25
# A process that was stopped with everything around it (a paused container) has not used the time in between.
_STEP_MAX_S = 1.0
# Address space of a thread of ONNX Runtime: its stack, and what malloc sets aside for it.
THREAD_BYTES = 160 << 20
# Of the machine's memory, all sessions that are at work beside each other together.
MEMORY_SHARE = 0.5
_HEADER_MAX_BYTES = 64 << 10
_OUTPUT_MAX_BYTES = 1 << 30
_STDERR_BYTES = 8 << 10
# For a child that answers no more to say why and end by itself.
_LAST_WORDS_S = 3.0
# Of clock_getcpuclockid(3): the clock of a process's time on the cores is numbered by its id.
_PROCESS_CLOCK = 2
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
_ERRORS = {"InvalidTeacher": InvalidTeacher, "OutOfMemory": OutOfMemory, "DeviceUnavailable": DeviceUnavailable}

_Reply = TypeVar("_Reply", bound=BaseModel)


class Limits(NamedTuple):
    """What a session may use; see ``limits_of``.

    Attributes:
        memory_bytes: of address space; of the machine's memory, on a GPU.
    """

    memory_bytes: int
    open_s: float = OPEN_S
    first_s: float = FIRST_S
    call_s: float = CALL_S


def limits_of(path: Path, threads: int, sessions: int) -> Limits:
    """Room for any file of that size, or this session's part of the machine's memory, if that is more.

    Args:
        threads: of the session.
        sessions: at work beside each other.
    """
    needed = RUNTIME_BYTES + FILE_COPIES * size_of(path) + threads * THREAD_BYTES
    return Limits(max(needed, int(MEMORY_SHARE * memory_bytes()) // sessions))


class _Overdue(Exception):
    """A call has used its time, or its memory."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class ConfinedSession:
    """One file, ready to run; what it is given and raises is as of ``session.OnnxSession``.

    Args:
        path, input_name, output_name, threads, providers: as of ``session.OnnxSession``.
        limits: what it may use.
        is_confined: False leaves the child its system calls and files, for a GPU that does not work within.

    Attributes:
        provider, cpu_operators: as of ``session.OnnxSession``.
        missing: what could not be taken from the child, see ``confinement.confine``.

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
        threads: int | None,
        providers: Sequence[Any] = CPU,
        limits: Limits,
        is_confined: bool = True,
    ) -> None:
        self.is_confined = is_confined
        self.inputs = SharedArrays()
        self._limits = limits
        self._path = path.resolve()
        self._on_gpu = providers is not CPU
        self._arguments: dict[str, sandbox.Json] = {
            "path": str(self._path),
            "input_name": input_name,
            "output_name": output_name,
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

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.floating]:
        """An uninitialised array for an input, which ``run`` need not copy."""
        return self.inputs.empty(shape, dtype)

    def rows_in_time(self, input_: NDArray[np.floating]) -> int:
        """Pictures of such an input, at least one, for which a call would have no more than ``CALL_MAX_S``."""
        if input_.shape[1:] not in self._picture_s and not self._on_gpu and len(input_):
            self.run(input_[:1])
        picture_s = self._picture_s.get(input_.shape[1:], 0.0)
        return max(1, int(CALL_MAX_S / PATIENCE / picture_s)) if picture_s else max(1, len(input_))

    def run(self, input_: NDArray[np.floating], timeout_s: float | None = None) -> NDArray[np.float32]:
        """The output [B, N] for a batch as large as the graph takes.

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
        request = Request(offset=offset, shape=input_.shape, dtype=input_.dtype.name)
        for _ in range(LOST_ATTEMPTS_MAX):
            with contextlib.suppress(SessionLost):
                return self._run(request, timeout_s)
        return self._run(request, timeout_s)

    def _run(self, request: Request, timeout_s: float | None) -> NDArray[np.float32]:
        if self._process.poll() is not None:
            self._start()
        rows, picture = request.shape[0], request.shape[1:]
        picture_s = self._picture_s.get(picture)
        first_s = self._limits.first_s if timeout_s is None else timeout_s
        if rows > 1 and timeout_s is None:
            # Of a graph with a fixed batch the first call is a whole one.
            first_s *= FIRST_BATCH
        limit_s = first_s if picture_s is None else max(self._limits.call_s, PATIENCE * rows * picture_s)
        began_s = time.monotonic()
        self._ask(request)
        try:
            reply = self._hear(Output, limit_s, f"{rows} pictures")
            body = self._read(self._body_bytes(reply, rows), limit_s, f"{rows} pictures")
        except _Overdue as overdue:
            raise overdue.error from None
        # The clock's time is another load's as well, but a GPU's work takes no processor time here.
        spent_s = time.monotonic() - began_s if self._on_gpu else self._processor_s() - self._used_s
        each_s = max(0.0, spent_s) / max(1, rows)
        # Libraries load in the first call: a later one may take less for a picture.
        self._picture_s[picture] = each_s if picture_s is None else min(picture_s, each_s)
        return np.frombuffer(body, np.float32).reshape(reply.rows, reply.classes)

    def close(self) -> None:
        """End the child."""
        self._end()
        self.inputs.close()

    # ------------------------------------------------------------------------------------------------- the child

    def _start(self) -> Opened:
        bounds = Bounds(None if self._on_gpu else self._limits.memory_bytes, None, gpu=self._on_gpu)
        self._process = process = sandbox.serve(
            "workers.onnx.session_child:serve",
            self._arguments,
            readable=[self._path],
            bounds=bounds,
            descriptors=[self.inputs.descriptor],
            is_confined=self.is_confined,
        )
        self._stderr, self._pending = bytearray(), bytearray()
        self._hears_stderr = True
        self._end = weakref.finalize(self, _end, process)
        try:
            opened = self._hear(Opened, self._limits.open_s, "the file")
        except _Overdue as overdue:
            raise overdue.error from None
        self._has_opened = True
        return opened

    def _ask(self, request: Request) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it says on its way out is heard instead
            self._process.stdin.write(request.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    def _hear(self, kind: type[_Reply], limit_s: float, what: str) -> _Reply:
        """The next answer. Raises what it says was raised."""
        self._waited_s, self._used_s, self._looked_s = 0.0, self._processor_s(), time.monotonic()
        while b"\n" not in self._pending:
            if len(self._pending) > _HEADER_MAX_BYTES:
                raise self._ended(f"an answer of ours to {what}")
            self._receive(limit_s, what)
        line, _, rest = self._pending.partition(b"\n")
        self._pending = rest
        for expected in (kind, Refused):
            with contextlib.suppress(ValidationError):
                reply = expected.model_validate_json(bytes(line))
                if isinstance(reply, Refused):
                    break
                return reply
        else:
            raise self._ended(f"an answer of ours to {what}")
        raise _ERRORS[reply.error](printable(reply.message))

    def _body_bytes(self, reply: Output, rows: int) -> int:
        size = reply.rows * reply.classes * 4
        if reply.rows != rows or size > _OUTPUT_MAX_BYTES:
            raise self._ended(f"an output for {rows} pictures")
        return size

    def _read(self, size: int, limit_s: float, what: str) -> bytearray:
        while len(self._pending) < size:
            self._receive(limit_s, what)
        body, self._pending = self._pending[:size], self._pending[size:]
        return body

    def _receive(self, limit_s: float, what: str) -> None:
        """Wait for more of an answer, and see to the limits. Raises _Overdue, InvalidTeacher, SessionLost."""
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if self._hears_stderr:
                selector.register(process.stderr, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(LOOK_S)}
        now_s = time.monotonic()
        self._waited_s += min(now_s - self._looked_s, _STEP_MAX_S)
        self._looked_s = now_s
        if process.stderr in ready:
            self._hear_stderr()
        if process.stdout in ready:
            received = os.read(process.stdout.fileno(), 1 << 20)
            if not received:
                raise self._lost(what)
            self._pending += received
            return
        if process.stderr in ready and process.poll() is not None:
            return
        spent_s = max(self._processor_s() - self._used_s, self._waited_s / CLOCK_FACTOR)
        if spent_s > limit_s:
            self._end()
            raise _Overdue(self._too_late(limit_s, what))
        if self._on_gpu and _anonymous_bytes(process.pid) > self._limits.memory_bytes:
            self._end()
            raise _Overdue(
                OutOfMemory(f"no memory for {what} at once: the teacher's process took more than {self._memory}")
            )

    @property
    def _memory(self) -> str:
        return f"the {self._limits.memory_bytes / 2**30:.1f} GiB of memory that it may take"

    def _too_late(self, limit_s: float, what: str) -> InvalidTeacher:
        known = ", ".join(f"{seconds:.3g} s" for seconds in self._picture_s.values())
        before = f"; a picture alone took {known}" if known else ""
        return InvalidTeacher(
            f"the teacher did not finish {what} within {limit_s:.0f} s of processor time{before}. Its process was "
            "ended: a graph that loops on some inputs, or at some batch size, cannot be used. Export the network "
            "itself, without loops"
        )

    def _ended(self, what: str) -> InvalidTeacher:
        """The error of a child that answers otherwise than ours does; it is ended."""
        self._end()
        return InvalidTeacher(f"the teacher's process does not give {what}: the file is damaged or hostile")

    def _hear_stderr(self) -> None:
        """Keep the end of what the child says beside its answers."""
        assert self._process.stderr is not None
        said = os.read(self._process.stderr.fileno(), 1 << 16)
        # Where its end is closed, it would be ready for ever.
        self._hears_stderr = bool(said)
        self._stderr += said
        del self._stderr[:-_STDERR_BYTES]

    def _hear_out(self) -> None:
        """Wait a little for the child's end, and hear what it says on its way."""
        assert self._process.stderr is not None
        until_s = time.monotonic() + _LAST_WORDS_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stderr, selectors.EVENT_READ)
            while self._hears_stderr and (left_s := until_s - time.monotonic()) > 0:
                if selector.select(left_s):
                    self._hear_stderr()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until_s - time.monotonic()))

    def _lost(self, what: str) -> InvalidTeacher | OutOfMemory | SessionLost | DeviceUnavailable:
        """The error of a child that is gone, or is about to end: it has closed its answers."""
        self._hear_out()
        self._end()
        code = self._process.returncode
        said = sandbox.last_lines(self._stderr)
        last = f". It says last: {said}" if said else ""
        if -code in _CRASHES:
            memory = "" if self._on_gpu else f" (it may take {self._limits.memory_bytes / 2**30:.1f} GiB of memory)"
            return InvalidTeacher(
                f"the teacher crashed its process ({sandbox.signal_name(-code)}) with {what}{memory}: the file is "
                f"damaged or hostile, or its operators are broken in this ONNX Runtime. Export it with others{last}"
            )
        if code > 0 and self._on_gpu and not self._has_opened:
            return DeviceUnavailable(f"the teacher's process ended with exit status {code}, with {what}{last}")
        how = f"by {sandbox.signal_name(-code)}" if code < 0 else f"with exit status {code}"
        out_of_memory = ", as the kernel does where the machine has no memory left" if -code == signal.SIGKILL else ""
        return SessionLost(f"the teacher's process ended {how}{out_of_memory}, with {what}{last}")

    def _processor_s(self) -> float:
        """Processor time of the child up to now, all its threads together; 0 of one that is gone."""
        with contextlib.suppress(OSError):
            return time.clock_gettime(~self._process.pid << 3 | _PROCESS_CLOCK)
        return 0.0


AnySession = OnnxSession | ConfinedSession


def _anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs: what its libraries map is not counted."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and collect it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()
