"""Sandbox: call a function in a child process that confines itself first, to read and run files of strangers.

``call`` waits for one answer; ``serve`` starts a child that answers requests until it is ended. The child is a fresh
interpreter, without its parent's environment but for the path of libraries, in a session of its own. Before it imports
the function it drops the rights that ``workers.onnx.sandboxing.confinement`` lists; it may then read Python's own files
and those it was given, and answer through a pipe. In ``call`` the parent waits so many seconds, reads so many bytes,
and then kills the child with its group. A child whose parent dies, dies, too. The last lines of its standard error are
logged if it ends without an answer; they never reach the terminal as they are.

It is no virtual machine: a hole in the kernel's own interface, as far as the filter leaves it within reach, is a way
out. Run the service as a user without other rights, as the container images do.
"""

import functools
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from workers.errors import SessionLost, WorkerError
from workers.onnx.sandboxing.confinement import Bounds
from workers.onnx.sandboxing.sandbox_child import ROOT
from workers.texts import printable

ANSWER_MAX_BYTES = 1 << 20
# Of the child's standard error: bytes kept while it runs, then lines and characters of a message.
_STDERR_BYTES = 8 << 10
_STDERR_LINES = 4
_STDERR_CHARS = 600
# At which a child reads what is large from a slow disk, once.
_READING_BYTES_PER_S = 64 << 20
# -I ignores the environment and the working directory, so the place of this package is handed over.
_START = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from workers.onnx.sandboxing import sandbox_child; sandbox_child.{}(sys.argv[2])"
)
# Variables that choose the devices; all others stay behind.
_GPU_VARIABLES = ("CUDA_", "NVIDIA_", "CUDNN_", "CUBLAS_")

_logger = logging.getLogger(__name__)


class SandboxOutcome(NamedTuple):
    """Outcome of a call.

    Attributes:
        value: what the function returned; None if there is a breach.
        breach: which bound it broke, to follow a subject in a sentence ("takes longer than the 5 s allowed"); or None.
    """

    value: JsonValue
    breach: str | None


class _ChildAnswer(BaseModel):
    """Answer of a child; without ``value`` or ``raised`` the memory was not enough."""

    model_config = ConfigDict(extra="forbid")

    missing: Annotated[list[str], Field(max_length=8)]
    value: JsonValue = None
    raised: str | None = None


def with_reading(timeout_s: float, size_bytes: int) -> float:
    """Seconds for a child that has so many bytes to read, or to write, beside the ``timeout_s`` for its work."""
    return timeout_s + size_bytes // _READING_BYTES_PER_S


def call(
    target: str,
    arguments: Mapping[str, JsonValue],
    *,
    readable: Sequence[Path] = (),
    memory_bytes: int,
    timeout_s: float,
    descriptors: Sequence[int] = (),
    data_bytes: int | None = None,
) -> SandboxOutcome:
    """Call ``module:function(**arguments)`` in a confined child.

    Args:
        target: must be importable from the folder that holds ``workers``; its result must fit into JSON.
        readable: files that it may read.
        memory_bytes: of address space.
        timeout_s: wall-clock seconds; it has as many of processor time.
        descriptors: that the child has under the same numbers.
        data_bytes: of memory that it writes to, where that is less than its address space.

    Raises:
        SessionLost: the child was ended from outside.
        WorkerError: it could not start, or the function raised.
    """
    deadline_s = time.monotonic() + timeout_s
    bounds = Bounds(memory_bytes, max(1, round(timeout_s)), data_bytes=data_bytes)
    with _start(
        "child",
        target,
        arguments,
        readable=readable,
        bounds=bounds,
        stdin=subprocess.DEVNULL,
        descriptors=descriptors,
    ) as process:
        stderr = bytearray()
        try:
            text = _read(process, stderr, deadline_s)
            process.wait(max(0.0, deadline_s - time.monotonic()))
            outcome = _outcome(text, process.returncode, timeout_s, data_bytes or memory_bytes, said=last_lines(stderr))
        except subprocess.TimeoutExpired:
            outcome = SandboxOutcome(None, f"takes longer than the {timeout_s:g} s allowed")
        except _TooLong:
            outcome = SandboxOutcome(
                None, f"has an answer of more than {ANSWER_MAX_BYTES} bytes: it is damaged or hostile"
            )
        except WorkerError:
            _log_stderr(target, stderr)
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if outcome.breach is not None:
        _log_stderr(target, stderr)
    return outcome


