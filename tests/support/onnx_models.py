"""Small ONNX classifiers for tests, good and bad, made with onnx.helper.

Legend: P values of a picture (C * H * W), N classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Size = int | str | None


def image(shape: Sequence[Size] = ("batch", 3, 8, 8), dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    """The declaration of an input named ``images``."""
    return helper.make_tensor_value_info("images", dtype, shape)


def logits(shape: Sequence[Size] | None = ("batch", 4), name: str = "logits") -> ValueInfoProto:
    """The declaration of a float32 output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto] | None = None,
    outputs: Sequence[ValueInfoProto] | None = None,
    constants: dict[str, NDArray[np.generic]] | None = None,
    opset: int = 17,
    **fields: object,
) -> onnx.ModelProto:
    """A model of these nodes, by default from ``images`` to ``logits``."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs or [image()]), list(outputs or [logits()]), tensors)
    fields.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, ir_version=8, **fields)


def linear(
    weight_PN: NDArray[np.floating],
    bias_N: NDArray[np.floating] | None = None,
    *,
    picture: Sequence[int] = (3, 8, 8),
    batch: Size = "batch",
    tail: Sequence[str] = (),
    dtype: type = np.float32,
) -> onnx.ModelProto:
    """``flatten(images) @ weight + bias``, then the operators of ``tail`` one after the other."""
    values, classes = weight_PN.shape
    assert values == np.prod(picture)
    bias = np.zeros(classes) if bias_N is None else bias_N
    names = ["z", *(f"after_{operator}" for operator in tail)]
    names[-1] = "logits"
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weight", "bias"], [names[0]]),
    ]
    nodes += [helper.make_node(operator, [names[i]], [names[i + 1]]) for i, operator in enumerate(tail)]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(
        nodes,
        [image((batch, *picture), element)],
        [helper.make_tensor_value_info("logits", element, (batch, classes))],
        {"weight": weight_PN.astype(dtype), "bias": bias.astype(dtype)},
    )


def random_linear(classes: int = 4, **options: object) -> onnx.ModelProto:
    """``linear`` with fixed random weights, for 8x8 colour pictures."""
    weight_PN = np.random.default_rng(7).normal(size=(3 * 8 * 8, classes)) / 8
    return linear(weight_PN, **options)


def save(built: onnx.ModelProto, path: Path) -> Path:
    """Write the model as one file."""
    path.write_bytes(built.SerializeToString())
    return path
