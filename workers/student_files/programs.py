"""Uploaded programs of torch.export: made into their safe form, and run for the first time, in confined processes.

``torch.export.load`` unpickles parts of an archive, so it is called nowhere. A first child, without torch, reads JSON
and raw bytes and writes what it has checked anew, as JSON beside tensors in a safetensors file: that alone is kept. A
second one builds the network of it, and trains and evaluates it for a step. Light: the API process loads this file.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from workers.errors import InvalidStudentFile
from workers.onnx.sandboxing import sandbox
from workers.onnx.uploads.packing import PackedFile, copy_memory, fillable_memory
from workers.student_files.inspection import ZIP, StoredWeights

_BASE_BYTES = 2 << 30
# The archive's bytes, its tensors, those made contiguous, and the file's content.
_COPIES = 5
# Of address space: torch with its CUDA libraries maps some 20 GB and touches little of it.
_TRIAL_BYTES = 48 << 30
# Of memory that it may touch: torch, the weights, their gradients and copies, and what three pictures need.
_TRIAL_DATA_BYTES = 4 << 30
_TRIAL_COPIES = 6
# torch seeds its generators from it.
_RANDOM = Path("/dev/urandom")


class StoredProgram(BaseModel):
    """Description of a program that is kept.

    Attributes:
        shape: (K, H, W) of the pictures; None is any.
        classes: of its logits.
    """

    shape: tuple[int | None, int | None, int | None]
    classes: int


class _Answer(StoredProgram):
    size: int
    weights: StoredWeights


class _Refusal(BaseModel):
    error: str


class _TrialAnswer(BaseModel):
    error: str
    parameters: int


def may_be_program(path: Path) -> bool:
    """Whether a file begins as a zip archive, as those of torch.export do."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def convert_program(
    path: Path, *, bytes_max: int, timeout_s: float, check_room: Callable[[int], None]
) -> tuple[PackedFile, StoredWeights, StoredProgram]:
    """Make the safe form of an archive, in its place.

    Args:
        path: of the archive; replaced.
        bytes_max: of the new file.
        timeout_s: wall-clock seconds for the child.
        check_room: called with the bytes that are about to be written; raises when there is no room for them.

    Raises:
        InvalidStudentFile: it is no program that a student may be, or is damaged, hostile or too large.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    path = path.resolve()
    with fillable_memory(bytes_max) as descriptor:
        outcome = sandbox.call(
            "workers.student_files.program_child:answer",
            {"path": str(path), "descriptor": descriptor, "bytes_max": bytes_max},
            readable=[path],
            memory_bytes=_BASE_BYTES + _COPIES * bytes_max,
            timeout_s=timeout_s,
            descriptors=[descriptor],
        )
        if outcome.breach is not None:
            raise InvalidStudentFile(f"reading the program {outcome.breach}")
        answer = _answer(outcome.value, bytes_max)
        check_room(answer.size)
        kept = copy_memory(descriptor, path, answer.size)
    return kept, answer.weights, StoredProgram(shape=answer.shape, classes=answer.classes)


def _answer(value: object, bytes_max: int) -> _Answer:
    found, refusal = None, "reading the program gives no answer of ours: it is damaged or hostile"
    try:
        if isinstance(value, dict) and "error" in value:
            refusal = _Refusal.model_validate(value).error
        else:
            found = _Answer.model_validate(value)
    except ValidationError:
        found = None
    if found is None or not 0 < found.size <= bytes_max:
        raise InvalidStudentFile(refusal)
    return found


def try_program(path: Path, *, timeout_s: float, pictures: tuple[int, int, int, int] | None = None) -> int:
    """Train and evaluate a program that was made by ``convert_program`` for a step, in a confined process with torch.

    Args:
        pictures: (batch, channels, height, width) that a job trains it on; without them those it was exported for.

    Returns:
        The number of its parameters.

    Raises:
        InvalidStudentFile: it fails, trains nothing, or takes too long or too much memory.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    path = path.resolve()
    outcome = sandbox.call(
        "workers.student_files.trial_child:answer",
        {"path": str(path), "pictures": None if pictures is None else list(pictures)},
        readable=[path, _RANDOM],
        memory_bytes=_TRIAL_BYTES,
        data_bytes=_TRIAL_DATA_BYTES + _TRIAL_COPIES * path.stat().st_size,
        timeout_s=timeout_s,
    )
    answer = _TrialAnswer(error="trying the program gives no answer of ours: it is hostile", parameters=0)
    if outcome.breach is not None:
        answer.error = f"trying the program {outcome.breach}"
    else:
        with contextlib.suppress(ValidationError):
            answer = _TrialAnswer.model_validate(outcome.value)
    if answer.error:
        raise InvalidStudentFile(answer.error)
    return answer.parameters
