"""The allow-list of ONNX Runtime's own operators: it knows them all, and takes what its tools make of a classifier."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from tests.support import onnx_models
from workers.onnx.checks.check import check_onnx
from workers.onnx.checks.operators import RUNTIME_DOMAIN, RUNTIME_OPERATORS


def runtime_operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node if node.domain == RUNTIME_DOMAIN}


def network(folder: Path) -> Path:
    """Two convolutions with a shortcut, pooling and a matrix product."""
    generator = np.random.default_rng(0)
    constants = {
        "kernels": generator.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "others": generator.normal(size=(8, 8, 3, 3)).astype(np.float32),
        "weight": generator.normal(size=(8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "kernels"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "others"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    built = onnx_models.model(nodes, constants=constants)
    return onnx_models.save(built, folder / "plain.onnx")


class Pictures(CalibrationDataReader):
    """Two batches of noise."""

    def __init__(self) -> None:
        images = np.random.default_rng(1).normal(size=(2, 4, 3, 8, 8)).astype(np.float32)
        self._batches = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def test_runtime_operators_are_known_to_onnx_runtime_and_leave_out_those_that_crash_it() -> None:
    known = {schema.name for schema in get_all_operator_schema() if schema.domain == RUNTIME_DOMAIN}
    assert known >= RUNTIME_OPERATORS
    assert {"DecoderMaskedMultiHeadAttention", "EPContext", "GroupQueryAttention"} <= known - RUNTIME_OPERATORS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["pairs of nodes", "operators", "dynamic", "none"])
def test_runtime_operators_of_a_quantised_and_optimised_classifier_are_allowed(how: str, tmp_path: Path) -> None:
    """As ONNX Runtime's own tool quantises it, and then as ONNX Runtime saves what it has optimised."""
    made, optimised = network(tmp_path), tmp_path / "optimised.onnx"
    if how == "dynamic":
        quantize_dynamic(made, made := tmp_path / "quantised.onnx")
    elif how != "none":
        form = QuantFormat.QOperator if how == "operators" else QuantFormat.QDQ
        quantize_static(made, made := tmp_path / "quantised.onnx", Pictures(), quant_format=form)
    check_onnx(made)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    # Beyond this level it writes for the very processor that it runs on.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    check_onnx(optimised)
    assert runtime_operators(optimised)
