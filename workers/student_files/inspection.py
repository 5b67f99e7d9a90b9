"""Inspection of an uploaded file of weights in a confined child process. Light: the API process loads this file."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from workers.errors import InvalidStudentFile
from workers.onnx.sandboxing import sandbox

# Of the child: Python with NumPy and a header; the file itself is mapped.
_BASE_BYTES = 1 << 30
_HEAD_BYTES = 8
ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
NO_PICKLE = (
    "a pickle runs code when it is opened, and none is opened here: convert it where you trust it, by "
    "safetensors.torch.save_file(state_dict, 'model.safetensors')"
)


class StoredWeights(BaseModel):
    """Description of a file of weights.

    Attributes:
        tensors: number of them.
        values: of all tensors together.
        dtypes: of its tensors, by safetensors' names, sorted.
    """

    tensors: Annotated[int, Field(ge=1)]
    values: Annotated[int, Field(ge=0)]
    dtypes: Annotated[list[str], Field(min_length=1, max_length=16)]


class _Answer(BaseModel):
    """Answer of the child: either what the file holds, or why it is refused."""

    weights: StoredWeights | None = None
    error: str = ""


def inspect_weights(path: Path, timeout_s: float) -> StoredWeights:
    """Check a safetensors file: its header, and that every value is finite.

    Args:
        path: the file; nobody else may be writing it.
        timeout_s: wall-clock seconds for the child; it has as many of processor time.

    Raises:
        InvalidStudentFile: the file is refused, or reading it took too long, too much memory, or crashed the child.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith((ZIP, _PICKLE)) and head[_HEAD_BYTES - 1 :] != b"\0":
        what = "a zip archive, as torch.save writes them" if head.startswith(ZIP) else "a pickle"
        raise InvalidStudentFile(f"the file is {what}, and no safetensors file: {NO_PICKLE}")
    path = path.resolve()
    outcome = sandbox.call(
        "workers.student_files.inspection_child:answer",
        {"path": str(path)},
        readable=[path],
        memory_bytes=_BASE_BYTES + path.stat().st_size,
        timeout_s=timeout_s,
    )
    if outcome.breach is not None:
        raise InvalidStudentFile(f"reading the file of weights {outcome.breach}")
    try:
        found = _Answer.model_validate(outcome.value)
    except ValidationError:
        found = _Answer(error="reading the file of weights gives no answer of ours: it is damaged or hostile")
    if found.weights is None:
        raise InvalidStudentFile(found.error)
    return found.weights
