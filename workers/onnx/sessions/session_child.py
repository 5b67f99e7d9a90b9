"""Child of a ``workers.onnx.sessions.confined_session``: one ONNX Runtime session that answers batch after batch.

A request is a line of JSON with the place of the input in the shared memory; an answer is a line of JSON and, for an
output, its bytes.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.errors import DeviceUnavailable, OutOfMemory, WorkerError
from workers.onnx.checks.teacher_graph import FixedInput
from workers.onnx.sessions.session import OnnxSession, open_on_cuda
from workers.onnx.sessions.shared_arrays import SharedReader

MESSAGE_MAX = 2000  # characters


class InputRequest(BaseModel):
    """Request to run an input, C-contiguous at ``offset`` of the shared memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: int
    shape: tuple[int, ...]
    dtype: Literal["float16", "float32", "uint8"]


class Opened(BaseModel):
    """Answer: the session is open.

    Attributes:
        provider, cpu_operators: see ``session.OnnxSession``.
        missing: of the confinement, see ``confinement.confine``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str = Field(max_length=100)
    cpu_operators: dict[str, int] = Field(max_length=1000)
    missing: list[str] = Field(max_length=8)


class Refused(BaseModel):
    """Answer: the error that a session or a run has raised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: Literal["InvalidTeacher", "OutOfMemory", "DeviceUnavailable"]
    message: str = Field(max_length=MESSAGE_MAX)


class Output(BaseModel):
    """Answer: float32 [rows, classes] follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=0)
    classes: int = Field(ge=0)


def serve(
    requests: BinaryIO,
    answers: BinaryIO,
    missing: list[str],
    *,
    path: str,
    input_name: str,
    output_name: str,
    fixed: Sequence[Mapping[str, Any]],
    threads: int | None,
    providers: Sequence[Any] | None,
    memory: int,
) -> None:
    """Open the session, answer, and run requests until their stream ends.

    Args:
        fixed, providers: as of ``OnnxSession``, by way of JSON, which has no tuples; None is the CPU.
        memory: descriptor of the shared memory.
    """
    try:
        open_session = functools.partial(
            OnnxSession,
            Path(path),
            input_name,
            output_name,
            fixed=[FixedInput.model_validate(each) for each in fixed],
            threads=threads,
        )
        if providers is None:
            session = open_session()
        else:
            named = [tuple(each) if isinstance(each, list) else each for each in providers]
            session = open_on_cuda(functools.partial(open_session, providers=named))
    except (WorkerError, MemoryError) as error:
        _answer(answers, _refused(error))
        return
    _answer(answers, Opened(provider=session.provider, cpu_operators=dict(session.cpu_operators), missing=missing))
    inputs = SharedReader(memory)
    for line in requests:
        request = InputRequest.model_validate_json(line)
        try:
            output_BN = session.run(inputs.array(request.offset, request.shape, request.dtype))
        except (WorkerError, MemoryError) as error:
            _answer(answers, _refused(error))
            continue
        rows, classes = output_BN.shape
        _answer(answers, Output(rows=rows, classes=classes), output_BN.tobytes())


def _refused(error: Exception) -> Refused:
    kind: Literal["InvalidTeacher", "OutOfMemory", "DeviceUnavailable"] = "InvalidTeacher"
    if isinstance(error, (OutOfMemory, MemoryError)):
        kind = "OutOfMemory"
    elif isinstance(error, DeviceUnavailable):
        kind = "DeviceUnavailable"
    message = str(error) or "there is too little memory"
    return Refused(error=kind, message=message[:MESSAGE_MAX])


def _answer(answers: BinaryIO, message: BaseModel, body: bytes = b"") -> None:
    answers.write(message.model_dump_json().encode() + b"\n")
    answers.write(body)
    answers.flush()
