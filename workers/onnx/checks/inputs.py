"""Inputs of an ONNX classifier: the pictures, and scalars that a client has stated values for.

Only onnx, numpy and the standard library are imported: the API process loads this file.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx

from workers.errors import InvalidTeacher
from workers.onnx.checks.parsing import listed, short
from workers.onnx.checks.teacher_graph import FixedInput, GraphValue, shape_text
from workers.onnx.checks.values import NAME_MAX, value_of

IMAGE_DTYPES = ("float16", "float32", "uint8")
SIZE_MAX = 1 << 16  # of the input: pictures in a batch, pixels, channels
_FLOATS = ("float16", "float32", "float64")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

Scalar = bool | int | float


def graph_inputs(
    model: onnx.ModelProto, given: Mapping[str, Scalar]
) -> tuple[tuple[GraphValue, ...], tuple[FixedInput, ...]]:
    """Inputs of the graph, the pictures first, and the values of the others.

    Inputs that have an initializer are none: before IR version 4 the weights were inputs, too, and later ones have
    their default there.

    Args:
        given: values of scalar inputs by name.

    Raises:
        InvalidTeacher: there is no input for pictures, or another one without a value, with a wrong one, or no scalar.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value_of(info) for info in model.graph.input if info.name not in held]
    others = {value.name for value in inputs}
    unknown = sorted(set(given) - others)
    if unknown:
        raise InvalidTeacher(
            f"`input_values` states a value for {listed(unknown)}, the graph has {listed(others) or 'no input'}: leave "
            "it out, an input with a default needs no value"
        )
    image = _image(inputs, given)
    fixed = tuple(_fixed(value, given) for value in inputs if value is not image)
    return (image, *(value for value in inputs if value is not image)), fixed


def _image(inputs: list[GraphValue], given: Mapping[str, Scalar]) -> GraphValue:
    names = listed(value.name for value in inputs) or "none"
    candidates = [value for value in inputs if value.name not in given]
    if len(candidates) > 1:
        candidates = [value for value in candidates if value.shape is None or len(value.shape) == 4]
    if len(candidates) != 1:
        raise InvalidTeacher(
            f"the graph has {len(inputs)} inputs ({names}), a teacher has exactly one: the pictures, of rank 4. "
            "Make the others constants of the module that is exported, or state a value for each scalar one in "
            '`input_values`: {"NAME": 1.0}'
        )
    image = candidates[0]
    named = f"the input {short(image.name)!r}"
    if len(image.name) > NAME_MAX:
        raise InvalidTeacher(f"{named} has a name of {len(image.name)} characters, at most {NAME_MAX} are allowed")
    if image.dtype not in IMAGE_DTYPES:
        raise InvalidTeacher(
            f"{named} is {image.dtype}, it must be float32, float16 or uint8: export the model without the cast and "
            "the scaling that follow it, and give those as `scale`, `mean` and `std` of the preprocessing"
        )
    if image.shape is None or len(image.shape) != 4:
        rank = "no declared rank" if image.shape is None else f"rank {len(image.shape)} {shape_text(image.shape)}"
        flat = image.shape is not None and len(image.shape) == 2
        hint = ". Of a classifier of vectors (scikit-learn), put a Flatten of the pictures before it" if flat else ""
        raise InvalidTeacher(
            f"{named} has {rank}, it must have rank 4: batch, channels, height, width (or channels last){hint}"
        )
    if any(isinstance(size, int) and not 1 <= size <= SIZE_MAX for size in image.shape):
        raise InvalidTeacher(
            f"{named} has shape {shape_text(image.shape)}, every size must be at least 1 and at most {SIZE_MAX}"
        )
    return image


def _fixed(value: GraphValue, given: Mapping[str, Scalar]) -> FixedInput:
    named = f"the input {short(value.name)!r} ({value.dtype} {shape_text(value.shape)})"
    shape = tuple(1 if not isinstance(size, int) else size for size in value.shape or ())
    if len(value.name) > NAME_MAX or math.prod(shape) != 1 or value.dtype not in (*_FLOATS, *_INTEGERS, "bool"):
        raise InvalidTeacher(
            f"{named} is beside the pictures and no single number: make it a constant of the module that is exported"
        )
    if value.name not in given:
        raise InvalidTeacher(
            f"{named} is beside the pictures and has no default: state its value in `input_values`, "
            f'{{"{short(value.name)}": {_example(value.dtype)}}}, or make it a constant of the module that is exported'
        )
    return FixedInput(name=value.name, dtype=value.dtype, shape=shape, value=_converted(value, given[value.name]))


def _example(dtype: str) -> str:
    return "false" if dtype == "bool" else "1.0" if dtype in _FLOATS else "0"


def _converted(value: GraphValue, given: Scalar) -> Scalar:
    """The value as the input's dtype has it. Raises InvalidTeacher."""
    span = ""
    if value.dtype == "bool":
        if isinstance(given, bool):
            return given
    else:
        number = float if value.dtype in _FLOATS else int
        limits = np.finfo(value.dtype) if value.dtype in _FLOATS else np.iinfo(value.dtype)
        low, high = number(limits.min), number(limits.max)
        # Compared as Python's numbers, exactly: an integer may be larger than any float.
        is_whole = isinstance(given, int) or given.is_integer()
        if not isinstance(given, bool) and (number is float or is_whole) and low <= given <= high:
            return number(given)
        span = f", {low:.6g} to {high:.6g}" if number is float else f", {low} to {high}"
    raise InvalidTeacher(
        f"`input_values` states {short(repr(given))} for {short(value.name)!r}, which is {value.dtype}{span}: "
        f"{_example(value.dtype)}, say"
    )
