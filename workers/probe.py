"""Try what the engine needs, each in a process of its own: ``python -m workers.probe ray|torch|onnxruntime``.

The last line of standard output is a JSON object with ``found``, a sentence's part, and ``gpus``, how many GPUs it can
compute on. A library that is broken may end the process instead; whoever asked reads why from its standard error.
"""

import importlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np


def main() -> int:
    """Exit status 2 for another name."""
    probes = {"ray": probe_ray, "torch": probe_torch, "onnxruntime": probe_onnxruntime}
    if len(sys.argv) != 2 or sys.argv[1] not in probes:
        sys.stderr.write(f"usage: python -m workers.probe {'|'.join(probes)}\n")
        return 2
    found, gpus = probes[sys.argv[1]]()
    sys.stdout.write("\n" + json.dumps({"found": found, "gpus": gpus}) + "\n")
    return 0


def probe_ray() -> tuple[str, int]:
    """Import it as the engine does."""
    importlib.import_module("workers.cluster")
    return f"Ray {version('ray')}", 0


def probe_torch() -> tuple[str, int]:
    """Compute something on every GPU that torch sees."""
    import torch

    names = []
    for index in range(torch.cuda.device_count()):
        x = torch.ones(64, 64, device=f"cuda:{index}")
        if float((x @ x).sum()) != 64.0**3:
            raise ArithmeticError(f"GPU {index} multiplies wrongly")
        names.append(torch.cuda.get_device_name(index))
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"torch {torch.__version__} {built}, it computes on {', '.join(names) or 'the CPU alone'}", len(names)


def probe_onnxruntime() -> tuple[str, int]:
    """Run a classifier of one layer as teachers are run."""
    from onnx import TensorProto, helper, save

    from workers.config import Preprocessing
    from workers.teacher import Teacher

    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, [weight])
    with tempfile.TemporaryDirectory(prefix="retort-probe-") as folder:
        path = Path(folder) / "probe.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        teacher = Teacher(path, Preprocessing(channels="gray", mean=(0.0,), std=(1.0,)), threads=1)
        logits = teacher.logits(np.full((1, 2, 2, 1), 255, np.uint8))
    if not np.allclose(logits, 2.0):
        raise ArithmeticError(f"ONNX Runtime computes {logits.tolist()}, not 2.0")
    on_gpu = teacher.provider == "CUDAExecutionProvider"
    return f"ONNX Runtime runs teachers on {teacher.provider}: {teacher.provider_reason}", int(on_gpu)


if __name__ == "__main__":
    sys.exit(main())
