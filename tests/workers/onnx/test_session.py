"""ONNX Runtime's errors, each told as what it is: too little memory, a failing device, or a teacher that cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from tests.support import onnx_models
from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, WorkerError
from workers.onnx.sessions.session import OnnxSession, cuda_providers

CUDNN = (
    "[ONNXRuntimeError] : 1 : FAIL : /src/cuda_call.cc:154 void onnxruntime::CudaCall(ERRTYPE, const char*) [with "
    "ERRTYPE = cudnnStatus_t; bool THRW = true] CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; "
    "hostname=node7 ; file=/src/cuda_execution_provider.cc ; line=250 ; expr=cudnnCreate(&cudnn_handle_); "
)


def session(tmp_path: Path, built: onnx.ModelProto | None = None) -> OnnxSession:
    path = onnx_models.save(built or onnx_models.random_linear(), tmp_path / "teacher.onnx")
    return OnnxSession(path, "images", "logits", threads=1)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (
            "[ONNXRuntimeError] : 6 : Non-zero status code returned while running Conv node. Name:'c' "
            "BFCArena::AllocateRawInternal Available memory of 19968 is smaller than requested bytes of 1572864",
            OutOfMemory,
            "no memory for 2 pictures at once: ",
        ),
        ("Failed to allocate memory for requested buffer of size 5", OutOfMemory, "no memory for 2 pictures"),
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(&p, size);", OutOfMemory, "no memory for 2 pictures"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemory, "no memory for 2 pictures"),
        (
            CUDNN,
            DeviceUnavailable,
            "the GPU failed with 2 pictures: CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED in "
            "cudnnCreate(&cudnn_handle_)",
        ),
        ("Got invalid dimensions for input: images", InvalidTeacher, "the teacher cannot process an input of shape"),
    ],
)
def test_session_run_distinguishes_errors_of_memory_device_and_teacher(
    said: str, kind: type[WorkerError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages are those of ONNX Runtime's arena and of CUDA's libraries."""

    def fail(*_: object) -> None:
        raise ort_errors.Fail(said)

    opened = session(tmp_path)
    monkeypatch.setattr(opened._session, "run", fail)
    with pytest.raises(WorkerError) as caught:
        opened.run(np.zeros((2, 3, 8, 8), np.float32))
    assert type(caught.value) is kind
    assert str(caught.value).startswith(message)
    assert "hostname" not in str(caught.value)


def test_session_run_out_of_memory_is_recognised_by_the_runtimes_messages(tmp_path: Path) -> None:
    """A graph that really asks for 64 TiB."""
    built = onnx_models.random_linear()
    built.graph.node[1].output[0] = "z"
    shape = onnx.numpy_helper.from_array(np.array([1 << 44]), "shape")
    built.graph.initializer.append(shape)
    built.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["z"], ["one"], keepdims=0),
            helper.make_node("Expand", ["one", "shape"], ["huge"]),
            helper.make_node("ReduceMean", ["huge"], ["mean"], keepdims=0),
            helper.make_node("Add", ["z", "mean"], ["logits"]),
        ]
    )
    with pytest.raises(OutOfMemory, match="no memory for 2 pictures at once"):
        session(tmp_path, built).run(np.zeros((2, 3, 8, 8), np.float32))


def test_session_run_says_nothing_to_the_terminal_of_a_node_whose_name_is_a_command_to_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's own log shows names as they are; the error, which is written out where it is shown, has it too."""
    built = onnx_models.random_linear()
    built.graph.node[0].input[0] = "picked"
    built.graph.node.insert(0, helper.make_node("Gather", ["images", "rows"], ["picked"], name="\x1b]0;pwned\x07"))
    # There is no sixth picture.
    built.graph.initializer.append(helper.make_tensor("rows", onnx.TensorProto.INT64, [1], [5]))
    with pytest.raises(InvalidTeacher, match="pwned"):
        session(tmp_path, built).run(np.zeros((3, 3, 8, 8), np.float32))
    assert "pwned" not in "".join(capfd.readouterr())


def test_session_whose_cuda_provider_does_not_load_writes_nothing_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lines of ONNX Runtime's own form would stand among the JSON of a worker."""
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    OnnxSession(path, "images", "logits", threads=1, providers=cuda_providers(1 << 20, is_half=False))
    assert capfd.readouterr().err == ""


def test_session_sends_no_telemetry(tmp_path: Path) -> None:
    """Where it may, ONNX Runtime keeps a number of the machine and what it has yet to send below the home folder."""
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    home = tmp_path / "home"
    home.mkdir()
    # It sends nothing from a machine that says it is CI.
    other = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "ORT_", "XDG_"))}
    code = """if True:
        import pathlib, sys, workers.onnx.sessions.session
        workers.onnx.sessions.session.OnnxSession(pathlib.Path(sys.argv[1]), "images", "logits", threads=1)
    """
    subprocess.run([sys.executable, "-c", code, str(path)], env={**other, "HOME": str(home)}, check=True)
    assert not [*home.rglob("*")]
