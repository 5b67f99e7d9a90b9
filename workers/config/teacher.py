"""Teacher of a job: its ONNX file, how a picture becomes its input, and how its output is read.

Sizes are (height, width) in pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workers.config.published_preprocessing import translated
from workers.events import Split
from workers.spec import AtMost, Positive, Real, Sha256, Side, Size, Spec

CHANNELS_MAX = 3
CLASSES_MAX = 100_000
INPUTS_MAX = 16

OutputKind = Literal["logits", "log_probabilities", "probabilities", "sigmoid", "percent"]
# Their level is lost to a softmax: rows sum to 1, or to 100.
SOFTMAX_KINDS: tuple[OutputKind, ...] = ("log_probabilities", "probabilities", "percent")
ClassName = Annotated[str, Field(max_length=1024)]  # a line of ImageNet's list, with all synonyms, has some hundred
Column = Annotated[int, Field(strict=True, ge=0, lt=CLASSES_MAX)]
# Of a scalar input of the graph.
InputValue = Annotated[bool, Field(strict=True)] | Annotated[int, Field(strict=True)] | Real

# Of Pillow's ``Image.Resampling``, in lower case: all but ``nearest`` smooth where a picture becomes smaller.
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class Preprocessing(Spec):
    """Steps from picture to input: resize, crop, order channels, ``x * scale``, ``(x - mean) / std``, lay out.

    A name, a timm ``config.json`` or a Hugging Face ``preprocessor_config.json`` is accepted for it and translated, see
    ``published_preprocessing``.

    Attributes:
        size: (height, width) in pixels the network wants; None keeps the picture's own. Of a view, both mean the box
        of the dataset's picture resampled to that size, see ``teacher_augmentation``.
        resize: what a plain picture is resized to, before ``size`` is cut out of its centre: pixels of its shorter
        side, or (height, width) exactly. None resizes it to ``size``, and nothing is cut off.
        interpolation: resize as Pillow does by this name. None is bilinear without smoothing, see
        ``augmentation.apply.resize``; with ``resize`` it becomes ``bilinear``.
        mean: per channel, in units of the scaled picture (0..1 with the default scale).
        std: per channel, same unit, > 0.
        channels: order and number of the channels; grey pictures are repeated, colour ones turned
        to luma as needed.
        layout: ``nchw`` or ``nhwc``.
        scale: factor applied to the uint8 values before mean and std.
    """

    size: Size | None = None
    # Joined later, as ``Training.cuda_graph``.
    resize: Side | Size | None = Field(None, exclude_if=lambda given: given is None)
    interpolation: Interpolation | None = Field(None, exclude_if=lambda given: given is None)
    mean: Annotated[tuple[Real, ...], AtMost(CHANNELS_MAX)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Positive, ...], AtMost(CHANNELS_MAX)] = (0.229, 0.224, 0.225)
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    scale: Positive = 1 / 255

    @model_validator(mode="before")
    @classmethod
    def _translated(cls, data: object) -> object:
        data = translated(data)
        if isinstance(data, dict) and data.get("resize") is not None:
            return {**data, "interpolation": data.get("interpolation") or "bilinear"}
        return data

    @model_validator(mode="after")
    def _can_be_cropped(self) -> Self:
        if self.size is None:
            given = [name for name in ("resize", "interpolation") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{' and '.join(given)} without size: give `size`, [height, width] of what the network takes"
                )
            return self
        if self.resize is None:
            return self
        if isinstance(self.resize, int):
            # The other side is longer, by how much the pictures tell.
            sides, wanted = (self.resize, self.resize), (min(self.size), 1)
        else:
            sides, wanted = self.resize, self.size
        if any(have < need for have, need in zip(sides, wanted, strict=True)):
            raise ValueError(
                f"resize is {self.resize}, less than size {list(self.size)} that is to be cut out of it: "
                "make resize as large, or leave it out to resize to `size`"
            )
        return self

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channel_count:
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} values, "
                f"channels={self.channels!r} needs {self.channel_count} of each"
            )
        return self

    @property
    def channel_count(self) -> int:
        return 1 if self.channels == "gray" else 3


def _in_order(value: object) -> object:
    """A list of names for a mapping of numbers to names, as Hugging Face's ``id2label`` has it."""
    if not isinstance(value, Mapping):
        return value
    numbers = {str(k) for k in range(len(value))}
    if {str(key) for key in value} != numbers:
        raise ValueError(f"the keys of class_names must be the columns 0 to {len(value) - 1}, each once")
    return [value[key] for key in sorted(value, key=lambda key: int(str(key)))]


ClassNames = Annotated[
    Annotated[tuple[ClassName, ...], AtMost(CLASSES_MAX)],
    BeforeValidator(_in_order, json_schema_input_type=list[str] | dict[str, str]),
]


class TeacherReading(Spec):
    """Statements of a client about a teacher's graph: what its output holds, and values for its other inputs.

    Attributes:
        output_kind: of the chosen output: ``logits``; ``log_probabilities`` of a log-softmax; ``probabilities`` of a
            softmax; ``sigmoid``, one for each class apart; ``percent``, probabilities times 100. None has the preflight
            tell it by the values and the last operator.
        class_names: of the output's columns, in their order; None takes those in the file's metadata, if it has some.
        class_map: for classes of the dataset whose name is none of the teacher's: the teacher's name, or the number of
            its column.
        input_values: of the scalar inputs that the graph has beside the pictures, by name.
    """

    output_kind: OutputKind | None = Field(None, exclude_if=lambda given: given is None)
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)
    class_map: Annotated[dict[str, ClassName | Column], Field(max_length=CLASSES_MAX)] = Field(
        {}, exclude_if=lambda given: not given
    )
    input_values: Annotated[dict[str, InputValue], Field(max_length=INPUTS_MAX)] = Field(
        {}, exclude_if=lambda given: not given
    )


class TeacherSpec(TeacherReading):
    """An ONNX classifier on disk, or logits that were imported.

    Attributes:
        path: the file; of imported logits the folder of the training split's cache.
        sha256: of its bytes (64 hex digits); None lets the pipeline compute it. Of imported logits it is their digest.
        output: name of the output that holds the logits; None takes the only one.
        caches: keys of the caches of imported logits, by split; empty for a classifier.
    """

    path: Path
    sha256: Sha256 | None = None
    output: str | None = None
    preprocessing: Preprocessing = Preprocessing()
    caches: dict[Split, Sha256] = Field({}, exclude_if=lambda given: not given)

    @property
    def reading(self) -> TeacherReading:
        """Statements of a client about the graph, without the file."""
        return TeacherReading(**{name: getattr(self, name) for name in TeacherReading.model_fields})
