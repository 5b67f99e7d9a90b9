"""Fit of uploaded weights to a student, before a job is accepted: the student is built in a child, without memory."""

import functools
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from workers.errors import InvalidJob, WorkerError
from workers.onnx.sandboxing import sandbox
from workers.onnx.sandboxing.confinement import Bounds
from workers.students.program import CONSTANT
from workers.students.safetensors_header import read_header
from workers.students.weight_fit import Fit, fit_shapes, with_dtypes

# What pictures have nearly always; which of these only decoding tells.
_CHANNELS = (3, 1)
_State: TypeAlias = tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], dict[str, str]]
_SHAPES: TypeAdapter[tuple[_State | str, ...]] = TypeAdapter(
    Annotated[tuple[_State | str, ...], Field(min_length=len(_CHANNELS), max_length=len(_CHANNELS))]
)


def can_check() -> bool:
    """Whether students can be built on this machine; else the weights are looked at when the job starts."""
    return find_spec("torch") is not None


def check_fit(path: Path, student: str, classes: int, image_side: int, *, timeout_s: float) -> Fit:
    """Compare the tensors of a file with a student's, by name, shape and dtype.

    Whether the student takes pictures of one channel or of three is not known: it may be either.

    Args:
        timeout_s: for the child that builds the student, which is done once for each.

    Raises:
        InvalidJob: they are not the student's; or there is no such student for such pictures.
        InvalidStudentFile: it is no file of weights.
    """
    there, dtypes = _stored(path)
    refusals = []
    for found in state_shapes(student, classes, image_side, timeout_s=timeout_s):
        try:
            if isinstance(found, str):
                raise InvalidJob(found)
            shapes, larger, own = found
            fit = fit_shapes(there, shapes, larger)
        except InvalidJob as error:
            refusals.append(error)
            continue
        return with_dtypes(fit, dtypes, own)
    raise refusals[0]


def check_program_fit(path: Path, program: Path) -> Fit:
    """Compare the tensors of a file with those of a program, whose head is not replaced. Raises as ``check_fit``."""
    shapes, dtypes = _stored(program)
    state = {name: shape for name, shape in shapes.items() if not name.startswith(CONSTANT)}
    there, stored = _stored(path)
    return with_dtypes(fit_shapes(there, state, state), stored, dtypes)


def _stored(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and dtypes of a file's tensors. Raises InvalidStudentFile."""
    tensors = read_header(path).tensors.items()
    return {name: tensor.shape for name, tensor in tensors}, {name: tensor.dtype for name, tensor in tensors}


@functools.lru_cache(maxsize=64)
def state_shapes(student: str, classes: int, image_side: int, *, timeout_s: float) -> tuple[_State | str, ...]:
    """Shapes of a student's state, of the same student's with a class more, and dtypes; for 3 channels, and for 1.

    By name. Where it cannot be built so, the reason stands in their place.

    Raises:
        WorkerError: the child gave no answer.
    """
    arguments: dict[str, JsonValue] = {
        **{"name": student, "classes": classes},
        **{"channels": list(_CHANNELS), "image_side": image_side},
    }
    # It reads nothing of a stranger's, and torch needs a folder for temporary files.
    process = sandbox.serve(
        "workers.students.state_shapes:answer",
        arguments,
        readable=(),
        bounds=Bounds(memory_bytes=None, cpu_s=None),
        descriptors=(),
        is_confined=False,
    )
    with process:
        try:
            text, said = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise WorkerError(
                f"building student {student!r} to compare it with weights takes longer than {timeout_s:g} s"
            ) from error
        finally:
            process.kill()
    try:
        return _SHAPES.validate_json(text)
    except ValidationError:
        said_last = sandbox.last_lines(said)
    raise WorkerError(f"building student {student!r} to compare it with weights failed: {said_last}")
