"""Teachers that behave until a batch is large: good classifiers whose graph does something else beyond some pictures.

Each takes ``images`` and has logits of its own weights, so that every check of a small batch lets it pass.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support import onnx_models

TRIGGER = 8
node = helper.make_node


def hostile(
    harm: list[NodeProto],
    constants: dict[str, NDArray[np.generic]],
    *,
    given: onnx.ModelProto | None = None,
    trigger: int = TRIGGER,
) -> onnx.ModelProto:
    """A classifier that also computes ``harm``: of ``struck`` (int64 scalar, 1 in a large batch, else 0) to ``cost``.

    Args:
        given: a classifier of ``images`` (rank 4) to ``logits``; None is a linear one with random weights.
        trigger: pictures; with more it strikes.
    """
    built = onnx.ModelProto.FromString((given or onnx_models.random_linear()).SerializeToString())
    graph = built.graph
    for each in graph.node:
        each.output[:] = ["honest" if name == "logits" else name for name in each.output]
    nodes = [
        node("Shape", ["images"], ["sizes"], start=0, end=1),
        node("Squeeze", ["sizes"], ["pictures"]),
        node("Greater", ["pictures", "trigger"], ["is_large"]),
        node("Cast", ["is_large"], ["struck"], to=TensorProto.INT64),
        *harm,
        node("Mul", ["cost", "nothing"], ["no_cost"]),
        node("Add", ["honest", "no_cost"], ["logits"]),
    ]
    held = {"trigger": np.array(trigger), "nothing": np.float32(0), **constants}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in held.items())
    graph.node.extend(nodes)
    return built


def endless(given: onnx.ModelProto | None = None, trigger: int = TRIGGER) -> onnx.ModelProto:
    """A loop of 2^62 turns."""
    scalar = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("before", "after")]
    body = helper.make_graph(
        [node("Identity", ["going"], ["goes_on"]), node("Sin", ["before"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            scalar[0],
        ],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []), scalar[1]],
    )
    harm = [node("Mul", ["struck", "turns"], ["trips"]), node("Loop", ["trips", "yes", "one"], ["cost"], body=body)]
    return hostile(
        harm, {"turns": np.array(1 << 62), "yes": np.array(True), "one": np.float32(1)}, given=given, trigger=trigger
    )


def memory_bomb(given: onnx.ModelProto | None = None, trigger: int = TRIGGER, doublings: int = 20) -> onnx.ModelProto:
    """Four GiB (4 KiB, doubled 20 times) in turns that each double what the turn before has made, all of it touched."""
    grown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("before", "after")]
    body = helper.make_graph(
        [node("Identity", ["going"], ["goes_on"]), node("Concat", ["before", "before"], ["after"], axis=0)],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            grown[0],
        ],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []), grown[1]],
    )
    harm = [
        node("Mul", ["struck", "doublings"], ["trips"]),
        node("Loop", ["trips", "yes", "ones"], ["huge"], body=body),
        node("ReduceMean", ["huge"], ["cost"], keepdims=0),
    ]
    constants = {"doublings": np.array(doublings), "yes": np.array(True), "ones": np.ones(1024, np.float32)}
    return hostile(harm, constants, given=given, trigger=trigger)
