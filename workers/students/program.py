"""Program of an uploaded student in its safe form: a graph as JSON, beside its tensors in one safetensors file. Light.

``workers.student_files`` makes it of a torch.export archive, in a confined process. Nothing else is read here.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from workers.errors import InvalidJob
from workers.spec import Flag, Real, Spec
from workers.students.program_operators import ATTENTION, ATTENTION_RATE, ATTENTION_RATE_NAME
from workers.students.safetensors_header import read_header

PREFIX = "uploaded/"
_NAME = re.compile(r"uploaded/[a-z]{2,4}_[0-9a-z]{26}")
METADATA = "retort_program"
# Of tensors that are no part of the state: names of the state have no such character.
CONSTANT = "@constant."
NODES_MAX = 20_000
EVALUATION_NOTE = (
    "was exported for evaluation, in which stochastic depth and dropout of attention leave nothing in a program: it is "
    "trained without. To have them, call model.train() first, export it again and upload that"
)
UNCERTAIN_NOTE = (
    "has nothing that says whether it was exported for training or for evaluation, which cannot be told then. Exported "
    "after model.eval() it is trained without the stochastic depth and dropout of attention that its network may have: "
    "in that case call model.train() first, export it again and upload that"
)
Extent = Annotated[int, Field(strict=True, ge=1)]
DropoutForm = Literal["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"]
Draw = Literal["bernoulli_", "bernoulli", "floor", "below"]
Scaled = Literal["mask", "input", "product"]


def is_uploaded(name: str) -> bool:
    """Whether a student's name is that of an uploaded program."""
    return _NAME.fullmatch(name) is not None


class Node(Spec):
    """One call of an operator.

    Attributes:
        op: a name of ``OPERATORS``.
        args, kwargs: JSON, in which {"ref": NAME} is the value of that name, {"dtype": NAME} one of ``DTYPES``, and
            {"device": "pictures"} that of the pictures.
        outputs: names of its values; a list of names where the operator returns a list.
    """

    kind: Literal["call"] = "call"
    op: str
    args: tuple[JsonValue, ...] = ()
    kwargs: dict[str, JsonValue] = {}
    outputs: tuple[str | tuple[str, ...], ...]


class NormNode(Spec):
    """Batch normalisation of a [B, K, ...] value by the module ``module``, which holds its weights and statistics.

    Attributes:
        dims: 2 of pictures [B, K, H, W]; 1 of [B, K] or [B, K, L].
    """

    kind: Literal["batch_norm"] = "batch_norm"
    module: str
    input: str
    output: str
    momentum: Real
    eps: Real
    affine: Flag
    dims: Annotated[int, Field(strict=True, ge=1, le=2)] = Field(2, exclude_if=lambda given: given == 2)


class DropoutNode(Spec):
    """Dropout.

    Attributes:
        form: torch's function: ``feature_dropout`` drops whole channels, the two others keep mean and variance.
    """

    kind: Literal["dropout"] = "dropout"
    input: str
    output: str
    p: Annotated[float, Field(strict=True, ge=0, lt=1)]
    form: DropoutForm = Field("dropout", exclude_if=lambda given: given == "dropout")


class StochasticDepthNode(Spec):
    """Product with a mask that is drawn in training, of mean 1; in evaluation its output is its input.

    Attributes:
        keep: probability of a 1 in the mask.
        shape: of the mask; numbers, and {"ref": NAME} of sizes; None is the input's.
        draw: ``bernoulli_`` with a number, ``bernoulli`` of a tensor, ``floor`` of ``keep`` and a uniform number, or
            whether that is ``below`` it.
        scale: what is divided by ``keep``: the mask, the input, or the product.
    """

    kind: Literal["stochastic_depth"] = "stochastic_depth"
    input: str
    output: str
    keep: Annotated[float, Field(strict=True, gt=0, le=1)]
    shape: tuple[JsonValue, ...] | None
    draw: Draw
    scale: Scaled


