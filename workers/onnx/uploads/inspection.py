"""Inspection of an uploaded ONNX file in a confined child process, so that a hostile one takes down no more than that.

Only onnx, pydantic and the standard library are imported: the API process loads this file.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, JsonValue, ValidationError

from workers.errors import InvalidTeacher
from workers.onnx.checks.check import FILE_MAX_BYTES, check_onnx, size_of
from workers.onnx.checks.inputs import Scalar
from workers.onnx.checks.parsing import short
from workers.onnx.checks.teacher_graph import TeacherGraph
from workers.onnx.checks.values import NAME_MAX
from workers.onnx.sandboxing import sandbox
from workers.onnx.versions import TooNew, check_versions, is_runtime_installed, runtime_versions

# The child's memory. Reading, parsing and onnx's own checker hold about five copies of the file at once; of a large
# teacher's file, of the graph in it.
CHILD_BASE_BYTES = 2 << 30
CHILD_FILE_COPIES = 5


class _InspectionAnswer(BaseModel):
    """Answer of the child: either what the file declares, or why it is refused.

    Attributes:
        too_new: (IR version, opset) of a file that is refused for them.
    """

    graph: TeacherGraph | None = None
    error: str = ""
    too_new: tuple[int, int] | None = None


def inspect_in_subprocess(
    path: Path,
    output: str | None = None,
    timeout_s: float = 30,
    inputs: Mapping[str, Scalar] = MappingProxyType({}),
) -> TeacherGraph:
    """Inspect: ``check_onnx`` in a confined child process that is killed after ``timeout_s`` seconds.

    Args:
        path: the file; nobody else may be writing it.
        output: name of the output that holds the logits; None takes the only rank-2 floating-point one.
        timeout_s: wall-clock seconds; the child has as many of processor time.
        inputs: values of the scalar inputs beside the pictures.

    Raises:
        InvalidTeacher: the file is refused, or reading it took too long, too much memory, or crashed the child.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    if output is not None and not (output.isprintable() and 0 < len(output) <= NAME_MAX):
        raise InvalidTeacher(f"the output {short(output)!r} does not exist: no name holds such characters")
    path = path.resolve()
    outcome = sandbox.call(
        "workers.onnx.uploads.inspection:answer",
        {"path": str(path), "output": output, "inputs": dict(inputs)},
        readable=[path],
        memory_bytes=CHILD_BASE_BYTES + CHILD_FILE_COPIES * min(size_of(path), FILE_MAX_BYTES),
        timeout_s=timeout_s,
    )
    if outcome.breach is not None:
        raise InvalidTeacher(f"reading the teacher's file {outcome.breach}")
    parsed = None
    with contextlib.suppress(ValidationError):
        parsed = _InspectionAnswer.model_validate(outcome.value)
    if parsed is None:
        raise InvalidTeacher("reading the teacher's file gives no answer of ours: it is damaged or hostile")
    if parsed.too_new is not None and is_runtime_installed():
        # ONNX Runtime takes less than onnx: who follows this message shall not meet the next one.
        check_versions(*parsed.too_new, runtime_versions())
    if parsed.graph is None:
        raise InvalidTeacher(parsed.error)
    return parsed.graph


def answer(path: str, output: str | None, inputs: Mapping[str, Scalar]) -> JsonValue:
    """Answer of the child in ``inspect_in_subprocess``."""
    try:
        found = _InspectionAnswer(graph=check_onnx(Path(path), output, inputs))
    except InvalidTeacher as error:
        newer = (error.ir, error.opset) if isinstance(error, TooNew) else None
        found = _InspectionAnswer(error=str(error), too_new=newer)
    described: JsonValue = found.model_dump(mode="json")
    return described
