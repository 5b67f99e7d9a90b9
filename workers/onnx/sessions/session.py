"""ONNX Runtime session on one file. It imports no torch.

What would make the numbers depend on more than the file and the input is switched off (algorithm search, temporary
files, profiling, TF32 in float32 graphs). Which provider to take, and how a picture becomes an input, is for
``workers.teacher.teacher``.

Legend: B rows of the batch, N classes.
"""

import contextlib
import ctypes
import functools
import io
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, WorkerError
from workers.onnx.checks.large_file import find_layout, graph_beside_data
from workers.onnx.checks.rules import OPSET_MIN
from workers.onnx.checks.teacher_graph import FixedInput
from workers.onnx.sessions.runtime_messages import error_class, message
from workers.onnx.versions import ONNX, Versions

# Its default logger writes lines of its own form to standard error, beside the JSON of this process; what is wrong is
# raised as well, and ``cuda_load_failure`` says why CUDA was left out. Each session has a severity of its own.
FATAL_ALONE = 4
onnxruntime.set_default_logger_severity(FATAL_ALONE)

VERSION: str = onnxruntime.__version__
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
CPU = (CPU_PROVIDER,)

# ONNX Runtime's exceptions share no base but Exception. The last three are what its C++ library's own become, and what
# it raises of arguments that it does not take; a name of the file which is not UTF-8 is a ValueError, too.
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
    MemoryError,
    RuntimeError,
    ValueError,
)

# Operators that take a network's time. ONNX Runtime keeps those that compute shapes on the CPU, and is right to.
_HEAVY = re.compile("Attention|Conv|Einsum|Gemm|GRU|LSTM|MatMul|Norm|Pool|Resize|RNN")


class OnnxSession:
    """ONNX Runtime session of one file.

    Args:
        path: the ONNX file, or a large teacher's file, whose weights are mapped; ``onnx.check`` has let it in.
        input_name: of the pictures.
        output_name: of the output that is taken.
        fixed: values of the other inputs.
        threads: of one run on the CPU; None takes one per core.
        providers: in the order of preference, as ONNX Runtime takes them; ``CPU`` or ``cuda_providers``.

    Attributes:
        provider: ONNX Runtime's name of what it runs on, e.g. ``CPUExecutionProvider``.
        cpu_operators: of a session on CUDA, how many operators of each type run on the CPU all the same; those that
            compute shapes alone are not counted.

    Raises:
        InvalidTeacher: ONNX Runtime cannot load the file.
        DeviceUnavailable: CUDA, or a library of it, fails.
        OutOfMemory: there is too little memory for the weights.
    """

    def __init__(
        self,
        path: Path,
        input_name: str,
        output_name: str,
        *,
        fixed: Sequence[FixedInput] = (),
        threads: int | None,
        providers: Sequence[Any] = CPU,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Its errors are raised as well, and its lines show the names of a graph's nodes as they are.
        options.log_severity_level = FATAL_ALONE
        options.use_deterministic_compute = True
        # Idle threads must not spin: loading and writing share the cores with inference.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if providers is not CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._input_name = input_name
        self._output_name = output_name
        self._fixed = {each.name: np.full(each.shape, each.value, each.dtype) for each in fixed}
        model = _model(path, options)
        try:
            # Without its own fallback, which prints to stdout and goes on elsewhere.
            self._session = onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
        except ORT_ERRORS as error:
            advice = " into the memory that it may take" if error_class(error) is OutOfMemory else ""
            raise error_class(error)(f"ONNX Runtime cannot load the teacher{advice}: {message(error)}") from error
        self.provider: str = self._session.get_providers()[0]
        self.cpu_operators: Counter[str] = Counter()
        if self.provider == CUDA_PROVIDER:
            self.cpu_operators.update(
                node.op_type
                for part in self._session.get_provider_graph_assignment_info()
                for node in part.get_nodes()
                if part.ep_name == CPU_PROVIDER and _HEAVY.search(node.op_type)
            )

    def run(self, input_: NDArray[np.number], timeout_s: float | None = None) -> NDArray[np.float32]:
        """Run: the output [B, N] for a batch as large as the graph takes; further sizes of 1 are left out.

        Raises:
            InvalidTeacher: it cannot be computed, or not within ``timeout_s`` seconds, or has another shape.
            OutOfMemory: there is too little memory for so many pictures at once.
            DeviceUnavailable: CUDA, or a library of it, fails.
        """
        options = onnxruntime.RunOptions()
        timer = threading.Timer(timeout_s or 0, setattr, (options, "terminate", True))
        if timeout_s is not None:
            timer.start()
        try:
            feed = {self._input_name: input_, **self._fixed}
            output = self._session.run([self._output_name], feed, options)[0]
        except ORT_ERRORS as error:
            raise _explained(error, input_, timed_out=bool(options.terminate)) from error
        finally:
            timer.cancel()
        if output.ndim > 2 and sum(size != 1 for size in output.shape[1:]) <= 1:
            output = output.reshape(len(output), -1)
        if output.ndim != 2 or len(output) != len(input_):
            raise InvalidTeacher(
                f"{len(input_)} pictures give the output {self._output_name!r} the shape {list(output.shape)}, it must "
                f"be [{len(input_)}, classes]"
            )
        return np.ascontiguousarray(output, dtype=np.float32)


def _model(path: Path, options: onnxruntime.SessionOptions) -> Path | bytes:
    """Model for a session: the file, or the graph of a large teacher's file, whose weights are in that file."""
    path = path.resolve()
    layout = find_layout(path) if path.is_file() else None
    if layout is None:
        return path
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return graph_beside_data(path, layout)


def _explained(error: Exception, input_: NDArray[np.number], *, timed_out: bool) -> WorkerError:
    if timed_out:
        return InvalidTeacher(f"the teacher did not finish {len(input_)} pictures in the time allowed")
    said, failure = message(error), error_class(error)
    if failure is OutOfMemory:
        return OutOfMemory(f"no memory for {len(input_)} pictures at once: {said}")
    if failure is DeviceUnavailable:
        return DeviceUnavailable(f"the GPU failed with {len(input_)} pictures: {said}")
    return InvalidTeacher(
        f"the teacher cannot process an input of shape {list(input_.shape)} and dtype {input_.dtype}; if it was made "
        f"for another, correct `size`, `channels` or `layout` of its preprocessing. ONNX Runtime says: {said}"
    )


# ---------------------------------------------------------------------------------------------------------- versions


@functools.cache
def versions() -> Versions:
    """Versions: the newest IR version and opset that it loads, onnx's own being the most that is tried.

    Tried with a graph of one operator: ONNX Runtime has no call that tells.
    """
    program = f"ONNX Runtime {VERSION} with {ONNX.program}"
    ir = next(ir for ir in range(ONNX.ir, 0, -1) if _loads(ir, OPSET_MIN))
    opset = next(opset for opset in range(ONNX.opset, 0, -1) if _loads(ir, opset))
    return Versions(program=program, ir=ir, opset=opset)


def answer_versions() -> dict[str, Any]:
    """Answer of the child in ``versions.runtime_versions``: ``versions`` as JSON."""
    return versions().model_dump(mode="json")


def _loads(ir: int, opset: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", [x], [y])
    model = helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ALONE
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU_PROVIDER], enable_fallback=0)
    except ORT_ERRORS:
        return False
    return True


