"""Output of an ONNX classifier that is taken for its answer, and the operator that makes it.

Only onnx and the standard library are imported: the API process loads this file.
"""

import onnx

from workers.errors import InvalidTeacher
from workers.onnx.checks.parsing import listed, refusing, short
from workers.onnx.checks.rules import STANDARD
from workers.onnx.checks.teacher_graph import GraphValue, class_axis, shape_text
from workers.onnx.checks.values import NAME_MAX, is_tensor, value_of

LOGIT_DTYPES = ("float16", "float32", "float64")
OUTPUTS_MAX = 64
# Operators that leave the values as they are, and so what the operator before them has made of them.
_PASSING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_PASSED_MAX = 16
_ZIPMAP = (
    "A list or map for each picture is what skl2onnx makes of probabilities: convert with "
    "options={id(model): {'zipmap': False}}. "
)


def derive_shapes(model: onnx.ModelProto, content: bytes) -> bytes:
    """Fill in output shapes that the file leaves out, in ``model`` and in the returned bytes.

    Raises:
        InvalidTeacher: they cannot be derived, or contradict each other.
    """
    if all(_is_shaped(info) for info in model.graph.output):
        return content
    with refusing("the shapes in the graph contradict each other"):
        inferred = onnx.shape_inference.infer_shapes(content)
    for info, found in zip(model.graph.output, inferred.graph.output, strict=True):
        if not _is_shaped(found):
            raise InvalidTeacher(
                f"the shape of the output {short(info.name)!r} is not declared and cannot be derived: declare it, or "
                "remove the output"
            )
        info.CopyFrom(found)
    return bytes(model.SerializeToString())


def graph_outputs(model: onnx.ModelProto) -> tuple[GraphValue, ...]:
    """Declarations of all outputs, sequences and maps included. Raises InvalidTeacher."""
    infos = model.graph.output
    if len(infos) > OUTPUTS_MAX or any(len(info.name) > NAME_MAX for info in infos):
        raise InvalidTeacher(
            f"the graph has {len(infos)} outputs; at most {OUTPUTS_MAX} are allowed, with names of at most {NAME_MAX} "
            "characters"
        )
    return tuple(value_of(info) for info in infos)


def chosen_output(outputs: tuple[GraphValue, ...], wanted: str | None) -> str:
    """Name of the output with a number for each class: the wanted one, or the only one that fits.

    One of rank 2 is preferred to one whose further sizes are 1, as features of a pooling are of that form, too.

    Raises:
        InvalidTeacher: none fits, several do, or not the wanted one.
    """
    fitting = [v.name for v in outputs if v.dtype in LOGIT_DTYPES and class_axis(v.shape) is not None]
    described = ", ".join(f"{short(v.name)} ({v.dtype} {shape_text(v.shape)})" for v in outputs[:8]) or "none"
    lists = _ZIPMAP if any(v.dtype in ("sequence", "map") for v in outputs) else ""
    if wanted is not None:
        if wanted in fitting:
            return wanted
        exists = any(value.name == wanted for value in outputs)
        problem = "is not floating point with rank 2 (batch, classes)" if exists else "does not exist"
        said = f"the output {short(wanted)!r} {problem}; the outputs are: {described}. {lists}"
        raise InvalidTeacher(said.rstrip(". "))
    if not fitting:
        raise InvalidTeacher(
            f"no output is floating point with rank 2 (batch, classes); the outputs are: {described}. {lists}Export "
            "the logits as an output: a number for each class, before any ArgMax, TopK or squeeze"
        )
    flat = [v.name for v in outputs if v.name in fitting and len(v.shape or ()) == 2]
    candidates = flat or fitting
    if len(candidates) > 1:
        raise InvalidTeacher(
            f"{len(candidates)} outputs could be the logits: {listed(candidates)}. Name the right one in `output`"
        )
    return candidates[0]


def output_operator(model: onnx.ModelProto, output: str) -> str:
    """Type of the operator that makes an output, looking through those that leave values as they are; "" if unknown."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for _ in range(_PASSED_MAX):
        node = makers.get(output)
        if node is None or node.domain not in STANDARD:
            return ""
        if node.op_type not in _PASSING or not node.input:
            return short(node.op_type)
        output = node.input[0]
    return ""


def _is_shaped(info: onnx.ValueInfoProto) -> bool:
    return not is_tensor(info) or bool(info.type.tensor_type.HasField("shape"))
