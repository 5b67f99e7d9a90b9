"""Trial of CUDA in a confined process, with a network of our own, once in a process.

The driver's interface is no standard: what a library of CUDA asks of the kernel changes with its version. So it is
tried before a stranger's teacher runs, and never decided by how that one fails: it could fail on purpose.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

from workers.errors import DeviceUnavailable, OutOfMemory, SessionLost, WorkerError
from workers.onnx.sessions.confined_session import ConfinedSession, limits_of
from workers.onnx.sessions.session import cuda_providers

MEMORY_BYTES = 1 << 30  # of the GPU
_IMAGE, _CLASSES = (4, 3, 32, 32), 8


@functools.cache
def confinement_failure() -> str | None:
    """Reason why a session on CUDA does not work within the confinement, in one sentence; None if it does.

    Raises:
        OutOfMemory, SessionLost, DeviceUnavailable: it does not work without the confinement either, or that is not
            known: a process that fills a GPU's memory must not have the confinement left out.
    """
    with tempfile.TemporaryDirectory(prefix="retort-probe-") as folder:
        path = Path(folder) / "probe.onnx"
        _save_network(path)
        try:
            _try(path, is_confined=True)
        except (OutOfMemory, SessionLost):
            raise
        except WorkerError:
            try:
                _try(path, is_confined=False)
            except WorkerError as unconfined:
                raise DeviceUnavailable(str(unconfined)) from unconfined
            return _second_failure(path)
    return None


def _second_failure(path: Path) -> str | None:
    """Reason of a second failure within the confinement: a passing one must not have the confinement left out."""
    try:
        _try(path, is_confined=True)
    except (OutOfMemory, SessionLost):
        raise
    except WorkerError as error:
        return str(error)
    return None


def _try(path: Path, *, is_confined: bool) -> None:
    """Run the network of ``_save_network`` on CUDA. Raises what a session raises."""
    session = ConfinedSession(
        path,
        "images",
        "logits",
        threads=1,
        providers=cuda_providers(MEMORY_BYTES, is_half=False),
        limits=limits_of(path, 1, 1),
        is_confined=is_confined,
    )
    try:
        session.run(np.ones(_IMAGE, np.float32))
    finally:
        session.close()


def _save_network(path: Path) -> None:
    """A convolution and a matrix product: cuDNN and cuBLAS load their libraries at their first use."""
    generator = np.random.default_rng(0)
    kernels = helper.make_tensor("kernels", TensorProto.FLOAT, [8, 3, 3, 3], generator.normal(size=216))
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [8, _CLASSES], generator.normal(size=8 * _CLASSES))
    nodes = [
        helper.make_node("Conv", ["images", "kernels"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *_IMAGE[1:]])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _CLASSES])]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, initializer=[kernels, weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
