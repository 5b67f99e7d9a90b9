"""Is this file an ONNX image classifier that may be run here? Decided by reading it, without running it.

Two ways in: ``check_onnx`` in this process, for files that were let in before, and ``inspect_in_subprocess`` for
uploads: a child process that limits its own memory, processor time, open files and output reads the file, so a
hostile one takes down no more than that child. ``python -m workers.onnx_check FILE`` is that child; it prints one
JSON object: ``{"ok": true, "graph": {...}}`` or ``{"ok": false, "error": "..."}``.

What it will not do: run the graph (``workers.teacher`` does, under the contract check), follow external data, or load
custom operators. The rules about the graph's inside are in ``workers.onnx_graph``. Only onnx, pydantic and the
standard library are imported: the API process loads this file.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto
from pydantic import BaseModel, ConfigDict

from workers.errors import InvalidTeacher, WorkerError
from workers.onnx_graph import EXPORT_HINT, check_graph, check_structure, first_line, listed, parse, short

IMAGE_DTYPES = ("float16", "float32")
LOGIT_DTYPES = ("float16", "float32", "float64")
NAME_MAX = 256  # characters of an input's or output's name
OUTPUTS_MAX = 64
RANK_MAX = 8

# The child's limits. Reading, parsing and onnx's own checker hold about five copies of the file at once.
CHILD_BASE_BYTES = 2 << 30
CHILD_FILE_COPIES = 5
CHILD_OUTPUT_BYTES = 1 << 20
CHILD_OPEN_FILES = 64

Shape = tuple[int | str | None, ...]


class Limits(BaseModel):
    """The largest file that is accepted.

    Attributes:
        file_bytes: of the whole file.
        tensor_bytes: of all constants in it together, as their shapes declare them.
        nodes: operators; those in subgraphs and functions count once each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_bytes: int = 1 << 30
    tensor_bytes: int = 1 << 30
    nodes: int = 200_000


LIMITS = Limits()


class Value(BaseModel):
    """An input or output; ``shape`` holds sizes, names of symbolic sizes, or None where neither is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: Shape | None


class TeacherGraph(BaseModel):
    """What an accepted file declares about itself.

    Attributes:
        inputs: exactly one, the pictures: float32 or float16, rank 4.
        outputs: all outputs.
        output: name of the one that is taken for the logits: rank 2, floating point.
        opset: version of the standard operator set.
        nodes: number of operators; those in subgraphs and functions count once each.
        parameters: number of floating-point values in the constants.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[Value]
    outputs: tuple[Value, ...]
    output: str
    opset: int
    nodes: int
    parameters: int

    @property
    def batch(self) -> int | None:
        """The number of pictures per call if the graph fixes it, else None."""
        return _fixed(self._image_shape[0])

    @property
    def classes(self) -> int | None:
        """The number of classes if the graph declares it, else None."""
        shape = next(value.shape for value in self.outputs if value.name == self.output)
        return None if shape is None else _fixed(shape[1])

    def picture(self, layout: str) -> tuple[int | None, int | None, int | None]:
        """(channels, height, width) that the input declares, read in ``layout``; None where it leaves one open."""
        first, second, third = (_fixed(size) for size in self._image_shape[1:])
        return (first, second, third) if layout == "nchw" else (third, first, second)

    @property
    def _image_shape(self) -> Shape:
        return self.inputs[0].shape or (None, None, None, None)


def _fixed(size: int | str | None) -> int | None:
    return size if isinstance(size, int) else None


def check_picture(graph: TeacherGraph, *, channels: int, size: tuple[int, int] | None, layout: str) -> None:
    """Refuse a preprocessing that makes another shape than the graph's input declares.

    Args:
        graph: what ``check_onnx`` returned.
        channels: number of channels that the preprocessing makes.
        size: (height, width) in pixels that it resizes to; None where it keeps the picture's own.
        layout: ``nchw`` or ``nhwc``.

    Raises:
        InvalidTeacher: naming the field of the preprocessing to change.
    """
    wanted_channels, *wanted_size = graph.picture(layout)
    declared = f"the teacher's input is {_shape_text(graph.inputs[0].shape)} in layout {layout!r}"
    if wanted_channels not in (None, channels):
        raise InvalidTeacher(f"the preprocessing makes {channels} channels, {declared}: correct `channels` or `layout`")
    if size and any(fixed not in (None, given) for fixed, given in zip(wanted_size, size, strict=True)):
        raise InvalidTeacher(
            f"the preprocessing makes pictures of {size[0]}x{size[1]} pixels (height x width), {declared}: correct "
            "`size` or `layout`"
        )


# -------------------------------------------------------------------------------------------------------- the check


