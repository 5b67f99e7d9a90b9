"""Teacher graph: what an accepted ONNX file declares about its input, its outputs and itself."""

from pydantic import BaseModel, ConfigDict

from workers.errors import InvalidTeacher

Shape = tuple[int | str | None, ...]


class GraphValue(BaseModel):
    """An input or output; ``shape`` holds sizes, names of symbolic sizes, or None where neither is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: Shape | None


class FixedInput(BaseModel):
    """A scalar input beside the pictures, with the value that it always has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: bool | int | float


class TeacherGraph(BaseModel):
    """Declarations of an accepted file.

    Attributes:
        inputs: the pictures first: float32, float16 or uint8, rank 4; behind them those with fixed values.
        fixed: values of the other inputs.
        outputs: all outputs.
        output: name of the one that is taken for the logits: floating point, of rank 2 or with further sizes of 1.
        output_operator: type of the operator that makes it; empty if it is not known.
        class_names: of its columns, by the file's metadata.
        ir_version: of the file's format.
        opset: version of the standard operator set.
        nodes: number of operators; those in subgraphs and functions count once each.
        parameters: number of floating-point values in the constants.
        half_parameters: number of those that are float16 or bfloat16.
        batch_hint: sentences about operators that may make a picture's outputs depend on the other pictures or on
            chance, for the message if they are measured to; empty if there is none to be seen.
        scales_over_batch: an operator takes a scale over the whole batch (dynamic quantisation).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[GraphValue, ...]
    fixed: tuple[FixedInput, ...] = ()
    outputs: tuple[GraphValue, ...]
    output: str
    output_operator: str = ""
    class_names: tuple[str, ...] | None = None
    ir_version: int
    opset: int
    nodes: int
    parameters: int
    half_parameters: int
    batch_hint: str
    scales_over_batch: bool = False

    @property
    def takes_bytes(self) -> bool:
        """Whether pictures go in as they are stored, uint8: the preprocessing is in the graph."""
        return self.inputs[0].dtype == "uint8"

    @property
    def runs_alone(self) -> bool:
        """Whether pictures are run one at a time, since their outputs would depend on the batch."""
        return self.scales_over_batch and self.batch is None

    @property
    def is_half(self) -> bool:
        """Whether most of it computes in half precision: a converted graph may keep float32 at its input and output."""
        return 2 * self.half_parameters > self.parameters if self.parameters else self.inputs[0].dtype == "float16"

    @property
    def batch(self) -> int | None:
        """Number of pictures per call if the graph fixes it, else None."""
        return _fixed(self._image_shape[0])

    @property
    def classes(self) -> int | None:
        """Number of classes if the graph declares it, else None."""
        return class_count(self._logits.shape)

    @property
    def output_dtype(self) -> str:
        """Element type of the logits."""
        return self._logits.dtype

    def picture(self, layout: str) -> tuple[int | None, int | None, int | None]:
        """Picture size (channels, height, width) that the input declares, in ``layout``; None where one is open."""
        first, second, third = (_fixed(size) for size in self._image_shape[1:])
        return (first, second, third) if layout == "nchw" else (third, first, second)

    @property
    def _logits(self) -> GraphValue:
        return next(value for value in self.outputs if value.name == self.output)

    @property
    def _image_shape(self) -> Shape:
        return self.inputs[0].shape or (None, None, None, None)


def class_axis(shape: Shape | None) -> int | None:
    """Axis of the classes in an output's shape: all others but the first, the pictures', are 1; None if there is none.

    [N, C], [N, C, 1, 1] of a convolution, [N, 1, 1, C] of one with channels last.
    """
    if shape is None or len(shape) < 2:
        return None
    if len(shape) == 2:
        return 1
    axes = [axis for axis, size in enumerate(shape) if axis and size != 1]
    return axes[0] if len(axes) == 1 else None


def class_count(shape: Shape | None) -> int | None:
    """Number of classes that an output's shape declares; None where it leaves it open."""
    axis = class_axis(shape)
    return None if shape is None or axis is None else _fixed(shape[axis])


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
    declared = f"the teacher's input is {shape_text(graph.inputs[0].shape)} in layout {layout!r}"
    if wanted_channels not in (None, channels):
        raise InvalidTeacher(f"the preprocessing makes {channels} channels, {declared}: correct `channels` or `layout`")
    if size and any(fixed not in (None, given) for fixed, given in zip(wanted_size, size, strict=True)):
        raise InvalidTeacher(
            f"the preprocessing makes pictures of {size[0]}x{size[1]} pixels (height x width), {declared}: correct "
            "`size` or `layout`"
        )


def shape_text(shape: Shape | None) -> str:
    """Text of a shape for a message; sizes that are open are question marks."""
    return "of unknown rank" if shape is None else f"[{', '.join('?' if s is None else str(s) for s in shape)}]"
