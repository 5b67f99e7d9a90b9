"""Static int8 quantisation of an ONNX classifier by ``onnxruntime.quantization``, for files that no stranger made.

Weights are int8, one scale per output channel; activations are uint8, one scale per tensor, from the least and the
greatest value that calibration pictures give it. The file is float32 operators between QuantizeLinear and
DequantizeLinear (QDQ), which runtimes fuse (Jacob et al. 2018, arXiv:1712.05877). The same file, pictures and thread
count give the same bytes.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    MinMaxCalibrater,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
    save_tensors_data,
)
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from workers.errors import WorkerError
from workers.onnx.checks.parsing import first_line
from workers.onnx.sessions.session import FATAL_ALONE


class QuantizationFailed(WorkerError):
    """ONNX Runtime cannot quantise this graph."""


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Batches as ONNX Runtime asks for them: one by one, then None."""

    def __init__(self, input_name: str, batches: Iterator[NDArray[np.float32]]) -> None:
        self._input_name, self._batches = input_name, batches

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """For ONNX Runtime."""
        batch = next(self._batches, None)
        return None if batch is None else {self._input_name: batch}


class _Calibrater(MinMaxCalibrater):  # type: ignore[misc]  # as above
    """ONNX Runtime's, on as many threads as this process has; its own takes every core of the machine."""

    threads = 1

    def create_inference_session(self) -> None:
        """For ONNX Runtime."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL_ALONE
        options.use_deterministic_compute = True
        self.infer_session = onnxruntime.InferenceSession(
            self.augmented_model_path, options, providers=["CPUExecutionProvider"]
        )


def quantize(
    path: Path,
    to: Path,
    batches: Iterator[NDArray[np.float32]],
    *,
    threads: int = 1,
    reduce_range: bool = False,
) -> None:
    """Write an int8 form of an ONNX classifier.

    Args:
        path: of the float32 file, with one input.
        to: of the int8 file; nothing is left there where this raises.
        batches: calibration inputs, normalised float32 [B, K, H, W] each. What the iterator raises ends this. Of a
            batch only the range of each tensor is kept.
        threads: of one run on the CPU.
        reduce_range: weights of 7 bits in place of 8.

    Raises:
        QuantizationFailed: the graph has something that ONNX Runtime cannot quantise.
    """
    with tempfile.TemporaryDirectory(dir=to.parent, prefix="int8.") as name, _without_advice():
        folder = Path(name)
        made = folder / "int8.onnx"
        try:
            _quantize(path, made, batches, threads=threads, reduce_range=reduce_range)
        except (WorkerError, OSError, MemoryError):
            raise
        except Exception as error:
            # Python code of many authors behind one function: it says what it cannot do with any exception.
            raise QuantizationFailed(
                f"ONNX Runtime {onnxruntime.__version__} cannot quantise {path.name}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        made.rename(to)


def _quantize(path: Path, made: Path, batches: Iterator[NDArray[np.float32]], threads: int, reduce_range: bool) -> None:
    simplified, ranges = made.with_name("simplified.onnx"), made.with_name("ranges.json")
    quant_pre_process(path, simplified, skip_symbolic_shape=True)
    operators = sorted({*QLinearOpsRegistry, *QDQRegistry})
    calibrater = _Calibrater(simplified, operators, str(made.with_name("calibrated.onnx")))
    calibrater.threads = threads
    calibrater.augment_graph()
    calibrater.create_inference_session()
    input_name = calibrater.infer_session.get_inputs()[0].name
    calibrater.collect_data(_Batches(input_name, batches))
    save_tensors_data(calibrater.compute_data(), ranges)
    quantize_static(
        simplified,
        made,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=ranges,
    )
    model = onnx.load(made)
    # ONNX Runtime declares all domains that it knows; other programs refuse those that they do not.
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, made)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep what ``onnxruntime.quantization`` advises through the root logger out of the log: it is done, or is no harm.

    What other modules log passes through loggers of their own.
    """
    root = logging.getLogger()

    def refuse(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)
