"""Static quantisation: what leaves it, what it refuses, that nothing is left of what fails."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests.support.onnx_models import model, random_linear, save
from workers.errors import Stopped
from workers.onnx.checks.check import check_onnx
from workers.onnx.quantization import QuantizationFailed, quantize
from workers.onnx.sessions.session import OnnxSession


def batches(count: int = 2) -> Iterator[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return (generator.standard_normal((8, 3, 8, 8), dtype=np.float32) for _ in range(count))


def test_quantize_leaves_int8_weights_per_channel_that_this_service_would_take(tmp_path: Path) -> None:
    source, to = save(random_linear(), tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    quantize(source, to, batches())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["float.onnx", "int8.onnx"]
    assert check_onnx(to, "logits").output == "logits"
    made = onnx.load(to)
    assert {entry.domain for entry in made.opset_import} == {node.domain for node in made.graph.node}
    shapes = {tensor.name: list(tensor.dims) for tensor in made.graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types["weight_quantized"] == onnx.TensorProto.INT8
    assert shapes["weight_scale"] == [4]
    [images] = batches(1)
    logits, expected = (OnnxSession(path, "images", "logits", threads=1).run(images) for path in (to, source))
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_quantize_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    source, to = save(random_linear(), tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    quantize(source, to, batches())
    code = (
        "import sys, pathlib; from tests.workers.onnx.test_quantization import batches, quantize; "
        "quantize(*map(pathlib.Path, sys.argv[1:]), batches())"
    )
    again = tmp_path / "again.onnx"
    subprocess.run([sys.executable, "-c", code, source, again], check=True, env={"PYTHONHASHSEED": "5"})
    assert again.read_bytes() == to.read_bytes()


def test_quantize_says_what_it_cannot_quantise_and_leaves_nothing(tmp_path: Path) -> None:
    unknown = model([helper.make_node("Unheard", ["images"], ["logits"])])
    source = save(unknown, tmp_path / "float.onnx")
    with pytest.raises(QuantizationFailed, match=r"cannot quantise float\.onnx: .*Unheard"):
        quantize(source, tmp_path / "int8.onnx", batches())
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_quantize_ends_by_what_the_batches_raise_and_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> Iterator[NDArray[np.float32]]:
        yield from batches(1)
        raise Stopped("enough")

    source = save(random_linear(), tmp_path / "float.onnx")
    with pytest.raises(Stopped, match="enough"):
        quantize(source, tmp_path / "int8.onnx", stopped())
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_quantize_keeps_advice_of_onnxruntime_out_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantize(save(random_linear(), tmp_path / "float.onnx"), tmp_path / "int8.onnx", batches())
    assert not caplog.records
