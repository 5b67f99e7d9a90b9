"""Teacher of a job: its ONNX file and how a picture becomes its input. Sizes are (height, width) in pixels."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.spec import AtMost, Positive, Real, Size, Spec

CHANNELS_MAX = 3


class Preprocessing(Spec):
    """Steps from picture to input: resize, order channels, ``x * scale``, ``(x - mean) / std``, lay out.

    Attributes:
        size: (height, width) in pixels the network wants; None keeps the picture's own. Of a view, both mean the box
        of the dataset's picture resampled to that size, see ``teacher_augmentation``.
        mean: per channel, in units of the scaled picture (0..1 with the default scale).
        std: per channel, same unit, > 0.
        channels: order and number of the channels; grey pictures are repeated, colour ones turned
        to luma as needed.
        layout: ``nchw`` or ``nhwc``.
        scale: factor applied to the uint8 values before mean and std.
    """

    size: Size | None = None
    mean: Annotated[tuple[Real, ...], AtMost(CHANNELS_MAX)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Positive, ...], AtMost(CHANNELS_MAX)] = (0.229, 0.224, 0.225)
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    scale: Positive = 1 / 255

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


class TeacherSpec(Spec):
    """An ONNX classifier on disk.

    Attributes:
        path: the file.
        sha256: of its bytes (64 hex digits); None lets the pipeline compute it.
        output: name of the output that holds the logits; None takes the only one.
    """

    path: Path
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    output: str | None = None
    preprocessing: Preprocessing = Preprocessing()