# -------------------------------------------------------------------------------------------------------------- CUDA


def cuda_providers(memory_bytes: int, *, is_half: bool) -> Sequence[Any]:
    """Providers for CUDA: its first device, and the CPU for what has to stay there; as ``OnnxSession`` takes them.

    Args:
        memory_bytes: that the session may take of the device, without what CUDA itself needs.
        is_half: the graph computes in float16 or bfloat16.
    """
    options = {
        "gpu_mem_limit": str(memory_bytes),
        # The arena takes what a run needs and no power of two above it: the GPU is shared with the students.
        "arena_extend_strategy": "kSameAsRequested",
        # An exhaustive search picks by timing, so two sessions could differ in the last bits.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 has 10 bits of mantissa: the cache of a float32 teacher filled on a GPU would differ from one filled on
        # a CPU. Switched off, ONNX Runtime takes no plan of cuDNN that uses a tensor core, whatever the graph's type:
        # convolutions in half precision lose most of their speed, and where no other plan is left it switches TF32 on
        # again, without a message.
        "use_tf32": "1" if is_half else "0",
    }
    return ((CUDA_PROVIDER, options), CPU_PROVIDER)


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime was built with CUDA; it may still fail to load."""
    return CUDA_PROVIDER in onnxruntime.get_available_providers()


def load_cuda() -> str:
    """Load the CUDA libraries; returns the messages of ONNX Runtime about those that it cannot load."""
    said = io.StringIO()
    # It prints the libraries that it cannot load; without them, the provider's own failure helps nobody.
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls(directory="")
    return " ".join(said.getvalue().split())


class _OnSomething(Protocol):
    provider: str


_Opened = TypeVar("_Opened", bound=_OnSomething)


def open_on_cuda(open_session: Callable[[], _Opened]) -> _Opened:
    """Open a session that is on CUDA. Raises DeviceUnavailable, with the reason, if it would not be."""
    said = load_cuda()
    try:
        session = open_session()
    except InvalidTeacher as error:
        # The smoke run has loaded it on a CPU.
        raise DeviceUnavailable(f"{error} {said}".rstrip()) from error
    if session.provider != CUDA_PROVIDER:
        raise DeviceUnavailable(f"{cuda_load_failure()} {said}".rstrip())
    return session


def cuda_load_failure() -> str:
    """Reason why the library of the CUDA provider cannot be loaded, after a session has come without it.

    ONNX Runtime tells it to the standard error of the process alone, and the loader says it again.
    """
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"ONNX Runtime cannot load its CUDA provider: {error}"
    return "ONNX Runtime leaves its CUDA provider out, its own log says why"