def check_onnx(path: Path, output: str | None = None, limits: Limits = LIMITS) -> TeacherGraph:
    """Read ``path`` and refuse it, with one sentence, unless it is a self-contained ONNX image classifier.

    Args:
        path: the file.
        output: name of the output that holds the logits; None takes the only rank-2 floating-point one.
        limits: the largest file accepted.

    Raises:
        InvalidTeacher: what is wrong and what to do about it.
    """
    content = _read(path, limits)
    model = parse(content)
    facts = check_graph(model, nodes_max=limits.nodes, tensor_bytes_max=limits.tensor_bytes)
    image = _image_input(model)
    if not all(_is_shaped(info) for info in model.graph.output):
        content = _derive_output_shapes(model, content)
    check_structure(content)
    outputs = _outputs(model)
    chosen = _logits_output(outputs, output)
    return TeacherGraph(inputs=(image,), outputs=outputs, output=chosen, **facts._asdict())


def _read(path: Path, limits: Limits) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limits.file_bytes + 1)
    except OSError as error:
        raise InvalidTeacher(f"the teacher's file cannot be read: {error.strerror}") from error
    if not content:
        raise InvalidTeacher(f"not an ONNX file: it is empty. {EXPORT_HINT}")
    if len(content) > limits.file_bytes:
        raise InvalidTeacher(f"the teacher's file is larger than the {limits.file_bytes} bytes allowed")
    return content


def _value(info: ValueInfoProto) -> Value:
    if not info.type.HasField("tensor_type"):
        return Value(name=info.name, dtype=info.type.WhichOneof("value") or "undeclared", shape=None)
    tensor = info.type.tensor_type
    if len(tensor.shape.dim) > RANK_MAX:
        raise InvalidTeacher(f"{short(info.name)!r} has rank {len(tensor.shape.dim)}, at most {RANK_MAX} is allowed")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else short(dim.dim_param) or None for dim in tensor.shape.dim
        )
    return Value(name=info.name, dtype=_dtype_name(tensor.elem_type), shape=shape)


