"""Check by reading, without running it, that a file is an ONNX image classifier that may be run here.

Two ways in: ``check_onnx`` in this process, for files that were let in before, and ``inspection`` for uploads: the same
in a confined child process.

What it will not do: run the graph (``workers.onnx.sessions.smoke_test`` does, and after it
``workers.teacher.teacher``), follow external data but that of a large teacher's file of our own
(``workers.onnx.checks.large_file``), or load custom operators. The rules about the graph's inside are in
``workers.onnx.checks.rules``. Only onnx, pydantic and the standard library are imported: the API process loads this
file.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from workers.errors import InvalidTeacher
from workers.onnx.checks.batch_rules import batch_hint, scales_over_batch
from workers.onnx.checks.class_metadata import class_names_of
from workers.onnx.checks.inputs import Scalar, graph_inputs
from workers.onnx.checks.large_file import check_places, find_layout, read_graph, with_weights_as_inputs
from workers.onnx.checks.outputs import chosen_output, derive_shapes, graph_outputs, output_operator
from workers.onnx.checks.parsing import EXPORT_HINT, parse
from workers.onnx.checks.rules import check_graph, check_structure
from workers.onnx.checks.teacher_graph import TeacherGraph
from workers.onnx.versions import ONNX, check_versions

# protobuf reads and writes less than 2 GiB, and onnx's checker counts a few bytes more than the file has. Of a large
# teacher's file it holds for the graph.
FILE_MAX_BYTES = (2 << 30) - 4096


class FileLimits(BaseModel):
    """The largest file that is accepted.

    Attributes:
        file_bytes: of the ONNX file, or of the graph in a large teacher's file.
        tensor_bytes: of all constants in it together, as their shapes declare them.
        nodes: operators; those in subgraphs and functions count once each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_bytes: int = FILE_MAX_BYTES
    tensor_bytes: int = FILE_MAX_BYTES
    nodes: int = 200_000


LIMITS = FileLimits()


def check_onnx(
    path: Path,
    output: str | None = None,
    inputs: Mapping[str, Scalar] = MappingProxyType({}),
    limits: FileLimits = LIMITS,
) -> TeacherGraph:
    """Read ``path`` and refuse it, with one sentence, unless it is a self-contained ONNX image classifier.

    Args:
        path: an ONNX file, or a large teacher's file.
        output: name of the output that holds the logits; None takes the only rank-2 floating-point one.
        inputs: values of the scalar inputs beside the pictures.
        limits: the largest file accepted.

    Raises:
        InvalidTeacher: what is wrong and what to do about it.
    """
    content, data_bytes = _read(path, limits)
    model = parse(content)
    is_large = data_bytes is not None
    facts = check_graph(model, nodes_max=limits.nodes, tensor_bytes_max=limits.tensor_bytes, may_lie_outside=is_large)
    check_versions(model.ir_version, facts.opset, ONNX)
    declared, fixed = graph_inputs(model, inputs)
    structure = model
    if data_bytes is not None:
        check_places(model, data_bytes)
        structure = with_weights_as_inputs(model)
        content = bytes(structure.SerializeToString())
    check_structure(derive_shapes(structure, content))
    outputs = graph_outputs(structure)
    chosen = chosen_output(outputs, output)
    return TeacherGraph(
        inputs=declared,
        fixed=fixed,
        outputs=outputs,
        output=chosen,
        output_operator=output_operator(model, chosen),
        class_names=class_names_of(model),
        ir_version=model.ir_version,
        batch_hint=batch_hint(model),
        scales_over_batch=scales_over_batch(model),
        **facts._asdict(),
    )


def _read(path: Path, limits: FileLimits) -> tuple[bytes, int | None]:
    """The ONNX file, or the graph of a large teacher's file and the bytes of its data. Raises InvalidTeacher."""
    try:
        layout = find_layout(path)
        size_bytes = path.stat().st_size if layout is None else layout.graph_bytes
        if size_bytes > limits.file_bytes:
            raise InvalidTeacher(
                f"the teacher's file has {size_bytes} bytes, which is larger than the {limits.file_bytes} bytes "
                "allowed, and than any ONNX file: save a larger model with its weights beside it "
                "(onnx.save(model, path, save_as_external_data=True)), and upload both files"
            )
        content = path.read_bytes() if layout is None else read_graph(path, layout)
    except OSError as error:
        raise InvalidTeacher(f"the teacher's file cannot be read: {error.strerror}") from error
    if not content:
        raise InvalidTeacher(f"not an ONNX file: it is empty. {EXPORT_HINT}")
    return content, None if layout is None else layout.data_bytes


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
