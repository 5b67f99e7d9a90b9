"""Statements about a graph beside its pictures: values of scalar inputs by their range, names in the metadata."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import onnx_models
from workers.errors import InvalidTeacher
from workers.onnx.checks.class_metadata import class_names_of
from workers.onnx.checks.inputs import Scalar, graph_inputs


def with_scalar(element: int) -> onnx.ModelProto:
    model = onnx_models.linear(np.zeros((192, 2)))
    model.graph.input.append(helper.make_tensor_value_info("s", element, []))
    return model


@pytest.mark.parametrize(
    ("element", "value", "said"),
    [
        (TensorProto.UINT8, -1, "states -1 for 's', which is uint8, 0 to 255"),
        (TensorProto.INT8, 128, "which is int8, -128 to 127"),
        (TensorProto.INT64, float("1e300"), "which is int64, -9223372036854775808 to"),
        pytest.param(TensorProto.FLOAT, 10**400, r"states 10+\.\.\. for 's', which is float32", id="400 digits"),
        (TensorProto.FLOAT16, 1e6, "which is float16, -65504 to 65504: 1.0, say"),
        (TensorProto.FLOAT, float("inf"), "states inf"),
        (TensorProto.BOOL, 1, "which is bool: false, say"),
        (TensorProto.INT32, True, "states True"),
        (TensorProto.INT32, 0.5, "states 0.5"),
    ],
)
def test_input_value_beyond_its_dtype_is_refused(element: int, value: Scalar, said: str) -> None:
    with pytest.raises(InvalidTeacher, match=said):
        graph_inputs(with_scalar(element), {"s": value})


@pytest.mark.parametrize(
    ("element", "value"),
    [(TensorProto.UINT8, 255), (TensorProto.INT64, -(1 << 63)), (TensorProto.FLOAT16, 65504), (TensorProto.INT32, 2.0)],
)
def test_input_value_at_the_end_of_its_range_is_taken(element: int, value: Scalar) -> None:
    _, [fixed] = graph_inputs(with_scalar(element), {"s": value})
    assert fixed.value == value


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000], ids=["decimal", "hexadecimal"])
@pytest.mark.parametrize("text", ["[{}, 1]", "{{{}: 'a', 1: 'b'}}"], ids=["a name", "a column"])
def test_metadata_with_a_huge_number_names_nothing(text: str, number: str) -> None:
    model = onnx_models.linear(np.zeros((192, 2)))
    helper.set_model_props(model, {"class_names": text.format(number), "names": "['a', 'b']"})
    assert class_names_of(model) == ("a", "b")
