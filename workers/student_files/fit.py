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
from workers.students.safetensors_header import read_header
from workers.students.weight_fit import Fit, fit_shapes

# What pictures have nearly always; which of these only decoding tells.
_CHANNELS = (3, 1)
_Pair: TypeAlias = tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]
_SHAPES: TypeAdapter[tuple[_Pair | str, ...]] = TypeAdapter(
    Annotated[tuple[_Pair | str, ...], Field(min_length=len(_CHANNELS), max_length=len(_CHANNELS))]
)


def can_check() -> bool:
    """Whether students can be built on this machine; else the weights are looked at when the job starts."""
    return find_spec("torch") is not None


def check_fit(path: Path, student: str, classes: int, image_side: int, *, timeout_s: float) -> Fit:
    """Compare the tensors of a file that was checked with a student's, by name and shape.

    Whether the student takes pictures of one channel or of three is not known: it may be either.

    Args:
        timeout_s: for the child that builds the student, which is done once for each.

    Raises:
        InvalidJob: they are not the student's; or there is no such student for such pictures.
    """
    there = {name: tensor.shape for name, tensor in read_header(path).tensors.items()}
    refusals = []
    for found in state_shapes(student, classes, image_side, timeout_s=timeout_s):
        try:
            if isinstance(found, str):
                raise InvalidJob(found)
            return fit_shapes(there, *found)
        except InvalidJob as error:
            refusals.append(error)
    raise refusals[0]


@functools.lru_cache(maxsize=64)
def state_shapes(student: str, classes: int, image_side: int, *, timeout_s: float) -> tuple[_Pair | str, ...]:
    """Shapes of a student's state, and of the same student's with a class more, by name; for 3 channels, and for 1.

    Where it cannot be built so, the reason stands in their place.

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
