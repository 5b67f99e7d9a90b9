"""ONNX Runtime: a session on one file, and what it computes. The only file that imports onnxruntime; torch stays out.

What would make the numbers depend on more than the file and the input is switched off (TF32, algorithm search,
temporary files, profiling). Which provider to take, and how a picture becomes an input, is for ``workers.teacher``.

Legend: B rows of the batch, N classes.
"""

import contextlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from workers.errors import InvalidTeacher, WorkerError
from workers.onnx_graph import first_line

CPU = ("CPUExecutionProvider",)
CUDA_OPTIONS = {
    # The arena takes what a run needs and no power of two above it: the GPU is shared with the students.
    "arena_extend_strategy": "kSameAsRequested",
    # An exhaustive search picks by timing, so two sessions could differ in the last bits.
    "cudnn_conv_algo_search": "HEURISTIC",
    # TF32 has 10 bits of mantissa: a cache filled on a GPU would differ from one filled on a CPU.
    "use_tf32": "0",
}
CUDA = (("CUDAExecutionProvider", CUDA_OPTIONS), "CPUExecutionProvider")

# ONNX Runtime's exceptions share no base but Exception. The last is what becomes of one that quotes a name of the file
# which is not UTF-8.
ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    UnicodeDecodeError,
)


class Session:
    """One file, ready to run.

    Args:
        path: the ONNX file; ``onnx_check`` has let it in.
        input_name: of the pictures.
        output_name: of the output that is taken.
        threads: of one run on the CPU; None takes one per core.
        providers: in the order of preference, as ONNX Runtime takes them.

    Attributes:
        provider: ONNX Runtime's name of what it runs on, e.g. ``CPUExecutionProvider``.

    Raises:
        InvalidTeacher: ONNX Runtime cannot load the file.
    """

    def __init__(
        self, path: Path, input_name: str, output_name: str, *, threads: int | None, providers: Sequence[Any] = CPU
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        options.use_deterministic_compute = True
        # Idle threads must not spin: loading and writing share the cores with inference.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._input_name = input_name
        self._output_name = output_name
        try:
            # Without its own fallback, which prints to stdout and goes on elsewhere.
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers), enable_fallback=0)
        except ORT_ERRORS as error:
            raise InvalidTeacher(f"ONNX Runtime cannot load the teacher: {first_line(error)}") from error
        self.provider: str = self._session.get_providers()[0]

    def run(self, input_: NDArray[np.floating], timeout_s: float | None = None) -> NDArray[np.float32]:
        """The output [B, N] for a batch as large as the graph takes.

        Raises:
            InvalidTeacher: it cannot be computed, or not within ``timeout_s`` seconds, or has another shape.
            WorkerError: there is not enough memory.
        """
        options = onnxruntime.RunOptions()
        timer = threading.Timer(timeout_s or 0, setattr, (options, "terminate", True))
        if timeout_s is not None:
            timer.start()
        try:
            output = self._session.run([self._output_name], {self._input_name: input_}, options)[0]
        except ORT_ERRORS as error:
            raise _explained(error, input_, timed_out=bool(options.terminate)) from error
        finally:
            timer.cancel()
        if output.ndim != 2 or len(output) != len(input_):
            raise InvalidTeacher(
                f"{len(input_)} pictures give the output {self._output_name!r} the shape {list(output.shape)}, it must "
                f"be [{len(input_)}, classes]"
            )
        return np.ascontiguousarray(output, dtype=np.float32)


def _explained(error: Exception, input_: NDArray[np.floating], *, timed_out: bool) -> WorkerError:
    if timed_out:
        return InvalidTeacher(f"the teacher did not finish {len(input_)} pictures in the time allowed")
    said = first_line(error)
    if "allocate memory" in str(error) or "out of memory" in str(error).lower():
        return WorkerError(f"no memory for {len(input_)} pictures at once, use a smaller batch: {said}")
    return InvalidTeacher(
        f"the teacher cannot process an input of shape {list(input_.shape)} and dtype {input_.dtype}; if it was made "
        f"for another, correct `size`, `channels` or `layout` of its preprocessing. ONNX Runtime says: {said}"
    )


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime was built with CUDA; it may still fail to load."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def load_cuda() -> str:
    """Load the CUDA libraries; returns what ONNX Runtime says of those that it cannot load."""
    said = io.StringIO()
    # It prints what it cannot load; without that, the provider's own failure says nothing to a person.
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls(directory="")
    return " ".join(said.getvalue().split())
