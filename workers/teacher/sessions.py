"""Sessions of ONNX Runtime behind a teacher: on which device, in this process or a confined one, and why there.

``cuda`` is a promise: CUDA is used or there is no session, for ONNX Runtime itself would fall back without a word.
``auto`` takes CUDA where it works. A session of an untrusted file runs in a confined process (``confined_session``).
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workers.devices import cuda_failure
from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory
from workers.onnx.checks.teacher_graph import TeacherGraph
from workers.onnx.sessions.confined_session import AnySession, ConfinedSession, limits_of
from workers.onnx.sessions.gpu_confinement import confinement_failure
from workers.onnx.sessions.session import OnnxSession, cuda_providers, has_cuda, open_on_cuda
from workers.onnx.sessions.shared_arrays import SharedArrays

Device = Literal["auto", "cpu", "cuda"]


class OpenedSession(NamedTuple):
    """A session, and how to open another.

    Attributes:
        session: on the best device allowed.
        reason: why it is on that device, as a sentence's part.
        reopen: opens another one on the same device.
        open_on_cpu: opens one on the CPU.
    """

    session: AnySession
    reason: str
    reopen: Callable[[], AnySession]
    open_on_cpu: Callable[[], AnySession]


def open_session(
    path: Path,
    graph: TeacherGraph,
    device: Device,
    memory_fraction: float,
    *,
    threads: int | None,
    sessions: int | None,
    confine_on_gpu: bool,
) -> OpenedSession:
    """Open a session for a file on the best device allowed.

    Args:
        path: the ONNX file.
        graph: what it declares.
        device, memory_fraction, threads, sessions, confine_on_gpu: see ``teacher.Teacher``.

    Raises:
        DeviceUnavailable: ``device`` is ``cuda`` and CUDA does not work.
        InvalidTeacher, OutOfMemory, SessionLost: as of ``OnnxSession`` and ``ConfinedSession``.
    """
    kind: Callable[..., AnySession] = OnnxSession
    if sessions is not None:
        limits = limits_of(path, threads or os.cpu_count() or 1, sessions)
        kind = functools.partial(ConfinedSession, limits=limits)
    on_cpu = functools.partial(kind, path, graph.inputs[0].name, graph.output, fixed=graph.fixed, threads=threads)
    confine = None if sessions is None else confine_on_gpu
    reopen, session, reason = _open(on_cpu, device, memory_fraction, graph, confine=confine)
    return OpenedSession(session, reason, reopen, on_cpu)


def shared_inputs(session: AnySession) -> SharedArrays | None:
    """Memory that the session's own process sees; None of a session in this process."""
    return session.inputs if isinstance(session, ConfinedSession) else None


def session_warnings(session: AnySession, device: str) -> tuple[str, ...]:
    """Sentences for a person about how a session runs.

    Args:
        device: the GPU's name, for a session on CUDA.
    """
    warnings = []
    if isinstance(session, ConfinedSession) and session.missing:
        warnings.append(
            f"the teacher's process runs without {' and without '.join(session.missing)}; its limits of time and "
            "memory hold: use teachers that you trust on such a machine"
        )
    operators = session.cpu_operators
    if operators:
        listed = ", ".join(f"{name} ({count})" for name, count in operators.most_common(8))
        warnings.append(
            f"{operators.total()} operators of the teacher run on the CPU, as ONNX Runtime has no CUDA kernel for "
            f"them: {listed}. Export it with others to have all of it on {device}"
        )
    return tuple(warnings)


def rows_in_time(session: AnySession, input_: NDArray[np.number], rows: int) -> int:
    """``rows`` of a call, or as many as a confined session's limit of time allows."""
    return min(rows, session.rows_in_time(input_)) if isinstance(session, ConfinedSession) else rows


def run_in_calls(
    session: AnySession,
    input_: NDArray[np.number],
    rows: int,
    *,
    is_filled: bool,
    timeout_s: float | None = None,
) -> NDArray[np.float32]:
    """The output [B, N], from calls of ``rows`` pictures.

    Args:
        is_filled: whether a smaller last call is filled by repeating its last picture.
        timeout_s: see ``OnnxSession.run``.
    """
    parts = []
    for start in range(0, max(1, len(input_)), rows):
        part = input_[start : start + rows]
        missing = rows - len(part) if is_filled else 0
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append(session.run(filled, timeout_s)[: len(part)])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _open(
    on_cpu: Callable[..., AnySession],
    device: Device,
    memory_fraction: float,
    graph: TeacherGraph,
    *,
    confine: bool | None,
) -> tuple[Callable[[], AnySession], AnySession, str]:
    """Open a session on the best device allowed; returns how to open another, the session, and why it is there.

    Args:
        confine: whether the process that a session on CUDA has of its own is confined; None is this process.
    """
    absent = "asked for"
    if device == "auto" and not torch.cuda.is_available():
        absent = "no CUDA device is visible"
    elif device != "cpu":
        try:
            on_cuda = _on_cuda(on_cpu, memory_fraction, graph, confine=confine)
            return on_cuda, on_cuda(), f"{torch.cuda.get_device_name(0)} is there"
        except OutOfMemory as error:
            if device == "cuda":
                raise
            absent = str(error)
        except DeviceUnavailable as error:
            if device == "cuda":
                raise DeviceUnavailable(
                    f"the teacher was to run on a GPU, but {error}. Mend that (`retort doctor` says what is missing), "
                    "or choose the CPU for the whole service: RETORT_GPUS=0"
                ) from error
            absent = str(error)
    return on_cpu, on_cpu(), absent


def memory_limit(memory_fraction: float) -> str:
    """Memory that a session on CUDA may take, and how to have it take more, as a sentence's part."""
    memory_bytes = memory_fraction * torch.cuda.get_device_properties(0).total_memory
    of_all = f"{memory_bytes / 2**30:.2f} GiB, {memory_fraction:g} of the memory of {torch.cuda.get_device_name(0)}"
    more = "; a larger RETORT_GPU_SHARE gives it more" if memory_fraction < 1.0 else ""
    return f"{of_all}{more}"


def _on_cuda(
    on_cpu: Callable[..., AnySession], memory_fraction: float, graph: TeacherGraph, *, confine: bool | None
) -> Callable[[], AnySession]:
    """Return how to open a session on CUDA, as a function. Raises DeviceUnavailable, saying why there is none."""
    why_not = cuda_failure() if has_cuda() else "the installed ONNX Runtime has no CUDA provider (onnxruntime-gpu)"
    if why_not is not None:
        raise DeviceUnavailable(why_not)
    memory_bytes = int(memory_fraction * torch.cuda.get_device_properties(0).total_memory)
    providers = cuda_providers(memory_bytes, is_half=graph.is_half)

    def open_session() -> AnySession:
        try:
            if confine is None:
                return open_on_cuda(functools.partial(on_cpu, providers=providers))
            # Whether that works is found out with a file of our own: a stranger's could fail on purpose.
            return on_cpu(providers=providers, is_confined=confine and confinement_failure() is None)
        except OutOfMemory as error:
            raise OutOfMemory(f"{error}. The limit is {memory_limit(memory_fraction)}") from error
        except InvalidTeacher as error:
            raise DeviceUnavailable(str(error)) from error

    return open_session
