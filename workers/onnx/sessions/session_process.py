"""Process of a confined session: requests and answers by pipes, within limits of time and memory.

A request is a line of JSON, an answer another one, with an output behind it (``session_child``). While an answer is
awaited, the process's time and memory are looked at every ``LOOK_S``; its end is raised as the error of its cause.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue, ValidationError

from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, SessionLost
from workers.onnx.sandboxing import sandbox
from workers.onnx.sandboxing.confinement import Bounds
from workers.onnx.sessions.session_child import InputRequest, Opened, Output, Refused
from workers.texts import printable

CLOCK_FACTOR = 10
LOOK_S = 0.25
# A process that was stopped with everything around it (a paused container) has not used the time in between.
_STEP_MAX_S = 1.0
_HEADER_MAX_BYTES = 64 << 10
_OUTPUT_MAX_BYTES = 1 << 30
_STDERR_BYTES = 8 << 10
# For a child that closed its answers to print its error and end.
_LAST_OUTPUT_S = 3.0
# Of clock_getcpuclockid(3): the clock of a process's time on the cores is numbered by its id.
_PROCESS_CLOCK = 2
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
_ERRORS = {"InvalidTeacher": InvalidTeacher, "OutOfMemory": OutOfMemory, "DeviceUnavailable": DeviceUnavailable}

_Reply = TypeVar("_Reply", bound=BaseModel)


class Overdue(Exception):
    """A call has used its time; the process is ended."""


class SessionProcess:
    """Confined process that opens one file and answers requests.

    Args:
        path: of the ONNX file, which it may read.
        arguments: of ``session_child.serve``.
        descriptor: of the shared memory of the inputs.
        memory_bytes: of address space; of the machine's memory, on a GPU.
        on_gpu: whether it uses the GPUs.
        is_confined: False leaves it its system calls and files.
        has_opened: whether another process has opened this file here: then its device works.

    Attributes:
        spent_s: seconds that the last output took: of processor time, or of the clock on a GPU.
    """

    def __init__(
        self,
        path: Path,
        arguments: Mapping[str, JsonValue],
        *,
        descriptor: int,
        memory_bytes: int,
        on_gpu: bool,
        is_confined: bool,
        has_opened: bool,
    ) -> None:
        self.spent_s = 0.0
        self._memory_bytes = memory_bytes
        self._on_gpu = on_gpu
        self._has_opened = has_opened
        self.process = sandbox.serve(
            "workers.onnx.sessions.session_child:serve",
            arguments,
            readable=[path],
            bounds=Bounds(None if on_gpu else memory_bytes, None, gpu=on_gpu),
            descriptors=[descriptor],
            is_confined=is_confined,
        )
        self._stderr, self._pending = bytearray(), bytearray()
        self._reads_stderr = True
        self.end = weakref.finalize(self, _end, self.process)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def opened(self, limit_s: float) -> Opened:
        """Wait until the file is open.

        Raises:
            Overdue, OutOfMemory, InvalidTeacher, DeviceUnavailable, SessionLost: it is not.
        """
        opened = self._next_answer(Opened, limit_s, "the file")
        self._has_opened = True
        return opened

    def output(self, request: InputRequest, limit_s: float, what: str) -> NDArray[np.float32]:
        """The output [B, N] for an input [B, ...] in the shared memory.

        Args:
            request: where the input lies.
            limit_s: seconds that it may take.
            what: the input, for the message of an error.

        Raises:
            Overdue, OutOfMemory, InvalidTeacher, DeviceUnavailable, SessionLost: there is none.
        """
        began_s = time.monotonic()
        self._ask(request)
        reply = self._next_answer(Output, limit_s, what)
        body = self._read(self._body_bytes(reply, request.shape[0]), limit_s, what)
        # The clock's time is another load's as well, but a GPU's work takes no processor time here.
        spent_s = time.monotonic() - began_s if self._on_gpu else self._processor_s() - self._used_s
        self.spent_s = max(0.0, spent_s)
        return np.frombuffer(body, np.float32).reshape(reply.rows, reply.classes)

    def _ask(self, request: InputRequest) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its standard error is read instead
            self.process.stdin.write(request.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()

    def _next_answer(self, kind: type[_Reply], limit_s: float, what: str) -> _Reply:
        """Wait for the next answer. Raises the error that it reports."""
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
        """Wait for more of an answer, within the limits. Raises Overdue, OutOfMemory, InvalidTeacher, SessionLost."""
        process = self.process
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if self._reads_stderr:
                selector.register(process.stderr, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(LOOK_S)}
        now_s = time.monotonic()
        self._waited_s += min(now_s - self._looked_s, _STEP_MAX_S)
        self._looked_s = now_s
        if process.stderr in ready:
            self._read_stderr()
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
            self.end()
            raise Overdue
        if self._on_gpu and _anonymous_bytes(process.pid) > self._memory_bytes:
            self.end()
            limit = f"the {self._memory_bytes / 2**30:.1f} GiB of memory that it may take"
            raise OutOfMemory(f"no memory for {what} at once: the teacher's process took more than {limit}")

    def _ended(self, what: str) -> InvalidTeacher:
        """Error of a child with an answer that this package does not write; the child is ended."""
        self.end()
        return InvalidTeacher(f"the teacher's process does not give {what}: the file is damaged or hostile")

    def _read_stderr(self) -> None:
        """Read standard error of the child and keep its end."""
        assert self.process.stderr is not None
        said = os.read(self.process.stderr.fileno(), 1 << 16)
        # Where its end is closed, it would be ready for ever.
        self._reads_stderr = bool(said)
        self._stderr += said
        del self._stderr[:-_STDERR_BYTES]

    def _await_end(self) -> None:
        """Wait a little for the child's end, and read its standard error meanwhile."""
        assert self.process.stderr is not None
        until_s = time.monotonic() + _LAST_OUTPUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while self._reads_stderr and (left_s := until_s - time.monotonic()) > 0:
                if selector.select(left_s):
                    self._read_stderr()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until_s - time.monotonic()))

    def _lost(self, what: str) -> InvalidTeacher | OutOfMemory | SessionLost | DeviceUnavailable:
        """Error of a child that is gone, or is about to end: it has closed its answers."""
        self._await_end()
        self.end()
        code = self.process.returncode
        said = sandbox.last_lines(self._stderr)
        last = f". It says last: {said}" if said else ""
        if -code in _CRASHES:
            memory = "" if self._on_gpu else f" (it may take {self._memory_bytes / 2**30:.1f} GiB of memory)"
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
            return time.clock_gettime(~self.process.pid << 3 | _PROCESS_CLOCK)
        return 0.0


def _anonymous_bytes(pid: int) -> int:
    """Bytes of memory of a process that no file backs: mapped libraries are not counted."""
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