def _dtype_name(data_type: int) -> str:
    if data_type not in TensorProto.DataType.values():
        return "undeclared"
    name = str(TensorProto.DataType.Name(data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _image_input(model: onnx.ModelProto) -> Value:
    held = {tensor.name for tensor in model.graph.initializer}  # before IR version 4 the weights were inputs, too
    inputs = [_value(info) for info in model.graph.input if info.name not in held]
    if len(inputs) != 1:
        names = listed(value.name for value in inputs) or "none"
        raise InvalidTeacher(f"the graph has {len(inputs)} inputs ({names}), a teacher has exactly one: the pictures")
    image = inputs[0]
    named = f"the input {short(image.name)!r}"
    if len(image.name) > NAME_MAX:
        raise InvalidTeacher(f"{named} has a name of {len(image.name)} characters, at most {NAME_MAX} are allowed")
    if image.dtype not in IMAGE_DTYPES:
        raise InvalidTeacher(f"{named} is {image.dtype}, it must be float32 or float16: export it without that cast")
    if image.shape is None or len(image.shape) != 4:
        rank = "no declared rank" if image.shape is None else f"rank {len(image.shape)} {_shape_text(image.shape)}"
        raise InvalidTeacher(
            f"{named} has {rank}, it must have rank 4: batch, channels, height, width (or channels last)"
        )
    if any(isinstance(size, int) and size < 1 for size in image.shape):
        raise InvalidTeacher(f"{named} has shape {_shape_text(image.shape)}, every size must be at least 1")
    return image


def _is_shaped(info: ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.HasField("shape"))


def _derive_output_shapes(model: onnx.ModelProto, content: bytes) -> bytes:
    """Fill in output shapes that the file leaves out, in ``model`` and in the returned bytes."""
    try:
        inferred = onnx.shape_inference.infer_shapes(content)
    except onnx.shape_inference.InferenceError as error:
        raise InvalidTeacher(f"the shapes in the graph contradict each other: {first_line(error)}") from error
    for info, found in zip(model.graph.output, inferred.graph.output, strict=True):
        if not _is_shaped(found):
            raise InvalidTeacher(
                f"the shape of the output {short(info.name)!r} is not declared and cannot be derived: declare it, or "
                "remove the output"
            )
        info.CopyFrom(found)
    return bytes(model.SerializeToString())


def _outputs(model: onnx.ModelProto) -> tuple[Value, ...]:
    infos = model.graph.output
    if len(infos) > OUTPUTS_MAX or any(len(info.name) > NAME_MAX for info in infos):
        raise InvalidTeacher(
            f"the graph has {len(infos)} outputs; at most {OUTPUTS_MAX} are allowed, with names of at most {NAME_MAX} "
            "characters"
        )
    return tuple(_value(info) for info in infos)


def _logits_output(outputs: tuple[Value, ...], wanted: str | None) -> str:
    fitting = [v.name for v in outputs if v.dtype in LOGIT_DTYPES and v.shape is not None and len(v.shape) == 2]
    described = ", ".join(f"{short(v.name)} ({v.dtype} {_shape_text(v.shape)})" for v in outputs[:8]) or "none"
    if wanted is not None:
        if wanted in fitting:
            return wanted
        exists = any(value.name == wanted for value in outputs)
        problem = "is not floating point with rank 2 (batch, classes)" if exists else "does not exist"
        raise InvalidTeacher(f"the output {short(wanted)!r} {problem}; the outputs are: {described}")
    if not fitting:
        raise InvalidTeacher(f"no output is floating point with rank 2 (batch, classes); the outputs are: {described}")
    if len(fitting) > 1:
        raise InvalidTeacher(
            f"{len(fitting)} outputs could be the logits: {listed(fitting)}. Name the right one in `output`"
        )
    return fitting[0]


def _shape_text(shape: Shape | None) -> str:
    return "of unknown rank" if shape is None else f"[{', '.join('?' if s is None else str(s) for s in shape)}]"


# ----------------------------------------------------------------------------------------------- in a child process


class _Answer(BaseModel):
    """What the child prints."""

    model_config = ConfigDict(extra="forbid")

    ok: bool
    graph: TeacherGraph | None = None
    error: str = ""


def inspect_in_subprocess(path: Path, output: str | None = None, timeout_s: float = 30) -> TeacherGraph:
    """``check_onnx`` in a child process that limits itself and is killed, with its group, after ``timeout_s`` seconds.

    Args:
        path: the file; nobody else may be writing it.
        output: name of the output that holds the logits; None takes the only rank-2 floating-point one.
        timeout_s: wall-clock seconds; the child has as many of processor time.

    Raises:
        InvalidTeacher: the file is refused, or reading it took too long, too much memory, or crashed the child.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    if output is not None and not (output.isprintable() and 0 < len(output) <= NAME_MAX):
        raise InvalidTeacher(f"the output {short(output)!r} does not exist: no name holds such characters")
    answer, returncode = _ask_child(path, output, timeout_s)
    try:
        parsed = _Answer.model_validate_json(answer)
    except ValueError as error:
        if returncode >= 0:
            raise WorkerError(f"the check of the teacher's file could not run (exit status {returncode})") from error
        name = signal.Signals(-returncode).name
        raise InvalidTeacher(f"the teacher's file crashes its reader ({name}): it is damaged or hostile") from error
    if parsed.graph is None:
        raise InvalidTeacher(parsed.error)
    return parsed.graph


def _ask_child(path: Path, output: str | None, timeout_s: float) -> tuple[bytes, int]:
    # -I ignores the environment and the working directory, so the place of this package is handed over.
    start = "import sys; sys.path.append(sys.argv.pop(1)); from workers.onnx_check import main; sys.exit(main())"
    arguments = [str(path.resolve()), f"--cpu-s={max(1, round(timeout_s))}"]
    arguments += [] if output is None else [f"--output={output}"]
    # One BLAS thread: each would reserve address space, which is what the child's memory limit counts.
    environment = {"OPENBLAS_NUM_THREADS": "1", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    with subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", start, str(Path(__file__).resolve().parents[1]), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    ) as child:
        try:
            answer, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise InvalidTeacher(f"reading the teacher's file takes longer than the {timeout_s:g} s allowed") from error
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    return answer, child.returncode


def _limit_self(file_bytes: int, cpu_s: int) -> None:
    """Bound what this process may use; where a system knows no such limit, the parent's timeout remains."""
    wanted = {
        resource.RLIMIT_AS: CHILD_BASE_BYTES + CHILD_FILE_COPIES * file_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: CHILD_OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: CHILD_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one file under the child's limits and print the answer; returns 0 if it is accepted, else 1."""
    parser = argparse.ArgumentParser(prog="python -m workers.onnx_check", description=check_onnx.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", help="name of the output that holds the logits")
    parser.add_argument("--cpu-s", type=int, default=30, help="processor seconds allowed")
    given = parser.parse_args(arguments)
    try:
        _limit_self(given.file.stat().st_size, given.cpu_s)
        answer = {"ok": True, "graph": check_onnx(given.file, given.output).model_dump(mode="json")}
    except InvalidTeacher as error:
        answer = {"ok": False, "error": str(error)}
    except OSError as error:
        answer = {"ok": False, "error": f"the teacher's file cannot be read: {error.strerror}"}
    except MemoryError:
        answer = {"ok": False, "error": "reading the teacher's file needs more memory than its size can explain"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
