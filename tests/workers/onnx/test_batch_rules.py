"""What is said of a graph whose outputs were measured to depend on the batch: which operators do it, and what to do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

from tests.support import onnx_models
from workers.config.teacher import Preprocessing
from workers.errors import InvalidTeacher
from workers.onnx.checks.batch_rules import NO_HINT, batch_hint
from workers.onnx.checks.check import check_onnx
from workers.onnx.sessions.smoke_test import smoke_run

node = helper.make_node
FLATTEN, GEMM = node("Flatten", ["images"], ["flat"]), node("Gemm", ["flat", "weight"], ["z"])
CONSTANTS = {
    "weight": np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32),
    "zero": np.array([0]),
    "last": np.array([1]),
    "ratio": np.array(0.5, np.float32),
    "half": np.array(0.5, np.float32),
}
CENTRED = node("Sub", ["z", "m"], ["logits"])


def built(*nodes: NodeProto, opset: int = 18) -> onnx.ModelProto:
    """From logits ``z`` to ``logits``."""
    return onnx_models.model([FLATTEN, GEMM, *nodes], constants=CONSTANTS, opset=opset)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            [
                node("DynamicQuantizeLinear", ["z"], ["q", "scale", "point"], name="z_quantised"),
                node("DequantizeLinear", ["q", "scale", "point"], ["logits"]),
            ],
            "DynamicQuantizeLinear 'z_quantised': its scale is taken over the batch. Give the model before dynamic",
        ),
        (
            [node("RandomNormalLike", ["z"], ["m"], name="noise"), CENTRED],
            "RandomNormalLike 'noise': drawn at random on every run. Export the model in eval mode",
        ),
        (
            [node("Bernoulli", ["p"], ["logits"]), node("Sigmoid", ["z"], ["p"])],
            "Bernoulli: drawn at random on every run",
        ),
        (
            [node("Greater", ["ratio", "half"], ["mode"]), node("Dropout", ["z", "ratio", "mode"], ["logits"])],
            "Dropout: training mode is switched by a value that the graph computes. Call model.eval()",
        ),
        (
            [node("ReduceMean", ["z", "zero"], ["m"]), CENTRED],
            "ReduceMean: over axis 0, the batch. Use the axes",
        ),
        ([node("ReduceMax", ["z"], ["m"]), CENTRED], "ReduceMax: over axis 0, the batch"),
        ([node("Softmax", ["z"], ["logits"], axis=0)], "Softmax: over axis 0, the batch"),
        ([node("Softmax", ["z"], ["logits"], axis=-2)], "Softmax: over axis 0, the batch"),
        ([node("CumSum", ["z", "zero"], ["logits"])], "CumSum: over axis 0, the batch"),
    ],
)
def test_batch_hint_names_what_can_depend_on_the_batch(nodes: Sequence[NodeProto], said: str) -> None:
    assert f"The graph has {said}" in batch_hint(built(*nodes))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Softmax", ["z"], ["logits"])],
        [node("ReduceMean", ["z", "last"], ["m"]), CENTRED],
        [node("CumSum", ["z", "last"], ["logits"])],
        # Sizes have no batch.
        [
            node("Shape", ["z"], ["s"]),
            node("ReduceProd", ["s"], ["n"], keepdims=0),
            node("Identity", ["z"], ["logits"]),
        ],
    ],
)
def test_batch_hint_is_empty_where_each_picture_is_for_itself(nodes: Sequence[NodeProto]) -> None:
    model = onnx.shape_inference.infer_shapes(built(*nodes))
    assert batch_hint(model) == ""


def test_batch_hint_of_many_operators_is_short() -> None:
    noises = [node("RandomNormalLike", ["z"], [f"r{i}"], name=f"n{i}") for i in range(50)]
    hint = batch_hint(built(*noises, node("Identity", ["z"], ["logits"])))
    assert "RandomNormalLike 'n0', RandomNormalLike 'n1', RandomNormalLike 'n2' and 47 more: drawn" in hint


def test_smoke_run_that_measures_a_dependence_names_the_operator(tmp_path: Path) -> None:
    path = onnx_models.save(built(node("Softmax", ["z"], ["logits"], axis=0, name="over")), tmp_path / "t.onnx")
    with pytest.raises(InvalidTeacher, match=r"beside another, .*The graph has Softmax 'over': over axis 0, the batch"):
        smoke_run(path, check_onnx(path), Preprocessing())
    turned = [
        node("Transpose", ["z"], ["t"], perm=[1, 0]),
        node("Softmax", ["t"], ["s"]),
        node("Transpose", ["s"], ["logits"], perm=[1, 0]),
    ]
    path = onnx_models.save(built(*turned), tmp_path / "turned.onnx")
    with pytest.raises(InvalidTeacher) as caught:
        smoke_run(path, check_onnx(path), Preprocessing())
    assert NO_HINT in str(caught.value)
