"""Probe of a library or device that the engine needs, in a process of its own.

``python -m workers.tools.probe ray|torch|onnxruntime|gpus [COUNT]``.

The last line of standard output is a JSON object with ``found``, a sentence's part, and ``gpus``, how many GPUs it can
compute on; ``torch`` adds ``failure``, why it can compute on none, and ``gpus`` the ``names`` of those that CUDA shows,
``memory_bytes`` of the smallest, and ``failure``, why not all of them work. A library that is broken may end the
process instead; the reason is on its standard error.
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
    probes = {"ray": probe_ray, "torch": probe_torch, "onnxruntime": probe_onnxruntime, "gpus": probe_gpus}
    name, *given = sys.argv[1:] or [""]
    if name not in probes or len(given) > (name == "gpus"):
        sys.stderr.write(f"usage: python -m workers.tools.probe {'|'.join(probes)} [COUNT]\n")
        return 2
    found = probe_gpus(int(given[0])) if given else probes[name]()
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    return 0


def probe_ray() -> dict[str, object]:
    """Import it as the engine does."""
    importlib.import_module("workers.cluster.ray_cluster")
    return {"found": f"Ray {version('ray')}", "gpus": 0}


def probe_gpus(count: int = sys.maxsize) -> dict[str, object]:
    """Allocate and launch on the first ``count`` GPUs, as a run does before anything else.

    What they compute is ``probe_torch``'s to check.
    """
    import torch

    from workers.devices import cuda_failure

    names: list[str] = []
    memory: list[int] = []
    failures: list[str] = []
    if (failure := cuda_failure()) is not None:
        return {"found": failure, "gpus": 0, "names": names, "memory_bytes": None, "failure": failure}
    for index in range(min(count, torch.cuda.device_count())):
        names.append(torch.cuda.get_device_name(index))
        memory.append(torch.cuda.get_device_properties(index).total_memory)
        with torch.cuda.device(index):
            if (failure := cuda_failure()) is not None:
                failures.append(f"GPU {index} ({names[-1]}): {failure}")
    return {
        "found": ", ".join(names),
        "gpus": len(names) - len(failures),
        "names": names,
        "memory_bytes": min(memory),
        "failure": "; ".join(failures) or None,
    }


def probe_torch() -> dict[str, object]:
    """Compute something on every GPU that torch sees."""
    import torch

    names: list[str] = []
    for index in range(torch.cuda.device_count()):
        x = torch.ones(64, 64, device=f"cuda:{index}")
        if float((x @ x).sum()) != 64.0**3:
            raise ArithmeticError(f"GPU {index} multiplies wrongly")
        names.append(torch.cuda.get_device_name(index))
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    found = f"torch {torch.__version__} {built}, it computes on {', '.join(names) or 'the CPU alone'}"
    failure = None
    if not names:
        from workers.devices import cuda_failure

        failure = cuda_failure()
    return {"found": found, "gpus": len(names), "failure": failure}


def probe_onnxruntime() -> dict[str, object]:
    """Run a classifier of one layer as teachers are run."""
    from onnx import TensorProto, helper, save

    from workers.config.teacher import Preprocessing
    from workers.teacher.teacher import Teacher

    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, initializer=[weight])
    with tempfile.TemporaryDirectory(prefix="retort-probe-") as folder:
        path = Path(folder) / "probe.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        teacher = Teacher(path, Preprocessing(channels="gray", mean=(0.0,), std=(1.0,)), threads=1)
        logits = teacher.logits(np.full((1, 2, 2, 1), 255, np.uint8))
    if not np.allclose(logits, 2.0):
        raise ArithmeticError(f"ONNX Runtime computes {logits.tolist()}, not 2.0")
    found = f"ONNX Runtime runs teachers on {teacher.provider}: {teacher.provider_reason}"
    return {"found": found, "gpus": int(teacher.provider == "CUDAExecutionProvider")}


if __name__ == "__main__":
    sys.exit(main())