AnyNode = Annotated[Node | NormNode | DropoutNode | StochasticDepthNode, Field(discriminator="kind")]


def _read_names(values: Iterable[JsonValue]) -> Iterator[str]:
    """Names of the values that arguments refer to."""
    for value in values:
        if isinstance(value, dict):
            if "ref" in value:
                yield str(value["ref"])
        elif isinstance(value, list):
            yield from _read_names(value)


def reads_of(node: AnyNode) -> set[str]:
    """Names of the values that a node reads."""
    if isinstance(node, Node):
        return set(_read_names([*node.args, *node.kwargs.values()]))
    return {node.input, *_read_names((isinstance(node, StochasticDepthNode) and node.shape) or ())}


def outputs_of(node: AnyNode) -> tuple[str, ...]:
    """Names of the values that a node gives."""
    if not isinstance(node, Node):
        return (node.output,)
    return tuple(name for names in node.outputs for name in ((names,) if isinstance(names, str) else names))


def _is_of_training(node: AnyNode) -> bool:
    """Whether a node says that its program was exported for training."""
    if not isinstance(node, Node):
        return True
    given = (*node.args[ATTENTION_RATE : ATTENTION_RATE + 1], node.kwargs.get(ATTENTION_RATE_NAME, 0.0))
    return node.op == ATTENTION and any(given)


class Program(Spec):
    """Graph of a classifier from pictures [B, K, H, W], float32, to logits [B, C].

    Attributes:
        input: name of the pictures' value.
        shape: (K, H, W); None is any.
        classes: C.
        parameters: values that are trained, and their names in the state.
        buffers: others of the state.
        constants: values that never change, and the names of their tensors.
        output: name of the logits' value.
        is_evaluation: it was exported after ``model.eval()``, with what that leaves out.
    """

    format: Literal["program-1"] = "program-1"
    input: str
    shape: tuple[Extent | None, Extent | None, Extent | None]
    classes: Annotated[int, Field(strict=True, ge=2)]
    parameters: dict[str, str]
    buffers: dict[str, str]
    constants: dict[str, str]
    nodes: Annotated[tuple[AnyNode, ...], Field(min_length=1, max_length=NODES_MAX)]
    output: str
    is_evaluation: Flag = Field(False, exclude_if=lambda given: not given)

    def mode_note(self) -> str:
        """Note of an export for evaluation, or of one that may be for it; empty where it was exported for training.

        Batch normalisation, and what is drawn at random, are there in a program for training alone.
        """
        if self.is_evaluation:
            return EVALUATION_NOTE
        return "" if any(_is_of_training(node) for node in self.nodes) else UNCERTAIN_NOTE

    def check_input(self, name: str, classes: int, in_channels: int, image_side: int) -> None:
        """Refuse pictures or classes that the program was not exported for.

        Raises:
            InvalidJob: naming both.
        """
        if classes != self.classes:
            raise InvalidJob(
                f"student {name!r} gives {self.classes} logits, and there are {classes} classes: an exported program "
                "keeps its number of classes, so export it with these"
            )
        channels, height, width = self.shape
        if channels not in (None, in_channels):
            raise InvalidJob(
                f"student {name!r} was exported for pictures of {channels} channels, and these have {in_channels}"
            )
        if height not in (None, image_side) and width not in (None, image_side):
            raise InvalidJob(
                f"student {name!r} was exported for pictures of {height} x {width}, and these have a side of "
                f"{image_side}: give views of that size (resized_crop), or export it for this one"
            )


def read_program(path: Path) -> Program:
    """Read the program of a file that was made of an upload.

    Raises:
        InvalidJob: it is gone, or no such file.
    """
    mistake = "it holds none"
    try:
        text = read_header(path).metadata.get(METADATA, "")
        return Program.model_validate_json(text)
    except OSError as error:
        mistake = str(error.strerror)
    except ValidationError as error:
        mistake = error.errors()[0]["msg"]
    raise InvalidJob(f"the program {path.name!r} of an uploaded student cannot be read: {mistake}")
