"""Conversion of torch.export's JSON to a ``Program``: operators of a list, plain arguments, and no other node."""

from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from pydantic import JsonValue, ValidationError

from workers.errors import InvalidStudentFile
from workers.student_files.archive import FLOAT32, STATE_NAME
from workers.student_files.conversion_memory import check_memory, without_unread
from workers.student_files.conversion_nodes import NodeReader, check_operators
from workers.student_files.conversion_values import Json, reference
from workers.students.program import NODES_MAX, Program
from workers.texts import shortened

SCHEMA_MAJOR = 8
EXPORT_HINT = (
    "torch.export.export(model.train(), (torch.zeros(2, 3, 32, 32),), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), without run_decompositions'
)


def converted(document: Json) -> Program:
    """The program of an archive's JSON.

    Raises:
        InvalidStudentFile: an operator that is not allowed, a network exported for evaluation, another number of
            inputs or outputs, a fixed batch, or JSON of another form.
    """
    try:
        return _converted(document)
    except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise InvalidStudentFile(
            f"the program's JSON is not of the form that torch.export writes ({type(error).__name__}: "
            f"{shortened(str(error), 80)})"
        ) from error


def _converted(document: Json) -> Program:
    version = document["schema_version"]["major"]
    if version != SCHEMA_MAJOR:
        raise InvalidStudentFile(
            f"the program has version {shortened(version, 20)} of torch.export's schema, and {SCHEMA_MAJOR} is read: "
            "export it with PyTorch 2.15"
        )
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    if len(graph["nodes"]) > NODES_MAX:
        raise InvalidStudentFile(f"the program has {len(graph['nodes'])} nodes, at most {NODES_MAX} are taken")
    inputs = _Inputs(signature["input_specs"])
    output = _only_output(signature["output_specs"])
    shapes = graph["tensor_values"]
    shape = _picture_shape(shapes[inputs.pictures])
    check_operators(graph["nodes"])
    reader = NodeReader(inputs.pictures, inputs.parameters, inputs.buffers, inputs.constants, shapes=shapes)
    given = set(reader.values.known)
    read = [made for node in graph["nodes"] if (made := reader.read(node)) is not None]
    logits = shapes[output]["sizes"]
    classes = logits[1].get("as_int") if len(logits) == 2 else None
    reader.values.check_known(output)
    if not isinstance(classes, int) or classes < 2:
        raise InvalidStudentFile("the program's output is no [B, C] of logits, with C from 2 on")
    check_memory(read, output, given, reader.dropouts_in_place)
    nodes = without_unread(read, output, reader.masks.folded)
    program = None
    with suppress(ValidationError):
        program = Program(
            input=inputs.pictures,
            shape=shape,
            classes=classes,
            parameters=inputs.parameters,
            buffers=inputs.buffers,
            constants=inputs.constants,
            nodes=nodes,
            output=output,
            is_evaluation=reader.is_evaluation,
        )
    if program is None:
        raise InvalidStudentFile("the program cannot be taken: export it anew")
    return program


class _Inputs:
    """Inputs of a graph: the pictures, and what it reads of its state."""

    def __init__(self, specs: Sequence[Json]) -> None:
        self.parameters, self.buffers, self.constants = dict[str, str](), dict[str, str](), dict[str, str]()
        pictures = list[str]()
        for spec in specs:
            [(kind, body)] = spec.items()
            if kind == "user_input":
                pictures.append(reference(body["arg"]))
            elif kind == "parameter":
                self.parameters[str(body["arg"]["name"])] = state_name(body["parameter_name"])
            elif kind == "buffer" and body["persistent"] is True:
                self.buffers[str(body["arg"]["name"])] = state_name(body["buffer_name"])
            elif kind in ("buffer", "tensor_constant"):
                name = body["buffer_name"] if kind == "buffer" else body["tensor_constant_name"]
                self.constants[str(body["arg"]["name"])] = state_name(name)
            else:
                raise InvalidStudentFile(
                    f"the program has an input of the kind {shortened(kind, 40)!r}: a student takes pictures alone"
                )
        if len(pictures) != 1:
            raise InvalidStudentFile(f"the program has {len(pictures)} inputs: a student takes one, the pictures")
        self.pictures = pictures[0]


def state_name(given: object) -> str:
    """Name of a tensor of the state. Raises InvalidStudentFile."""
    if not isinstance(given, str) or STATE_NAME.fullmatch(given) is None:
        raise InvalidStudentFile(f"{shortened(given, 80)!r} is no name of a tensor of a module")
    return given


def _only_output(specs: Sequence[Json]) -> str:
    kinds = [kind for spec in specs for kind in spec]
    if kinds != ["user_output"]:
        raise InvalidStudentFile(
            f"the program has the outputs {', '.join(shortened(kind, 40) for kind in kinds[:8])}: a student has one, "
            f"the logits. Export the network for training: {EXPORT_HINT}"
        )
    return reference(specs[0]["user_output"]["arg"])


def _picture_shape(meta: Json) -> tuple[int | None, int | None, int | None]:
    """(K, H, W) of the pictures; None where it is open."""
    sizes = meta["sizes"]
    if len(sizes) != 4 or meta["dtype"] != FLOAT32:
        raise InvalidStudentFile("the program's input is no float32 [B, K, H, W] of pictures")
    if "as_int" in sizes[0]:
        raise InvalidStudentFile(
            f"the program is for batches of {shortened(sizes[0]['as_int'], 20)} pictures and no others: export it with "
            f"a size of batches that is open: {EXPORT_HINT}"
        )
    return cast(
        tuple[int | None, int | None, int | None], tuple(cast(JsonValue, size.get("as_int")) for size in sizes[1:])
    )