def serve(
    target: str,
    arguments: Mapping[str, JsonValue],
    *,
    readable: Sequence[Path],
    bounds: Bounds,
    descriptors: Sequence[int],
    is_confined: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a confined child that runs ``module:function(requests, answers, missing, **arguments)``.

    ``requests`` and ``answers`` are the other ends of the process's ``stdin`` and ``stdout``, ``missing`` is what
    ``confine`` returned. It ends when its function returns, or with the thread that has started it.

    Args:
        target, readable: as of ``call``.
        descriptors: that the child has under the same numbers.
        is_confined: False leaves out ``confine``: it is a process of its own, and that is all.
    """
    entry = "server" if is_confined else "free_server"
    return _start(
        entry,
        target,
        arguments,
        readable=readable,
        bounds=bounds,
        stdin=subprocess.PIPE,
        descriptors=descriptors,
    )


def _start(
    entry: str,
    target: str,
    arguments: Mapping[str, JsonValue],
    *,
    readable: Sequence[Path],
    bounds: Bounds,
    stdin: int,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    request = {
        "target": target,
        "arguments": arguments,
        "readable": [str(path) for path in readable],
        "bounds": bounds,
        "parent": os.getpid(),
    }
    # One BLAS thread: each would reserve address space, which is what the child's memory limit counts.
    environment = {"OPENBLAS_NUM_THREADS": "1", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    if bounds.gpu:
        environment |= {name: value for name, value in os.environ.items() if name.startswith(_GPU_VARIABLES)}
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", _START.format(entry), str(ROOT), json.dumps(request)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
        pass_fds=descriptors,
    )


class _TooLong(Exception):
    """The child's answer has more than ``ANSWER_MAX_BYTES``."""


def _read(process: subprocess.Popen[bytes], stderr: bytearray, deadline_s: float) -> bytes:
    """Read the child's answer; the end of its standard error goes to ``stderr``. Raises TimeoutExpired, _TooLong."""
    assert process.stdout is not None
    assert process.stderr is not None
    text = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, text)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        while selector.get_map():
            left_s = deadline_s - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                raise subprocess.TimeoutExpired(process.args, left_s)
            for key, _ in ready:
                received = os.read(key.fd, 1 << 16)
                key.data.extend(received)
                if not received:
                    selector.unregister(key.fileobj)
            del stderr[:-_STDERR_BYTES]
            if len(text) > ANSWER_MAX_BYTES:
                raise _TooLong
    return bytes(text)


def last_lines(stderr: bytes | bytearray) -> str:
    """Last lines of a standard error as one line without control characters; may be empty."""
    lines = [line.strip() for line in bytes(stderr).decode(errors="replace").splitlines()]
    text = " | ".join([line for line in lines if line][-_STDERR_LINES:])
    return printable(text.replace("\t", " "))[-_STDERR_CHARS:]


def signal_name(number: int) -> str:
    """Name of a signal: ``SIGSEGV`` for 11."""
    return {known.value: known.name for known in signal.Signals}.get(number, f"signal {number}")


def _log_stderr(target: str, stderr: bytearray) -> None:
    said = last_lines(stderr)
    if said:
        _logger.warning("a confined process (%s) gave no answer; its standard error ends: %s", target, said)


def _outcome(text: bytes, returncode: int, timeout_s: float, memory_bytes: int, *, said: str = "") -> SandboxOutcome:
    last = f". It says last: {said}" if said else ""
    if returncode < 0:
        name = signal_name(-returncode)
        if name == "SIGXCPU":
            return SandboxOutcome(None, f"takes longer than the {timeout_s:g} s of processor time allowed")
        if name == "SIGKILL":  # not ours: we read no outcome of a child that we kill
            raise SessionLost(
                f"a confined process was ended from outside ({name}), as the kernel does where the machine has no "
                f"memory left: try again when it has{last}"
            )
        return SandboxOutcome(None, f"crashes its reader ({name}): it is damaged or hostile{last}")
    if not text:
        raise WorkerError(f"a confined process could not run (exit status {returncode}){last}")
    try:
        answer = _ChildAnswer.model_validate_json(text)
    except ValidationError:
        # A file that has taken over the child may write anything.
        return SandboxOutcome(None, "has an answer that cannot be read: it is damaged or hostile")
    for what in answer.missing:
        _warn_once(what)
    if answer.raised is not None:
        raise WorkerError(f"a confined process failed: {answer.raised}")
    if "value" not in answer.model_fields_set:
        return SandboxOutcome(None, f"needs more memory than the {memory_bytes} bytes allowed")
    return SandboxOutcome(answer.value, None)


@functools.lru_cache(maxsize=16)
def _warn_once(what: str) -> None:
    _logger.warning("uploads are read without %s: the other bounds hold", what)
