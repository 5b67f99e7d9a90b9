"""Smoke run of a teacher, on two pictures of noise, on the CPU, in a confined child process.

A graph that is well-formed may still not end, ask for more memory than there is, or crash what runs it; reading it
does not tell. So it is run once where that harms nobody, before it meets real work: at the upload where the API's
machine has ONNX Runtime, else by the engine before the preflight. What is asked: that it ends in time, that its
output is [pictures, classes] and finite, and that a picture's output is the same alone and beside another. All of it is
refused and not warned of: the preflight would refuse the same later, with real pictures and a queue behind it.

That it passed is a file in a folder of markers, named by what was tried; its text is the version of Retort that tried
it, for another one may ask for more. What it is no proof of: that the graph behaves on every picture.

Light: the API process loads this file; ONNX Runtime is imported in the child alone
(``workers.onnx.sessions.smoke_child``).
"""

import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from workers.config.teacher import Preprocessing, TeacherSpec
from workers.errors import InvalidTeacher
from workers.files import replacing
from workers.onnx.checks.check import size_of
from workers.onnx.checks.teacher_graph import TeacherGraph
from workers.onnx.sandboxing import sandbox
from workers.onnx.sessions.session_memory import needed_bytes

# Largest difference between alone and in a batch, relative to the largest output. Kernels for another batch size add
# in another order, which float32 shows near 1e-6 and float16 near 1e-3.
BATCH_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-2}

TIMEOUT_S = 60.0
GRACE_S = 5.0  # ONNX Runtime looks at its termination flag between two operators

TRIED = "the teacher was tried on a picture of noise: "  # what begins a refusal

Size = tuple[int, int]


def smoke_run(
    path: Path,
    graph: TeacherGraph,
    preprocessing: Preprocessing,
    size: Size | None = None,
    timeout_s: float = TIMEOUT_S,
) -> bool:
    """Run the graph on noise; ``graph`` and ``preprocessing`` were checked against each other.

    Args:
        path: the file.
        size: (height, width) in pixels, for a graph and a preprocessing that both leave them open.
        timeout_s: for all of it, beside reading the file; the child is killed ``GRACE_S`` later.

    Returns:
        False if no size is known: nothing was run.

    Raises:
        InvalidTeacher: it does not end, needs too much memory, crashes, or gives what no teacher may give.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    _, *declared = graph.picture(preprocessing.layout)
    height, width = (d or g for d, g in zip(declared, preprocessing.size or size or (None, None), strict=True))
    if height is None or width is None:
        return False
    path = path.resolve()
    timeout_s = sandbox.with_reading(timeout_s, size_of(path))
    outcome = sandbox.call(
        "workers.onnx.sessions.smoke_child:answer",
        {
            "path": str(path),
            "input_name": graph.inputs[0].name,
            "output_name": graph.output,
            "fixed": [each.model_dump(mode="json") for each in graph.fixed],
            "dtype": graph.inputs[0].dtype,
            "picture": [height, width, preprocessing.channel_count],
            "batch": graph.batch,
            "runs_alone": graph.runs_alone,
            "classes": graph.classes,
            **preprocessing.model_dump(mode="json", include={"layout", "scale", "mean", "std"}),
            "ir_version": graph.ir_version,
            "opset": graph.opset,
            "batch_hint": graph.batch_hint,
            "tolerance": BATCH_TOLERANCE[graph.output_dtype],
            "timeout_s": timeout_s,
            "tried": TRIED,
        },
        readable=[path],
        memory_bytes=needed_bytes(path),
        timeout_s=timeout_s + GRACE_S,
    )
    problem = outcome.value if outcome.breach is None else f"{TRIED}the run {outcome.breach}"
    if problem is not None:
        raise InvalidTeacher(str(problem))
    return True


# ----------------------------------------------------------------------------------------------------------- markers


def has_passed(folder: Path, teacher: TeacherSpec) -> bool:
    """Whether the teacher has passed in this version of Retort."""
    try:
        return _marker(folder, teacher).read_text() == _version()
    except FileNotFoundError:
        return False


def remember(folder: Path, teacher: TeacherSpec) -> None:
    """Note that the teacher has passed."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(_marker(folder, teacher), "a marker of a smoke run") as file:
        file.write(_version().encode())


def forget(folder: Path, teacher: TeacherSpec) -> None:
    """Remove the note of a teacher that is deleted."""
    _marker(folder, teacher).unlink(missing_ok=True)


def _marker(folder: Path, teacher: TeacherSpec) -> Path:
    # How the output is read changes nothing of the run.
    identity = teacher.model_dump(mode="json", exclude={"path", "output_kind", "class_names", "class_map"})
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return folder / hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _version() -> str:
    return version("retort")
